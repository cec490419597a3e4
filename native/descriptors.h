/*
 * Descriptors above 2. If the caller has closed 0, 1 or 2, the next open() returns that number;
 * libcriu prints to it, and in a worker it is standard input, output or error.
 */
#ifndef PN_DESCRIPTORS_H
#define PN_DESCRIPTORS_H

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

/* Moves the descriptor to a number above 2; -1 stays -1. */
static inline int above_stdio(int fd)
{
	int moved;

	if (fd < 0 || fd > 2)
		return fd;
	moved = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	close(fd);
	return moved;
}

/* Two connected unix sockets on numbers above 2; 0, or a negative errno. */
static inline int connected_pair(int type, int pair[2])
{
	int error;

	if (socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair))
		return -errno;
	pair[0] = above_stdio(pair[0]);
	pair[1] = above_stdio(pair[1]);
	if (pair[0] >= 0 && pair[1] >= 0)
		return 0;
	error = errno;
	close(pair[0]);
	close(pair[1]);
	return -error;
}

/* For large requests: beyond the system's limit if the caller has CAP_NET_ADMIN. */
static inline int enlarge_send_buffer(int sock)
{
	const int size = 64 << 20;

	if (!setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)))
		return 0;
	return setsockopt(sock, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
}

#endif
