/*
 * Requests to a fork server (forkserver.c), and the table of a template.
 */
#ifndef PN_FORKSERVER_H
#define PN_FORKSERVER_H

#include <stdint.h>

#define PN_FORK_FDS 253 /* the kernel's limit for one message: SCM_MAX_FD */

enum pn_fork_kind {
	PN_FORK_WORKER,	  /* result: its pid, sent by the worker, or a negative errno */
	PN_FORK_TEMPLATE  /* result: 0, or a negative errno */
};

/* The first descriptors of a request for a worker. */
enum pn_fork_fd {
	PN_FORK_SOCKET,
	PN_FORK_OUTPUT,	 /* its standard output and error */
	PN_FORK_RESERVED /* the number of these; the inherited descriptors follow */
};

struct pn_fork_request {
	int kind;
	int n_fds; /* descriptors sent with this message */
	uint64_t table_size;
	int numbers[PN_FORK_FDS - PN_FORK_RESERVED]; /* of the inherited descriptors, in the worker */
};

#define PN_HUGE_PAGE	  (2ULL << 20)
#define PN_TEMPLATE_MARK  (1ULL << 62)
#define PN_TEMPLATE_OFFSET 0xfffffffff000ULL

/* The table: this, then the regions, then the extents. snapshots/template.py writes it. */
struct pn_template {
	uint64_t tag; /* the bits of a marked file offset outside of PN_TEMPLATE_OFFSET */
	uint64_t size;
	uint64_t n_regions, n_extents;
};

struct pn_template_region { /* contiguous, in this order */
	uint64_t length;
	uint64_t flags; /* MAP_NORESERVE or 0 */
};

struct pn_template_extent {
	uint64_t template_offset, length;
	uint64_t file, file_offset; /* index of the descriptor, 0 for the second one; offset in the file */
};

#endif
