/*
 * A CRIU that has been loaded, and forks workers: one for each request.
 *
 * Loading CRIU and its libraries is most of what starting a worker costs. This is preloaded into
 * a ``criu swrk FD`` whose FD is a socket of ours (_transport/forkserver.py). Its constructor runs
 * once the libraries are loaded, before main(). With each request come a worker's socket, its
 * output, and the descriptors that it inherits. The fork puts these in their places, as a sibling
 * of the fork server (CLONE_PARENT), and returns, so that main() begins: it is a fresh worker in
 * every respect, but for what the loader did. In any other program than a worker, such as a shell
 * script that starts CRIU, nothing happens.
 *
 * A fork server may hold a template: the memory of a dumped program, in anonymous memory of its
 * own (snapshots/template.py). Its workers inherit it, copy-on-write. Where CRIU maps a mapping
 * whose offset is a place in the template, that part of the template is moved there.
 *
 * It runs on CRIU's C library, which need not be ours: nothing is taken from that but syscall(),
 * environ, and memcpy(), which compilers call. So it has no errno, and allocates no memory.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h> /* <sys/mman.h> declares mmap64, which some C libraries make a macro */
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "forkserver.h"

#define FAILED ((void *)-1L)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

extern long syscall(long number, ...);
extern char **environ;

static int begins_with(const char *text, const char *with)
{
	while (*with)
		if (*text++ != *with++)
			return 0;
	return 1;
}

/* CRIU runs programs, which are not to load this. */
static void forget_preload(void)
{
	char **to = environ;

	for (char **from = environ; *from; from++)
		if (!begins_with(*from, "LD_PRELOAD="))
			*to++ = *from;
	*to = NULL;
}

/* The FD of ``criu swrk FD``; -1: this is another program. */
static int fd_of_worker(void)
{
	char words[4096];
	int file = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/cmdline", O_RDONLY | O_CLOEXEC);
	long length = file < 0 ? -1 : syscall(SYS_read, file, words, sizeof(words) - 1);
	long at = 0;
	int fd = 0;

	if (file >= 0)
		syscall(SYS_close, file);
	if (length < 0)
		return -1;
	words[length] = '\0';
	while (at < length && words[at])
		at++;
	if (++at >= length || !begins_with(words + at, "swrk") || words[at + 4])
		return -1;
	at += 5;
	if (at >= length || !words[at])
		return -1;
	for (; words[at]; at++) {
		if (words[at] < '0' || words[at] > '9' || fd > 1 << 20)
			return -1;
		fd = fd * 10 + words[at] - '0';
	}
	return fd;
}

/* ---- requests ---- */

struct received {
	struct pn_fork_request request;
	int fds[PN_FORK_FDS];
	int n_fds;
};

