/*
 * Listening to CRIU: until it says something, or the caller has, or there is no more time.
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

/* The descriptors that came with a message; one that did not fit, the kernel has closed. */
static void take_descriptors(struct pn_receiver *ear, struct msghdr *message)
{
	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head; head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		ear->n_fds = (head->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(ear->fds, CMSG_DATA(head), ear->n_fds * sizeof(int));
	}
}

static int receive(struct pn_receiver *ear)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(ear->fds))];
	} control;
	struct iovec into = { ear->buffer, ear->size };
	struct msghdr message = {
		.msg_iov = &into,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t length = recvmsg(ear->sock, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (length < 0 && (errno == EAGAIN || errno == EINTR))
		return PN_HEARD_NOTHING;
	if (length < 0 && errno != ECONNRESET && errno != EPIPE)
		return -errno;
	if (length <= 0)
		return PN_HEARD_END;
	take_descriptors(ear, &message);
	ear->length = (size_t)length;
	return message.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? PN_HEARD_TOO_MUCH : PN_HEARD_MESSAGE;
}

/* Whether the message is one that needs no thought. */
static bool is_answered(const struct pn_receiver *ear)
{
	for (size_t i = 0; !ear->n_fds && i < ear->n_quiet; i++) {
		const struct pn_words *quiet = &ear->quiet[i];

		if (quiet->length == ear->length && !memcmp(quiet->at, ear->buffer, ear->length))
			return send(ear->sock, ear->yes.at, ear->yes.length, MSG_NOSIGNAL) >= 0;
	}
	return false;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static int hear(struct pn_receiver *ear, int milliseconds, bool *woken)
{
	/* poll() skips a negative descriptor. */
	struct pollfd asked[] = {
		{ .fd = ear->sock, .events = POLLIN },
		{ .fd = ear->wake, .events = POLLIN },
		{ .fd = ear->pidfd, .events = POLLIN },
	};
	int ready = poll(asked, sizeof(asked) / sizeof(*asked), milliseconds);
	uint64_t count;

	ear->length = ear->n_fds = 0;
	if (ready < 0 && errno != EINTR)
		return -errno;
	if (ready == 0)
		return PN_HEARD_TIMEOUT;
	/* A wait that was cut off is no reason not to look: so begins the life of a restored process
	 * that had dumped itself, with CRIU's word lying there and CRIU gone. */
	*woken = ready > 0 && asked[1].revents;
	if (*woken && read(ear->wake, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	return receive(ear);
}

int pn_receive(struct pn_receiver *ear, int milliseconds)
{
	int64_t until = milliseconds < 0 ? INT64_MAX : now() + milliseconds;
	bool woken = false;

	for (;;) {
		int heard = hear(ear, milliseconds, &woken);
		int64_t left = until - now();

		/* What the caller has said may change the answer, and so may the deadline. */
		if (heard != PN_HEARD_MESSAGE || woken || left <= 0 || !is_answered(ear))
			return heard;
		if (milliseconds >= 0)
			milliseconds = (int)left;
	}
}
