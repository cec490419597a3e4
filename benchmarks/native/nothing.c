/*
 * Stands for CRIU where nothing is to be done: ``nothing swrk FD`` says what CRIU says in a dump that
 * succeeds, and makes the one file that is looked for (INVENTORY). So a call is what it costs
 * beside CRIU.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define SAY(fd, words) send(fd, words, sizeof(words) - 1, MSG_NOSIGNAL)

/* As in CRIU, and twice: who looks for it finds it. */
static volatile char run_ids[2][37] = { "01234567-89ab-cdef-0123-456789abcdef",
					"01234567-89ab-cdef-0123-456789abcdef" };

int main(int argc, char **argv)
{
	char heard[4096];
	int fd = argc > 2 && run_ids[0][0] ? atoi(argv[2]) : -1;

	if (recv(fd, heard, sizeof(heard), 0) <= 0)
		return 0; /* nobody asks any more */
	SAY(fd, "\x08\x06\x10\x01*\x0a\x0a\x08pre-dump");
	recv(fd, heard, sizeof(heard), 0);
	SAY(fd, "\x08\x06\x10\x01*\x11\x0a\x0fquery-ext-files");
	recv(fd, heard, sizeof(heard), 0);
	close(open(getenv("INVENTORY"), O_CREAT | O_WRONLY, 0600));
	SAY(fd, "\x08\x06\x10\x01*\x0b\x0a\x09post-dump");
	recv(fd, heard, sizeof(heard), 0);
	SAY(fd, "\x08\x01\x10\x01\x1a\x02\x08\x00");
	return 0;
}