/* The next request; 0: the other end of the socket is closed, or what came is no request. */
static int next(int line, struct received *received)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(PN_FORK_FDS * sizeof(int))];
	} control;
	struct iovec into = { &received->request, sizeof(received->request) };
	struct msghdr message = {
		.msg_iov = &into,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (syscall(SYS_recvmsg, line, &message, MSG_CMSG_CLOEXEC) != sizeof(received->request))
		return 0;
	if (message.msg_controllen < sizeof(control.head) || control.head.cmsg_len < CMSG_LEN(0))
		return 0;
	received->n_fds = (control.head.cmsg_len - CMSG_LEN(0)) / sizeof(int);
	for (int i = 0; i < received->n_fds; i++)
		received->fds[i] = ((const int *)CMSG_DATA(&control.head))[i];
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

static void put(int fd, int number)
{
	if (syscall(SYS_dup3, fd, number, 0) < 0)
		syscall(SYS_exit_group, 127);
}

/* Has main() read another number. The words of the command line end before the environment. */
static void change_fd_of_worker(int fd)
{
	static char word[12];
	char *at = word + sizeof(word) - 1;

	do
		*--at = '0' + fd % 10;
	while (fd /= 10);
	environ[-2] = at;
}

/* Every descriptor to the number that it has in the caller, which another one, or the fork
 * server's own socket, may have here. */
static void put_inherited(int line, struct received *received)
{
	const int n = received->n_fds - PN_FORK_OWN, *numbers = received->request.numbers;
	int highest = line, line_is_taken = 0;

	for (int i = 0; i < n; i++) {
		highest = numbers[i] > highest ? numbers[i] : highest;
		line_is_taken |= numbers[i] == line;
	}
	for (int i = 0; i < received->n_fds; i++) {
		int moved = (int)syscall(SYS_fcntl, received->fds[i], F_DUPFD_CLOEXEC, highest + 1);

		if (moved < 0)
			syscall(SYS_exit_group, 127);
		syscall(SYS_close, received->fds[i]);
		received->fds[i] = moved;
	}
	if (line_is_taken) {
		int moved = (int)syscall(SYS_fcntl, received->fds[PN_FORK_SOCKET], F_DUPFD, highest + 1);

		if (moved < 0)
			syscall(SYS_exit_group, 127);
		change_fd_of_worker(moved);
	}
	for (int i = 0; i < n; i++)
		put(received->fds[PN_FORK_OWN + i], numbers[i]);
	if (!line_is_taken)
		put(received->fds[PN_FORK_SOCKET], line);
}

/* In the worker. A Ctrl-C in the terminal goes to the foreground group, which it must leave. */
static void take_place(int line, struct received *received)
{
	syscall(SYS_setpgid, 0, 0);
	if (received->n_fds > PN_FORK_OWN)
		put_inherited(line, received);
	else
		put(received->fds[PN_FORK_SOCKET], line);
	put(received->fds[PN_FORK_OUTPUT], 1);
	put(received->fds[PN_FORK_OUTPUT], 2);
}

/* ---- the template ---- */

static struct {
	char *base;
	struct pn_template head;
} template;

/* As the C library's: -1 is in errno there. Some kernels take the arguments in memory. */
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

/* Huge pages, for so much of a range as they can hold. Kernels before 6.1 cannot. */
static void collapse(uint64_t from, uint64_t to)
{
	from = (from + PN_HUGE_PAGE - 1) & ~(PN_HUGE_PAGE - 1);
	to &= ~(PN_HUGE_PAGE - 1);
	if (from < to)
		syscall(SYS_madvise, template.base + from, to - from, MADV_COLLAPSE);
}

static long map_regions(const struct pn_template_region *regions)
{
	const uint64_t count = template.head.n_regions;
	char *at = map(NULL, template.head.size + PN_HUGE_PAGE, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (at == FAILED)
		return -ENOMEM;
	at = (char *)(((uintptr_t)at + PN_HUGE_PAGE - 1) & ~(uintptr_t)(PN_HUGE_PAGE - 1));
	template.base = at;
	for (uint64_t i = 0; i < count;) {
		const uint64_t flags = regions[i].flags;
		uint64_t length = 0;

		/* One mapping as long as they are alike, for huge pages across their borders. */
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
		long n = syscall(SYS_pread64, fd, template.base + extent->place + done, extent->length - done,
				 extent->from + done);

		if (n <= 0)
			return n < 0 ? -EIO : -ENODATA;
		done += n;
	}
	return 0;
}

/* 0, or a negative errno. The first descriptor is that of the table, the others of the pages. */
static long load_template(const struct received *received)
{
	const struct pn_template *head;
	const struct pn_template_region *regions;
	const struct pn_template_extent *extents;
	uint64_t from = 0, to = 0;
	long status;

	if (sizeof(void *) < 8)
		return -ENOSYS;
	if (template.base || received->n_fds < 2)
		return -EINVAL;
	head = map(NULL, received->request.table_size, PROT_READ, MAP_PRIVATE, received->fds[0], 0);
	if (head == FAILED)
		return -ENOMEM;
	template.head = *head;
	regions = (const void *)(head + 1);
	extents = (const void *)(regions + head->n_regions);
	status = map_regions(regions);
	for (uint64_t i = 0; !status && i < head->n_extents; i++) {
		status = read_extent(received->fds[1 + extents[i].file], &extents[i]);
		if (extents[i].place != to) {
			collapse(from, to);
			from = extents[i].place;
		}
		to = extents[i].place + extents[i].length;
	}
	collapse(from, to);
	syscall(SYS_munmap, head, received->request.table_size);
	return status;
}

/*
 * In place of the C library's, for CRIU. A marked offset is none of a page, so that the kernel
 * refuses whatever is not moved from the template: memory is never silently empty.
 */
void *mmap64(void *address, size_t length, int prot, int flags, int fd, int64_t offset)
{
	const uint64_t place = offset & PN_TEMPLATE_PLACE, tag = offset & ~PN_TEMPLATE_PLACE;

	if (!template.base || tag != template.head.tag || !(flags & MAP_FIXED) ||
	    place > template.head.size || length > template.head.size - place)
		return map(address, length, prot, flags, fd, offset);
	if (syscall(SYS_mremap, template.base + place, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
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

static void send_answer(int line, long answer)
{
	if (syscall(SYS_sendto, line, &answer, sizeof(answer), MSG_NOSIGNAL, NULL, 0) < 0)
		syscall(SYS_exit_group, 0);
}

__attribute__((constructor)) static void serve(void)
{
	static struct received received;
	int line = fd_of_worker();
	long answer = 0;

	if (line < 0)
		return;
	forget_preload();
	/* The first answer says that this is a fork server. */
	for (;;) {
		if (answer <= 0)
			send_answer(line, answer);
		if (!next(line, &received))
			syscall(SYS_exit_group, 0);
		if (received.n_fds != received.request.n_fds)
			answer = -EMFILE;
		else if (received.request.kind == PN_FORK_TEMPLATE)
			answer = load_template(&received);
		else if ((answer = fork_sibling()) == 0)
			break;
		close_all(&received);
	}
	/* The worker sends its own pid: the fork server may have been killed since the fork. */
	send_answer(line, syscall(SYS_getpid));
	take_place(line, &received);
	close_all(&received);
}
