/*
 * The socket and the output of a worker, and requests to a fork server (forkserver.c).
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

int pn_open_channel(struct pn_channel *channel)
{
	int pair[2], error = connected_pair(SOCK_SEQPACKET, pair);

	if (error)
		return error;
	channel->local = pair[0];
	channel->remote = pair[1];
	channel->output = above_stdio(memfd_create("criu-stderr", MFD_CLOEXEC));
	if (channel->output >= 0 && !enlarge_send_buffer(channel->local))
		return 0;
	error = errno;
	close(channel->local);
	close(channel->remote);
	close(channel->output);
	return -error;
}

int pn_socket_pair(int type, int pair[2])
{
	return connected_pair(type, pair);
}

int pn_send(int sock, const char *data, size_t length)
{
	ssize_t sent;

	while ((sent = send(sock, data, length, MSG_NOSIGNAL)) < 0 && errno == EINTR)
		;
	return sent < 0 ? -errno : 0;
}

_Static_assert(PN_MAX_INHERITED == PN_FORK_FDS - PN_FORK_RESERVED, "PN_MAX_INHERITED");

/* Sends a request and waits for its result. */
static int send_request(int server, struct pn_fork_request *request, const int *fds, int timeout_ms, long *result)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(PN_FORK_FDS * sizeof(int))];
	} control = { .head = { .cmsg_len = CMSG_LEN(request->n_fds * sizeof(int)),
				.cmsg_level = SOL_SOCKET,
				.cmsg_type = SCM_RIGHTS } };
	struct iovec data = { request, sizeof(*request) };
	struct msghdr message = {
		.msg_iov = &data,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = CMSG_SPACE(request->n_fds * sizeof(int)),
	};
	struct pollfd ready = { .fd = server, .events = POLLIN };
	int n;

	memcpy(CMSG_DATA(&control.head), fds, request->n_fds * sizeof(int));
	if (sendmsg(server, &message, MSG_NOSIGNAL) < 0)
		return -errno;
	while ((n = poll(&ready, 1, timeout_ms)) < 0 && errno == EINTR)
		;
	if (n <= 0)
		return n ? -errno : -ETIMEDOUT;
	return recv(server, result, sizeof(*result), MSG_DONTWAIT) == sizeof(*result) ? 0 : -EPIPE;
}

int pn_fork_worker(int server, const struct pn_channel *channel, const int *keep, size_t n_keep, int timeout_ms)
{
	struct pn_fork_request request = { .kind = PN_FORK_WORKER, .n_fds = PN_FORK_RESERVED + n_keep };
	int fds[PN_FORK_FDS] = { [PN_FORK_SOCKET] = channel->remote, [PN_FORK_OUTPUT] = channel->output };
	long pid = -1;
	int status;

	if (n_keep > PN_MAX_INHERITED)
		return -E2BIG;
	memcpy(fds + PN_FORK_RESERVED, keep, n_keep * sizeof(int));
	memcpy(request.numbers, keep, n_keep * sizeof(int));
	status = send_request(server, &request, fds, timeout_ms, &pid);
	if (status)
		return status;
	return pid > 0 ? (int)pid : -EAGAIN;
}

int pn_load_template(int server, const int *fds, size_t n_fds, uint64_t table_size, int timeout_ms)
{
	struct pn_fork_request request = { .kind = PN_FORK_TEMPLATE, .n_fds = n_fds, .table_size = table_size };
	long result = -1;
	int status;

	if (n_fds > PN_FORK_FDS)
		return -E2BIG;
	status = send_request(server, &request, fds, timeout_ms, &result);
	return status ? status : (int)result;
}
