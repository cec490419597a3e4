/*
 * What a worker is reached by, and the requests to a fork server (forkserver.c).
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
#include "forkserver.h"
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

_Static_assert(PN_MOST_INHERITED == PN_FORK_FDS - PN_FORK_OWN, "PN_MOST_INHERITED");

/* Sends a request and waits for the answer; 0 or a negative errno. */
static int request(int server, struct pn_fork_request *request, const int *fds, int milliseconds, long *answer)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(PN_FORK_FDS * sizeof(int))];
	} control = { .head = { .cmsg_len = CMSG_LEN(request->n_fds * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS } };
	struct iovec words = { request, sizeof(*request) };
	struct msghdr message = {
		.msg_iov = &words,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(request->n_fds * sizeof(int)),
	};
	struct pollfd ready = { .fd = server, .events = POLLIN };
	int n;

	memcpy(CMSG_DATA(&control.head), fds, request->n_fds * sizeof(int));
	if (sendmsg(server, &message, MSG_NOSIGNAL) < 0)
		return -errno;
	while ((n = poll(&ready, 1, milliseconds)) < 0 && errno == EINTR)
		;
	if (n <= 0)
		return n ? -errno : -ETIMEDOUT;
	return recv(server, answer, sizeof(*answer), MSG_DONTWAIT) == sizeof(*answer) ? 0 : -EPIPE;
}

int pn_fork_worker(int server, const struct pn_ends *ends, const int *keep, size_t n_keep, int milliseconds)
{
	struct pn_fork_request wanted = { .kind = PN_FORK_WORKER, .n_fds = PN_FORK_OWN + n_keep };
	int fds[PN_FORK_FDS] = { [PN_FORK_SOCKET] = ends->theirs, [PN_FORK_OUTPUT] = ends->output };
	long pid = -1;
	int status;

	if (n_keep > PN_MOST_INHERITED)
		return -E2BIG;
	memcpy(fds + PN_FORK_OWN, keep, n_keep * sizeof(int));
	memcpy(wanted.numbers, keep, n_keep * sizeof(int));
	status = request(server, &wanted, fds, milliseconds, &pid);
	if (status)
		return status;
	return pid > 0 ? (int)pid : -EAGAIN;
}

int pn_load_template(int server, const int *fds, size_t n_fds, uint64_t table_size, int milliseconds)
{
	struct pn_fork_request wanted = { .kind = PN_FORK_TEMPLATE, .n_fds = n_fds, .table_size = table_size };
	long answer = -1;
	int status;

	if (n_fds > PN_FORK_FDS)
		return -E2BIG;
	status = request(server, &wanted, fds, milliseconds, &answer);
	return status ? status : (int)answer;
}
