/*
 * A fork server: a criu process with its libraries loaded that forks a worker for each request.
 *
 * Most of the time to start a worker is the loading of CRIU and its libraries. This library is
 * preloaded into a ``criu swrk FD`` whose FD is a socket of _transport/forkserver.py. Its constructor
 * runs after the libraries are loaded and before main(). Each request carries the socket of a worker,
 * its output, and the descriptors that it inherits. The forked process is a sibling of the fork server
 * (CLONE_PARENT): it moves these descriptors to their numbers and returns from the constructor, so
 * that main() runs as in a new worker. In a program that is not ``criu swrk``, such as a shell script
 * that starts CRIU, the constructor does nothing.
 *
 * A fork server can hold a template: the memory of a dumped program, in private anonymous memory
 * (snapshots/template.py). Its workers inherit it, copy-on-write. If CRIU maps a file at a marked
 * offset, the part of the template at that offset is moved to the mapping's address instead.
 *
 * It runs with CRIU's C library, which can differ from the one that it is compiled with. It uses only
 * syscall(), environ, and memcpy(), which compilers insert. It has no errno and allocates no memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h> /* not <sys/mman.h>: it declares mmap64, in some C libraries as a macro */
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "feature_cache.h"
#include "forkserver.h"

#define FAILED ((void *)-1L)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

extern long syscall(long number, ...);
extern char **environ;

