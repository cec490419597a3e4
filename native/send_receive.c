/*
 * One of libcriu's verbs, against a socket in which its answer lies already (_wire/libcriu_request.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "descriptors.h"
#include "libcriu_types.h"
#include "libcriu.h"
#include "pycriu_native.h"

#pragma weak criu_local_set_service_fd
#pragma weak criu_local_feature_check

#define FITS_ANYWAY 2048  /* bytes: the least buffer that the kernel gives is twice that */
#define LARGEST (4 << 20) /* all but the last 64 KiB of a message must be one piece of memory */
#define BESIDES 256	  /* bytes of a buffer that no message gets */

static bool has_room(struct pn_exchange *talk, int end)
{
	socklen_t length = sizeof(talk->room);

	if (talk->size <= FITS_ANYWAY)
		return true;
	widen(end);
	if (getsockopt(end, SOL_SOCKET, SO_SNDBUF, &talk->room, &length))
		talk->room = FITS_ANYWAY;
	talk->room -= BESIDES;
	if (talk->room > LARGEST)
		talk->room = LARGEST;
	return talk->size <= (size_t)talk->room;
}

int pn_run_verb(criu_opts *opts, int (*verb)(criu_opts *), struct pn_exchange *talk)
{
	int ends[2], error = 0;
	ssize_t said;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		return -errno;
	ends[0] = above_stdio(ends[0]);
	ends[1] = above_stdio(ends[1]);
	if (ends[0] < 0 || ends[1] < 0 || send(ends[0], talk->answer, talk->n_answer, MSG_NOSIGNAL) < 0)
		error = -errno;
	else if (!has_room(talk, ends[1]))
		error = -E2BIG;
	if (error) {
		close(ends[0]);
		close(ends[1]);
		return error;
	}
	criu_local_set_service_fd(opts, ends[1]); /* which closes it */
	talk->result = verb(opts);
	said = recv(ends[0], talk->said, talk->size, MSG_DONTWAIT);
	talk->n_said = said < 0 ? 0 : (size_t)said; /* none, where it had no memory for one */
	close(ends[0]);
	return 0;
}

int pn_request_features(criu_opts *opts)
{
	struct criu_feature_check all = { true, true, true, true };

	return criu_local_feature_check(opts, &all, pn_features_size());
}
