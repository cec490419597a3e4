/*
 * Receiving CRIU's messages. Notifications that need no decision are acknowledged here, without a
 * return to Python.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

/* The kernel has closed the descriptors that did not fit. */
static void take_descriptors(struct pn_receiver *receiver, struct msghdr *message)
{
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		receiver->n_fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(receiver->fds, CMSG_DATA(head), receiver->n_fds * sizeof(int));
	}
}

static int receive(struct pn_receiver *receiver)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(sizeof(receiver->fds))];
	} control;
	struct iovec into = { receiver->buffer, receiver->capacity };
	struct msghdr message = {
		.msg_iov = &into,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t length = recvmsg(receiver->sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return PN_RECEIVED_NOTHING;
	if (length < 0 && errno != ECONNRESET && errno != EPIPE)
		return -errno;
	if (length <= 0)
		return PN_RECEIVED_EOF;
	take_descriptors(receiver, &message);
	receiver->length = (size_t)length;
	return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? PN_RECEIVED_TRUNCATED : PN_RECEIVED_MESSAGE;
}

/* Replies to the message if it is one of those that are acknowledged here. */
static bool acknowledge(const struct pn_receiver *receiver)
{
	const struct pn_bytes *reply = &receiver->reply;

	for (size_t i = 0; !receiver->n_fds && i < receiver->n_acknowledged; i++) {
		const struct pn_bytes *known = &receiver->acknowledged[i];

		if (known->length == receiver->length && !memcmp(known->data, receiver->buffer, known->length))
			return send(receiver->sock, reply->data, reply->length, MSG_NOSIGNAL) >= 0;
	}
	return false;
}

static int64_t now_ms(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int wait_and_receive(struct pn_receiver *receiver, int timeout_ms, bool *woken)
{
	/* poll() ignores a negative descriptor. */
	struct pollfd watched[] = {
		{ .fd = receiver->sock, .events = POLLIN },
		{ .fd = receiver->wake_fd, .events = POLLIN },
		{ .fd = receiver->pidfd, .events = POLLIN },
	};
	int ready = poll(watched, sizeof(watched) / sizeof(*watched), timeout_ms);
	uint64_t count;

	receiver->length = receiver->n_fds = 0;
	if (ready < 0 && errno != EINTR)
		return -errno;
	if (ready == 0)
		return PN_RECEIVED_TIMEOUT;
	/* Receive after EINTR too: a process that dumped itself is restored inside this poll(), which
	 * then fails with EINTR. CRIU's response is in the socket and CRIU has ended. */
	*woken = ready > 0 && watched[1].revents;
	if (*woken && read(receiver->wake_fd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	return receive(receiver);
}

int pn_receive(struct pn_receiver *receiver, int timeout_ms)
{
	int64_t deadline = timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
	bool woken = false;

	for (;;) {
		int result = wait_and_receive(receiver, timeout_ms, &woken);
		int64_t remaining = deadline - now_ms();

		/* After a wake-up or at the deadline the caller decides about the reply. */
		if (result != PN_RECEIVED_MESSAGE || woken || remaining <= 0 || !acknowledge(receiver))
			return result;
		if (timeout_ms >= 0)
			timeout_ms = (int)remaining;
	}
}
