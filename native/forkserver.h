/*
 * Requests to a fork server (forkserver.c), and the table of a template.
 */
#ifndef PN_FORKSERVER_H
#define PN_FORKSERVER_H

#include <stdint.h>

#define PN_FORK_FDS 253 /* as many as the kernel passes with one message: SCM_MAX_FD */

enum pn_fork_kind {
	PN_FORK_WORKER,	  /* the answer is its pid, from the worker, or a negative errno */
	PN_FORK_TEMPLATE  /* 0, or a negative errno */
};

/* The first descriptors of a request for a worker. */
enum pn_fork_fd {
	PN_FORK_SOCKET,
	PN_FORK_OUTPUT, /* of its standard output and error */
	PN_FORK_OWN	/* how many these are; those that it inherits follow */
};

struct pn_fork_request {
	int kind;
	int n_fds; /* descriptors with this message */
	uint64_t table_size;
	int numbers[PN_FORK_FDS - PN_FORK_OWN]; /* of what a worker inherits */
};

#define PN_HUGE_PAGE	  (2ULL << 20)
#define PN_TEMPLATE_MARK  (1ULL << 62)
#define PN_TEMPLATE_PLACE 0xfffffffff000ULL

/* The table: this, then the regions, then the extents. snapshots/template.py writes it. */
struct pn_template {
	uint64_t tag; /* the bits of a marked offset that are no place */
	uint64_t size;
	uint64_t n_regions, n_extents;
};

struct pn_template_region { /* each behind the one before */
	uint64_t length;
	uint64_t flags; /* MAP_NORESERVE or 0 */
};

struct pn_template_extent {
	uint64_t place, length; /* in the template */
	uint64_t file, from;	/* the descriptor, counted from the second; the offset in the file */
};

#endif
