/*
 * What a worker is reached by, and growing it from a seed (seed.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "descriptors.h"
#include "libcriu_types.h"
#include "pycriu_native.h"

int pn_make_ends(struct pn_ends *ends)
{
	int pair[2], error;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		return -errno;
	ends->ours = above_stdio(pair[0]);
	ends->theirs = above_stdio(pair[1]);
	ends->output = above_stdio(memfd_create("criu-stderr", MFD_CLOEXEC));
	if (ends->ours >= 0 && ends->theirs >= 0 && ends->output >= 0 && !widen(ends->ours))
		return 0;
	error = errno;
	close(ends->ours);
	close(ends->theirs);
	close(ends->output);
	return -error;
}

int pn_fork_worker(int seed, const struct pn_ends *ends, int milliseconds)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(2 * sizeof(int))];
	} control = { .head = { .cmsg_len = CMSG_LEN(2 * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS } };
	struct iovec word = { "", 1 };
	struct msghdr message = {
		.msg_iov = &word,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct pollfd answer = { .fd = seed, .events = POLLIN };
	long pid = -1;
	int ready;

	memcpy(CMSG_DATA(&control.head), (int[]){ ends->theirs, ends->output }, 2 * sizeof(int));
	if (sendmsg(seed, &message, MSG_NOSIGNAL) < 0)
		return -errno;
	while ((ready = poll(&answer, 1, milliseconds)) < 0 && errno == EINTR)
		;
	if (ready <= 0)
		return ready ? -errno : -ETIMEDOUT;
	if (recv(seed, &pid, sizeof(pid), MSG_DONTWAIT) != sizeof(pid))
		return -EPIPE;
	return pid > 0 ? (int)pid : -EAGAIN;
}
