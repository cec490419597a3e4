/*
 * System calls that Python 3.11 has no function for, or a slow one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

/* The calling thread alone. */
int pn_enter_network(int fd)
{
	return setns(fd, CLONE_NEWNET) ? -errno : 0;
}

/* Close-on-exec, as the kernel makes it. */
int pn_fd_of(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
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

static ssize_t read_whole(const char *path, char *buffer, size_t size)
{
	size_t length = 0;
	ssize_t more;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	while ((more = read(fd, buffer + length, size - length)) > 0)
		length += (size_t)more;
	if (more < 0)
		more = -errno;
	close(fd);
	return more < 0 ? more : (ssize_t)length;
}

int pn_read_files(char *const *paths, size_t n_links, size_t count, char *buffer, size_t size, int *lengths)
{
	for (size_t i = 0; i < count; i++) {
		ssize_t length = i < n_links ? readlink(paths[i], buffer, size) : read_whole(paths[i], buffer, size);

		if (i < n_links && length < 0)
			length = -errno;
		if (length > 0 && (size_t)length == size)
			return -ENOBUFS;
		lengths[i] = (int)length;
		if (length > 0) {
			buffer += length;
			size -= (size_t)length;
		}
	}
	return 0;
}
