/*
 * Starts a CRIU worker without copying the caller's page tables.
 *
 * The cost of fork() grows with the caller's memory. posix_spawn() avoids that, but returns no pidfd
 * with the supported C libraries, cannot close all other descriptors, and cannot start a process
 * that is not a child of the caller. This file therefore calls clone() with CLONE_VM | CLONE_VFORK,
 * as posix_spawn() does internally. The child shares the caller's memory until execve(): it makes
 * only system calls, and reports an error by writing to the parent's stack.
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

/* Functions of the child end in execve() or _exit() and do not return. The address sanitizer would
 * not remove the marks of their stack frames, and the stack is unmapped and reused afterwards. */
#define IN_CHILD static __attribute__((no_sanitize_address))

struct spawning {
	struct pn_worker *worker;
	char *stack; /* of the worker, if an intermediate process starts it */
	int error;
};

/* A Ctrl-C before the worker has its own process group reaches the worker too. Ignoring a signal
 * discards a pending one. */
IN_CHILD void reset_signals(const struct pn_worker *worker)
{
	static const int from_terminal[] = { SIGINT, SIGQUIT, SIGTSTP, SIGHUP, SIGTERM };
	static const int terminating[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM };
	static const unsigned long default_action[8];
	struct sigaction action = { .sa_handler = SIG_IGN };
	sigset_t blocked;

	for (size_t i = 0; i < sizeof(from_terminal) / sizeof(*from_terminal); i++)
		sigaction(from_terminal[i], &action, NULL);
	/* The system call, because sigaction() refuses the C library's own signals, 32 and 33, which
	 * an ancestor can have ignored as well. All zero is SIG_DFL. */
	for (int number = 1; number <= LAST_SIGNAL; number++)
		syscall(SYS_rt_sigaction, number, default_action, NULL, SIGNAL_SET_SIZE);
	if (worker->ignore_sigxfsz)
		sigaction(SIGXFSZ, &action, NULL);
	sigemptyset(&blocked);
	for (size_t i = 0; worker->block_signals && i < sizeof(terminating) / sizeof(*terminating); i++)
		sigaddset(&blocked, terminating[i]);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
}

/* CRIU opens a descriptor for many of the target's at once, and writes images as large as the
 * target's memory. It raises its RLIMIT_NOFILE only if it may raise the hard limit too. */
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

	/* A Ctrl-C in the terminal is sent to the foreground process group, which must not contain the
	 * worker. A worker that dumps the caller's session must not be a member of it: the session
	 * id would stay in use after the end of the dumped processes. */
	if (worker->detached)
		setsid();
	else
		setpgid(0, 0);
	if (worker->private_files)
		umask(077);
	reset_signals(worker);
	raise_limits();
	if (!set_descriptors(worker))
		execve(worker->program, worker->argv, worker->envp);
	spawning->error = errno;
	_exit(127);
}

IN_CHILD int start(int (*body)(void *), struct spawning *spawning, char *stack, int flags)
{
	return clone(body, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | flags, spawning,
		     &spawning->worker->pidfd);
}

/* Starts the worker and exits, which makes the worker a child of init or of a subreaper. */
IN_CHILD int start_and_exit(void *argument)
{
	struct spawning *spawning = argument;

	spawning->worker->pid = start(become_worker, spawning, spawning->stack, SIGCHLD);
	if (spawning->worker->pid < 0)
		spawning->error = errno;
	_exit(0);
}

static void start_detached(struct spawning *spawning, char *stack)
{
	/* Without an exit signal: the application's SIGCHLD handler and wait() do not see this child.
	 * CLONE_FILES: the worker's pidfd becomes a descriptor of the caller. */
	int intermediate = clone(start_and_exit, stack + STACK_SIZE, CLONE_VM | CLONE_VFORK | CLONE_FILES, spawning);

	if (intermediate < 0) {
		spawning->error = errno;
		return;
	}
	while (waitpid(intermediate, NULL, __WCLONE) < 0 && errno == EINTR)
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

	/* A signal handler of the application must not run in a child that shares its memory. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (worker->detached) {
		start_detached(&spawning, stacks);
	} else {
		worker->pid = start(become_worker, &spawning, stacks,
				    SIGCHLD | worker->namespaces);
		if (worker->pid < 0)
			spawning.error = errno;
	}
	if (spawning.error && worker->pidfd >= 0) {
		waitid(WAIT_BY_PIDFD, worker->pidfd, NULL, WEXITED); /* no signal interrupts it */
		close(worker->pidfd);
		worker->pidfd = -1;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	munmap(stacks, 2 * STACK_SIZE);
	return -spawning.error;
}
