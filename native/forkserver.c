/*
 * A CRIU that has been loaded, and grows workers: it forks one for each byte that it is sent.
 *
 * Loading CRIU and its libraries is most of what starting a worker costs. This is preloaded into
 * a ``criu swrk FD`` whose FD leads to us (_transport/forkserver.py), and takes over once the libraries are there,
 * before main(): with each byte come a worker's socket and its output. The fork puts these in
 * their places, as a child of ours and not of the seed's (CLONE_PARENT), and only then begins
 * main(): it is a fresh worker in every respect, but for what the loader did. Any other program
 * than a worker, such as a shell script that starts CRIU, is left alone.
 *
 * It runs on CRIU's C library, which need not be ours: nothing is taken from that but syscall()
 * and environ. So it has no errno, and no memory of its own.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define SOCK 0
#define OUTPUT 1
#define GIVEN 2

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

/* Both descriptors of the next worker; 0: whoever asked for workers is gone. */
static int next(int line, int given[GIVEN])
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(GIVEN * sizeof(int))];
	} control;
	char byte;
	struct iovec into = { &byte, 1 };
	struct msghdr message = {
		.msg_iov = &into,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	if (syscall(SYS_recvmsg, line, &message, MSG_CMSG_CLOEXEC) != 1)
		return 0;
	if (message.msg_controllen < sizeof(control.head) ||
	    control.head.cmsg_len != CMSG_LEN(GIVEN * sizeof(int)))
		return 0;
	for (int i = 0; i < GIVEN; i++)
		given[i] = ((const int *)CMSG_DATA(&control.head))[i];
	return 1;
}

static long fork_beside(void)
{
	unsigned long flags = CLONE_PARENT | SIGCHLD;

#ifdef __s390x__
	return syscall(SYS_clone, 0, flags, 0, 0, 0);
#else
	return syscall(SYS_clone, flags, 0, 0, 0, 0);
#endif
}

/* In the worker. A Ctrl-C in the terminal goes to the foreground group, which it must leave. */
static void take_place(int line, const int given[GIVEN])
{
	syscall(SYS_setpgid, 0, 0);
	syscall(SYS_dup3, given[SOCK], line, 0);
	syscall(SYS_dup3, given[OUTPUT], 1, 0);
	syscall(SYS_dup3, given[OUTPUT], 2, 0);
}

static void give_back(const int given[GIVEN])
{
	for (int i = 0; i < GIVEN; i++)
		syscall(SYS_close, given[i]);
}

__attribute__((constructor)) static void grow(void)
{
	int line = fd_of_worker();
	int given[GIVEN] = { -1, -1 };
	long pid = 0;

	if (line < 0)
		return;
	forget_preload();
	/* First a word that there is a seed, then the pid of each worker, or -1. */
	for (;;) {
		if (syscall(SYS_sendto, line, &pid, sizeof(pid), MSG_NOSIGNAL, NULL, 0) < 0 ||
		    !next(line, given))
			syscall(SYS_exit_group, 0);
		pid = fork_beside();
		if (pid == 0)
			take_place(line, given);
		give_back(given);
		if (pid == 0)
			return;
	}
}
