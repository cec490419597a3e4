/*
 * Replaces CRIU, to measure a call without CRIU's work: ``nothing swrk FD`` sends CRIU's messages of a
 * successful dump, and creates the only file that the caller checks (INVENTORY).
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SEND(fd, message) send(fd, message, sizeof(message) - 1, MSG_NOSIGNAL)

/* As in CRIU, whose memory contains the run id twice; the caller searches for it. */
static volatile char run_ids[2][37] = { "01234567-89ab-cdef-0123-456789abcdef",
					"01234567-89ab-cdef-0123-456789abcdef" };

int main(int argc, char **argv)
{
	char received[4096];
	int fd = argc > 2 && run_ids[0][0] ? atoi(argv[2]) : -1;

	if (recv(fd, received, sizeof(received), 0) <= 0)
		return 0; /* the caller has closed the socket */
	SEND(fd, "\x08\x06\x10\x01*\x0a\x0a\x08pre-dump");
	recv(fd, received, sizeof(received), 0);
	SEND(fd, "\x08\x06\x10\x01*\x11\x0a\x0fquery-ext-files");
	recv(fd, received, sizeof(received), 0);
	close(open(getenv("INVENTORY"), O_CREAT | O_WRONLY, 0600));
	SEND(fd, "\x08\x06\x10\x01*\x0b\x0a\x09post-dump");
	recv(fd, received, sizeof(received), 0);
	SEND(fd, "\x08\x01\x10\x01\x1a\x02\x08\x00");
	return 0;
}
