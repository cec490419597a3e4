/*
 * Descriptors that stay off 0 to 2: where the caller has closed one of these, what is opened next gets
 * its number, to which libcriu prints, and which mean something else to a worker.
 */
#ifndef PN_DESCRIPTORS_H
#define PN_DESCRIPTORS_H

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

/* The same file on a number above 2; -1 stays -1. */
static inline int above_stdio(int fd)
{
	int moved;

	if (fd < 0 || fd > 2)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return moved;
}

/* Makes room for large requests: beyond the system's limit where we may. */
static inline int widen(int sock)
{
	const int wide = 64 << 20;

	if (!setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &wide, sizeof(wide)))
		return 0;
	return setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &wide, sizeof(wide));
}

#endif
