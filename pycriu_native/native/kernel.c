/*
 * System calls that Python 3.11 has no function for, or a slow one.
 */
#define _GNU_SOURCE
#include <errno.h>
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

void pn_block_signals(void)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, NULL);
}
