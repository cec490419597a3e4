/*
 * Calls one of libcriu's verbs on a socket that already holds a response, so that the verb returns
 * at once; its request is read from the socket afterwards (_wire/requests.py).
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

#define ALWAYS_FITS	2048	  /* bytes: half of the kernel's smallest buffer */
#define MAX_MESSAGE	(4 << 20) /* the kernel allocates most of a message in one piece */
#define BUFFER_OVERHEAD 256	  /* bytes of a buffer that are not available to a message */

static bool request_fits(struct pn_exchange *exchange, int sock)
{
	socklen_t length = sizeof(exchange->max_size);

	if (exchange->request_capacity <= ALWAYS_FITS)
		return true;
	enlarge_send_buffer(sock);
	if (getsockopt(sock, SOL_SOCKET, SO_SNDBUF, &exchange->max_size, &length))
		exchange->max_size = ALWAYS_FITS;
	exchange->max_size -= BUFFER_OVERHEAD;
	if (exchange->max_size > MAX_MESSAGE)
		exchange->max_size = MAX_MESSAGE;
	return exchange->request_capacity <= (size_t)exchange->max_size;
}

int pn_run_verb(criu_opts *opts, int (*verb)(criu_opts *), struct pn_exchange *exchange)
{
	int pair[2], error = connected_pair(SOCK_SEQPACKET, pair);
	ssize_t length;

	if (error)
		return error;
	if (send(pair[0], exchange->response, exchange->n_response, MSG_NOSIGNAL) < 0)
		error = -errno;
	else if (!request_fits(exchange, pair[1]))
		error = -E2BIG;
	if (error) {
		close(pair[0]);
		close(pair[1]);
		return error;
	}
	criu_local_set_service_fd(opts, pair[1]); /* the verb closes it */
	exchange->result = verb(opts);
	length = recv(pair[0], exchange->request, exchange->request_capacity, MSG_DONTWAIT);
	exchange->n_request = length < 0 ? 0 : (size_t)length; /* libcriu sends none if it has no memory */
	close(pair[0]);
	return 0;
}

int pn_feature_check(criu_opts *opts)
{
	struct criu_feature_check all = { true, true, true, true };

	return criu_local_feature_check(opts, &all, pn_features_size());
}
