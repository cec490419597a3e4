/*
 * CRIU's feature cache, shared by the workers of one fork server.
 *
 * CRIU probes the kernel before each dump and restore, unless it finds the result in /run/criu.kdat. It
 * writes this file only on a tmpfs (criu/kerndat.c, 3.17 to 4.3). If CRIU can write none in /run, it gets a
 * memfd instead, which is on a tmpfs. The content is kept in memory that the workers of the fork server
 * share: they run the same program and have inherited the same state. A file in /run takes precedence.
 *
 * Loaded as part of forkserver.c, with the same restrictions. Each worker that writes has a slot of its
 * own: the atomic operations of a lock need libgcc on some architectures.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <fcntl.h>
#include <linux/magic.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/vfs.h>

#include "feature_cache.h"

#undef open64

#define RUN	  "/run"
#define CACHE	  RUN "/criu.kdat"
#define NEW_CACHE CACHE ".tmp"

#define SLOTS	  64
#define SLOT_SIZE 8192 /* the cache of 4.2 has less than 1 KiB */

extern long syscall(long number, ...);

static struct shared {
	int filled; /* the slot to read, from 1; 0: none */
	long lengths[SLOTS];
	char slots[SLOTS][SLOT_SIZE];
} *shared;

static int worker;	  /* the slot of this worker, from 0 */
static int written = -1; /* a duplicate of the memfd that CRIU writes */

void pn_share_feature_cache(void)
{
	void *memory;

	if (shared || sizeof(void *) < 8) {
		worker++;
		return;
	}
	memory = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory != MAP_FAILED)
		shared = memory;
}

static int is_same(const char *text, const char *other)
{
	while (*text && *text == *other)
		text++, other++;
	return *text == *other;
}

static int run_is_tmpfs(void)
{
	struct statfs status;

	return !syscall(SYS_statfs, RUN, &status) && status.f_type == TMPFS_MAGIC;
}

static int open_new(void)
{
	int fd = (int)syscall(SYS_memfd_create, "criu.kdat", MFD_CLOEXEC);

	if (written >= 0)
		syscall(SYS_close, written);
	written = fd < 0 ? -1 : (int)syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0);
	return fd;
}

static int open_filled(int slot)
{
	int fd = (int)syscall(SYS_memfd_create, "criu.kdat", MFD_CLOEXEC);

	if (fd >= 0) {
		syscall(SYS_write, fd, shared->slots[slot], shared->lengths[slot]);
		syscall(SYS_lseek, fd, 0L, 0 /* SEEK_SET */);
	}
	return fd;
}

static void keep_written(void)
{
	long length = 0;

	if (worker < SLOTS && !shared->lengths[worker]) /* others may read a slot that is filled */
		length = syscall(SYS_pread64, written, shared->slots[worker], SLOT_SIZE, 0L);
	if (length > 0 && length < SLOT_SIZE) {
		shared->lengths[worker] = length;
		__atomic_store_n(&shared->filled, worker + 1, __ATOMIC_RELEASE);
	}
	syscall(SYS_close, written);
	written = -1;
}

/* Replaces the C library's function in CRIU. */
int open64(const char *path, int flags, ...)
{
	const int is_new = shared && is_same(path, NEW_CACHE), is_cache = shared && is_same(path, CACHE);
	unsigned int mode = 0;
	int fd = -1, slot;

	if (flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE) {
		va_list more;

		va_start(more, flags);
		mode = va_arg(more, unsigned int);
		va_end(more);
	}
	if (!is_new || run_is_tmpfs())
		fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode);
	if (fd >= 0)
		return fd;
	if (is_new)
		return open_new();
	slot = is_cache ? __atomic_load_n(&shared->filled, __ATOMIC_ACQUIRE) : 0;
	return slot ? open_filled(slot - 1) : fd;
}

/* Replaces the C library's function in CRIU. */
int rename(const char *from, const char *to)
{
	if (written < 0 || !is_same(from, NEW_CACHE))
		return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
	keep_written();
	return 0;
}