static int starts_with(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

/* Programs that CRIU starts do not load this library. */
static void remove_preload(void)
{
	char **to = environ;

	for (char **from = environ; *from; from++)
		if (!starts_with(*from, "LD_PRELOAD="))
			*to++ = *from;
	*to = NULL;
}

/* The FD of ``criu swrk FD``; -1 in another program. */
static int swrk_descriptor(void)
{
	char arguments[4096];
	int file = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	long length = file < 0 ? -1 : syscall(SYS_read, file, arguments, sizeof(arguments) - 1);
	long at = 0;
	int fd = 0;

	if (file >= 0)
		syscall(SYS_close, file);
	if (length < 0)
		return -1;
	arguments[length] = '\0';
	while (at < length && arguments[at])
		at++;
	if (++at >= length || !starts_with(arguments + at, "swrk") || arguments[at + 4])
		return -1;
	at += 5;
	if (at >= length || !arguments[at])
		return -1;
	for (; arguments[at]; at++) {
		if (arguments[at] < '0' || arguments[at] > '9' || fd > 1 << 20)
			return -1;
		fd = fd * 10 + arguments[at] - '0';
	}
	return fd;
}

/* ---- requests ---- */

struct received {
	struct pn_fork_request request;
	int fds[PN_FORK_FDS];
	int n_fds;
};

/* Receives a request; 0: the other end of the socket is closed, or the message is not a request. */
static int receive_request(int sock, struct received *received)
{
	union {
		struct cmsghdr header;
		char bytes[CMSG_SPACE(PN_FORK_FDS * sizeof(int))];
	} control;
	struct iovec into = { &received->request, sizeof(received->request) };
	struct msghdr message = {
		.msg_iov = &into,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (syscall(SYS_recvmsg, sock, &message, MSG_CMSG_CLOEXEC) != sizeof(received->request))
		return 0;
	if (message.msg_controllen < sizeof(control.header) || control.header.cmsg_len < CMSG_LEN(0))
		return 0;
	received->n_fds = (control.header.cmsg_len - CMSG_LEN(0)) / sizeof(int);
	for (int i = 0; i < received->n_fds; i++)
		received->fds[i] = ((const int *)CMSG_DATA(&control.header))[i];
	return 1;
}

static void close_all(const struct received *received)
{
	for (int i = 0; i < received->n_fds; i++)
		syscall(SYS_close, received->fds[i]);
}

/* ---- workers ---- */

static long fork_sibling(void)
{
	unsigned long flags = CLONE_PARENT | SIGCHLD;

#ifdef __s390x__
	return syscall(SYS_clone, 0, flags, 0, 0, 0);
#else
	return syscall(SYS_clone, flags, 0, 0, 0, 0);
#endif
}

static void move_descriptor(int fd, int number)
{
	if (syscall(SYS_dup3, fd, number, 0) < 0)
		syscall(SYS_exit_group, 127);
}

/* Changes the FD that main() reads: in memory, the last argument, NULL and environ[0] are adjacent. */
static void set_swrk_descriptor(int fd)
{
	static char argument[12];
	char *at = argument + sizeof(argument) - 1;

	do
		*--at = '0' + fd % 10;
	while (fd /= 10);
	environ[-2] = at;
}

/* Moves each descriptor to the number that it has in the caller. Another descriptor, or the fork
 * server's socket, can have that number here. */
static void place_inherited(int sock, struct received *received)
{
	const int n = received->n_fds - PN_FORK_RESERVED, *numbers = received->request.numbers;
	int highest = sock, sock_number_is_inherited = 0;

	for (int i = 0; i < n; i++) {
		highest = numbers[i] > highest ? numbers[i] : highest;
		sock_number_is_inherited |= numbers[i] == sock;
	}
	for (int i = 0; i < received->n_fds; i++) {
		int moved = (int)syscall(SYS_fcntl, received->fds[i], F_DUPFD_CLOEXEC, highest + 1);

		if (moved < 0)
			syscall(SYS_exit_group, 127);
		syscall(SYS_close, received->fds[i]);
		received->fds[i] = moved;
	}
	if (sock_number_is_inherited) {
		int moved = (int)syscall(SYS_fcntl, received->fds[PN_FORK_SOCKET], F_DUPFD, highest + 1);

		if (moved < 0)
			syscall(SYS_exit_group, 127);
		set_swrk_descriptor(moved);
	}
	for (int i = 0; i < n; i++)
		move_descriptor(received->fds[PN_FORK_RESERVED + i], numbers[i]);
	if (!sock_number_is_inherited)
		move_descriptor(received->fds[PN_FORK_SOCKET], sock);
}

/* In the worker. It leaves the foreground process group, which receives a Ctrl-C of the terminal. */
static void become_worker(int sock, struct received *received)
{
	syscall(SYS_setpgid, 0, 0);
	if (received->n_fds > PN_FORK_RESERVED)
		place_inherited(sock, received);
	else
		move_descriptor(received->fds[PN_FORK_SOCKET], sock);
	move_descriptor(received->fds[PN_FORK_OUTPUT], 1);
	move_descriptor(received->fds[PN_FORK_OUTPUT], 2);
}

/* ---- the template ---- */

static struct {
	char *base;
	struct pn_template header;
} template;

/* mmap() without errno: FAILED on error. Some architectures pass the arguments in memory. */
static void *map(void *address, size_t length, int prot, int flags, int fd, int64_t offset)
{
#ifdef __s390x__
	unsigned long arguments[] = { (unsigned long)address, length, prot, flags, fd, offset };

	return (void *)syscall(SYS_mmap, arguments);
#elif defined(SYS_mmap)
	return (void *)syscall(SYS_mmap, address, length, prot, flags, (long)fd, (long)offset);
#else
	return offset >> 44 ? FAILED :
			      (void *)syscall(SYS_mmap2, address, length, prot, flags, fd, (long)(offset >> 12));
#endif
}

/* Collapses the aligned part of a range into huge pages; kernels before 6.1 do not support it. */
static void collapse(uint64_t from, uint64_t to)
{
	from = (from + PN_HUGE_PAGE - 1) & ~(PN_HUGE_PAGE - 1);
	to &= ~(PN_HUGE_PAGE - 1);
	if (from < to)
		syscall(SYS_madvise, template.base + from, to - from, MADV_COLLAPSE);
}

static long map_regions(const struct pn_template_region *regions)
{
	const uint64_t count = template.header.n_regions;
	char *at = map(NULL, template.header.size + PN_HUGE_PAGE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == FAILED)
		return -ENOMEM;
	at = (char *)(((uintptr_t)at + PN_HUGE_PAGE - 1) & ~(uintptr_t)(PN_HUGE_PAGE - 1));
	template.base = at;
	for (uint64_t i = 0; i < count;) {
		const uint64_t flags = regions[i].flags;
		uint64_t length = 0;

		/* One mapping for adjacent regions with the same flags: huge pages can span them. */
		for (; i < count && regions[i].flags == flags; i++)
			length += regions[i].length;
		if (map(at, length, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (int)flags, -1, 0) != at)
			return -ENOMEM;
		at += length;
	}
	return 0;
}

static long read_extent(int fd, const struct pn_template_extent *extent)
{
	for (uint64_t done = 0; done < extent->length;) {
		long n = syscall(SYS_pread64, fd, template.base + extent->template_offset + done, extent->length - done,
				 extent->file_offset + done);

		if (n <= 0)
			return n < 0 ? -EIO : -ENODATA;
		done += n;
	}
	return 0;
}

/* 0, or a negative errno. The first descriptor is the table, the others are the files of the pages. */
static long load_template(const struct received *received)
{
	const struct pn_template *header;
	const struct pn_template_region *regions;
	const struct pn_template_extent *extents;
	uint64_t from = 0, to = 0;
	long status;

	if (sizeof(void *) < 8)
		return -ENOSYS;
	if (template.base || received->n_fds < 2)
		return -EINVAL;
	header = map(NULL, received->request.table_size, PROT_READ, MAP_PRIVATE, received->fds[0], 0);
	if (header == FAILED)
		return -ENOMEM;
	template.header = *header;
	regions = (const void *)(header + 1);
	extents = (const void *)(regions + header->n_regions);
	status = map_regions(regions);
	for (uint64_t i = 0; !status && i < header->n_extents; i++) {
		status = read_extent(received->fds[1 + extents[i].file], &extents[i]);
		if (extents[i].template_offset != to) {
			collapse(from, to);
			from = extents[i].template_offset;
		}
		to = extents[i].template_offset + extents[i].length;
	}
	collapse(from, to);
	syscall(SYS_munmap, header, received->request.table_size);
	return status;
}

/*
 * Replaces the C library's function in CRIU. A marked offset is not page-aligned, so the kernel
 * refuses a mapping that is not moved from the template: memory is never silently empty.
 */
void *mmap64(void *address, size_t length, int prot, int flags, int fd, int64_t offset)
{
	const uint64_t offset_in_template = offset & PN_TEMPLATE_OFFSET, tag = offset & ~PN_TEMPLATE_OFFSET;

	if (!template.base || tag != template.header.tag || !(flags & MAP_FIXED) ||
	    offset_in_template > template.header.size || length > template.header.size - offset_in_template)
		return map(address, length, prot, flags, fd, offset);
	if (syscall(SYS_mremap, template.base + offset_in_template, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
		    address) < 0)
		return FAILED;
	if (prot != (PROT_READ | PROT_WRITE) && syscall(SYS_mprotect, address, length, prot))
		return FAILED;
	return address;
}

#if __SIZEOF_POINTER__ == 8
void *mmap(void *address, size_t length, int prot, int flags, int fd, int64_t offset)
	__attribute__((alias("mmap64")));
#endif

static void send_result(int sock, long result)
{
	if (syscall(SYS_sendto, sock, &result, sizeof(result), MSG_NOSIGNAL, NULL, 0) < 0)
		syscall(SYS_exit_group, 0);
}

__attribute__((constructor)) static void serve(void)
{
	static struct received received;
	int sock = swrk_descriptor();
	long result = 0;

	if (sock < 0)
		return;
	remove_preload();
	/* The first result says that the fork server is ready. */
	for (;;) {
		if (result <= 0)
			send_result(sock, result);
		if (!receive_request(sock, &received))
			syscall(SYS_exit_group, 0);
		if (received.n_fds != received.request.n_fds)
			result = -EMFILE;
		else if (received.request.kind == PN_FORK_TEMPLATE)
			result = load_template(&received);
		else {
			pn_share_feature_cache();
			if ((result = fork_sibling()) == 0)
				break;
		}
		close_all(&received);
	}
	/* The worker sends its own pid: the fork server may have been killed since the fork. */
	send_result(sock, syscall(SYS_getpid));
	become_worker(sock, &received);
	close_all(&received);
}
