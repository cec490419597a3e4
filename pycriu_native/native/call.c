/*
 * One libcriu verb on a thread that no signal reaches.
 *
 * libcriu does not retry an interrupted recv(): a signal in mid-call makes a finished dump
 * look failed. The verb therefore runs on a thread with every signal blocked, while the
 * caller's thread stays free to be interrupted.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

#include <protobuf-c/protobuf-c.h>

#include "libcriu_types.h"
#include "libcriu.h"
#include "pycriu_native.h"

#define STACK_SIZE (256 * 1024)

extern const ProtobufCMessageDescriptor criu_features__descriptor;

struct pn_call {
	pthread_t thread;
	int verb;
	criu_opts *opts;
	struct criu_feature_check *features;
	int result;
};

/* A library refuses a structure larger than its own: 4.3 added a member. */
static size_t features_size(void)
{
	bool newest = protobuf_c_message_descriptor_get_field_by_name(&criu_features__descriptor, "mem_compression");

	return sizeof(struct criu_feature_check) - (newest ? 0 : sizeof(bool));
}

static int run(const struct pn_call *call)
{
	switch (call->verb) {
	case PN_DUMP:
		return criu_local_dump(call->opts);
	case PN_PRE_DUMP:
		return criu_local_pre_dump(call->opts);
	case PN_RESTORE:
		return criu_local_restore(call->opts);
	case PN_GET_VERSION:
		return criu_local_get_version(call->opts);
	case PN_FEATURE_CHECK:
		return criu_local_feature_check(call->opts, call->features, features_size());
	default:
		return -EINVAL;
	}
}

static void *body(void *argument)
{
	struct pn_call *call = argument;

	call->result = run(call);
	return NULL;
}

struct pn_call *pn_call_start(int verb, criu_opts *opts, struct criu_feature_check *features)
{
	struct pn_call *call = calloc(1, sizeof(*call));
	pthread_attr_t attributes;
	sigset_t all, before;
	int error;

	if (!call)
		return NULL;
	call->verb = verb;
	call->opts = opts;
	call->features = features;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_SIZE);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before); /* the new thread inherits it */
	error = pthread_create(&call->thread, &attributes, body, call);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	if (error) {
		free(call);
		errno = error;
		return NULL;
	}
	return call;
}

int pn_call_join(struct pn_call *call)
{
	int result;

	pthread_join(call->thread, NULL);
	result = call->result;
	free(call);
	return result;
}

uint64_t pn_block_signals(void)
{
	sigset_t all, before;
	uint64_t blocked = 0;

	sigfillset(&all);
	sigemptyset(&before);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (int number = 1; number <= 64; number++)
		if (sigismember(&before, number) == 1)
			blocked |= UINT64_C(1) << (number - 1);
	return blocked;
}

void pn_set_signals(uint64_t blocked)
{
	sigset_t set;

	sigemptyset(&set);
	for (int number = 1; number <= 64; number++)
		if (blocked >> (number - 1) & 1)
			sigaddset(&set, number);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}
