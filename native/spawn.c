/*
 * A CRIU worker, started without copying the caller's page tables.
 *
 * fork() costs in proportion to the embedder's memory; posix_spawn() does not, but gives
 * no pidfd on the C libraries we support, cannot close what it was not told of, and cannot
 * start a process that is nobody's child. So this does what posix_spawn does inside:
 * clone() with CLONE_VM | CLONE_VFORK. The child borrows our memory until it has exec'd:
 * it may only make system calls, and it reports an error by writing to our stack.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

#ifndef SYS_close_range
#define SYS_close_range 436
#endif

#define STACK_SIZE     (64 * 1024)
#define LAST_SIGNAL    64
#define SIGNAL_SET_SIZE 8 /* of the kernel's sigset_t */
#define CLOEXEC_RANGE  4 /* CLOSE_RANGE_CLOEXEC, which older C libraries do not name */
#define WAIT_BY_PIDFD  3 /* P_PIDFD, which older C libraries do not name */
#define HIGHEST_FD     65536

/* What runs in the child leaves by exec or _exit, never by return: an address sanitizer would
 * leave its marks of these frames behind, on memory that is somebody else's by then. */
#define IN_CHILD static __attribute__((no_sanitize_address))

struct spawning {
	struct pn_worker *worker;
	char *stack; /* of the worker, when the child is the one in between */
	int error;
};

/* A Ctrl-C that reached us both before the worker had its own process group is not for it:
 * ignoring a signal drops what is pending. */
IN_CHILD void reset_signals(const struct pn_worker *worker)
{
	static const int from_terminal[] = { SIGINT, SIGQUIT, SIGTSTP, SIGHUP, SIGTERM };
	static const int to_end[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	static const unsigned long by_default[8];
	struct sigaction action = { .sa_handler = SIG_IGN };
	sigset_t blocked;

	for (size_t i = 0; i < sizeof(from_terminal) / sizeof(*from_terminal); i++)
		sigaction(from_terminal[i], &action, NULL);
	/* The system call itself: the C library's function refuses 32 and 33, its own, which a
	 * careless ancestor can have ignored as well. All zero is SIG_DFL. */
	for (int number = 1; number <= LAST_SIGNAL; number++)
		syscall(SYS_rt_sigaction, number, by_default, NULL, SIGNAL_SET_SIZE);
	if (worker->limited)
		sigaction(SIGXFSZ, &action, NULL);
	sigemptyset(&blocked);
	for (size_t i = 0; worker->steady && i < sizeof(to_end) / sizeof(*to_end); i++)
		sigaddset(&blocked, to_end[i]);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
}

/* CRIU holds a descriptor for many of the target's at once, and writes images as large as its
 * memory. It raises its own limit of descriptors only where it may raise the hard one too. */
IN_CHILD void raise_limits(void)
{
	static const int raised[] = { RLIMIT_NOFILE, RLIMIT_FSIZE };
	struct rlimit limit;

	for (size_t i = 0; i < sizeof(raised) / sizeof(*raised); i++) {
		if (getrlimit(raised[i], &limit))
			continue;
		limit.rlim_cur = limit.rlim_max;
		setrlimit(raised[i], &limit);
	}
}

IN_CHILD int set_descriptors(const struct pn_worker *worker)
{
	int input = worker->input;

	if (input < 0)
		input = open("/dev/null", O_RDONLY);
	if (input < 0)
		return -1;
	if (input == 0 ? fcntl(0, F_SETFD, 0) : dup2(input, 0))
		return -1;
	if (dup2(worker->output, 1) < 0 || dup2(worker->output, 2) < 0)
		return -1;
	if (syscall(SYS_close_range, 3U, ~0U, CLOEXEC_RANGE))
		for (int fd = 3; fd < HIGHEST_FD; fd++)
			fcntl(fd, F_SETFD, FD_CLOEXEC);
	for (size_t i = 0; i < worker->n_keep; i++)
		if (fcntl(worker->keep[i], F_SETFD, 0))
			return -1;
	return 0;
}

IN_CHILD int become_worker(void *argument)
{
	struct spawning *spawning = argument;
	struct pn_worker *worker = spawning->worker;

	/* A Ctrl-C in the terminal goes to the foreground group, which must not be the worker's.
	 * One that dumps our own session must not be in that either: it would keep its number
	 * taken after the end of the dumped. */
	if (worker->outside)
		setsid();
	else
		setpgid(0, 0);
	/* PR_SET_PDEATHSIG would not reach what the worker has forked. */
	for (size_t i = 0; i < worker->n_bound_to; i++)
		if (fcntl(worker->bound_to[i], F_SETOWN, -getpid()) ||
		    fcntl(worker->bound_to[i], F_SETSIG, SIGKILL) ||
		    fcntl(worker->bound_to[i], F_SETFL, O_RDWR | O_ASYNC))
			goto failed;
	if (worker->private_files)
		umask(077);
	reset_signals(worker);
	raise_limits();
	if (!set_descriptors(worker))
		execve(worker->program, worker->argv, worker->envp);
failed:
	spawning->error = errno;
	_exit(127);
}

IN_CHILD int start(int (*body)(void *), struct spawning *spawning, char *stack, int flags)
{
	return clone(body, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | flags, spawning,
		     &spawning->worker->pidfd);
}

/* Starts the worker and exits, which makes it a child of the system's reaper. */
IN_CHILD int start_and_exit(void *argument)
{
	struct spawning *spawning = argument;

	spawning->worker->pid = start(become_worker, spawning, spawning->stack, SIGCHLD);
	if (spawning->worker->pid < 0)
		spawning->error = errno;
	_exit(0);
}

static void start_outside(struct spawning *spawning, char *stack)
{
	/* No exit signal: neither the embedder's SIGCHLD handler nor its wait() sees this one.
	 * Shared descriptors: the worker's pidfd is to be ours. */
	int between = clone(start_and_exit, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES, spawning);

	if (between < 0) {
		spawning->error = errno;
		return;
	}
	while (waitpid(between, NULL, __WCLONE) < 0 && errno == EINTR)
		;
}

int pn_spawn(struct pn_worker *worker)
{
	struct spawning spawning = { .worker = worker };
	sigset_t all, before;
	char *stacks = mmap(NULL, 2 * STACK_SIZE, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE, -1, 0);

	if (stacks == MAP_FAILED)
		return -errno;
	spawning.stack = stacks + STACK_SIZE;
	worker->pid = -1;
	worker->pidfd = -1;

	/* A handler of the embedder's must not run in a child that shares its memory. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (worker->outside) {
		start_outside(&spawning, stacks);
	} else {
		worker->pid = start(become_worker, &spawning, stacks,
				    SIGCHLD | worker->namespaces);
		if (worker->pid < 0)
			spawning.error = errno;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	munmap(stacks, 2 * STACK_SIZE);

	if (!spawning.error)
		return 0;
	if (worker->pidfd >= 0) {
		waitid(WAIT_BY_PIDFD, worker->pidfd, NULL, WEXITED);
		close(worker->pidfd);
		worker->pidfd = -1;
	}
	return -spawning.error;
}
