/*
 * The init process of the namespaces of one started copy (pid_namespaces(7)).
 *
 *	namespace_init CALLER [--network] [--hostname NAME]
 *
 * It is started as pid 1 of a new pid namespace, in a new mount namespace, by the process that
 * starts the copy. Standard input is a stream socket to that process, CALLER a pidfd of it. It
 * mounts /proc, brings up the loopback interface (--network), sets the host name (--hostname), and
 * writes one int: 0, or the errno of what failed. It then reaps orphans. The first int that it reads
 * is the pid that the copy's root process will have, the second one says that it has been there.
 *
 * It ends when the socket is closed, when the caller has ended, or when the copy's root process has
 * ended; the kernel then kills all processes of the namespace, and the namespaces are gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

#define UNTIL_THERE 5 /* milliseconds between two looks for the root process */

enum { CONTROL, CALLER, COPY, ORPHANS, WATCHED };

static int bring_up_loopback(void)
{
	struct ifreq interface = { .ifr_name = "lo" };
	int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int failed = any < 0 || ioctl(any, SIOCGIFFLAGS, &interface);

	interface.ifr_flags |= IFF_UP;
	failed = failed || ioctl(any, SIOCSIFFLAGS, &interface);
	if (any >= 0)
		close(any);
	return failed;
}

/* Mounts of the host appear and disappear here too, and none from here there. */
static int prepare(int argc, char **argv)
{
	if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) ||
	    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
		return -1;
	for (int i = 2; i < argc; i++) {
		if (!strcmp(argv[i], "--network") && bring_up_loopback())
			return -1;
		if (!strcmp(argv[i], "--hostname") && ++i < argc &&
		    sethostname(argv[i], strlen(argv[i])))
			return -1;
	}
	return 0;
}

/* What is known of the copy's root process. */
static int expected; /* its pid; 0: not known yet */
static int made;     /* whether it has been there */

static int hear(void)
{
	int number;

	if (read(STDIN_FILENO, &number, sizeof(number)) != sizeof(number))
		return -1;
	made = expected != 0;
	if (!made)
		expected = number;
	return 0;
}

/* -1: it has ended. A negative descriptor is not watched. */
static int look_for(struct pollfd *copy)
{
	if (!expected || copy->fd >= 0)
		return 0;
	copy->fd = (int)syscall(SYS_pidfd_open, expected, 0);
	return copy->fd < 0 && made ? -1 : 0;
}

int main(int argc, char **argv)
{
	struct pollfd watched[WATCHED] = {
		[CONTROL] = { .fd = STDIN_FILENO, .events = POLLIN },
		[CALLER] = { .fd = argc > 1 ? atoi(argv[1]) : -1, .events = POLLIN },
		[COPY] = { .fd = -1, .events = POLLIN },
	};
	struct signalfd_siginfo ended;
	sigset_t child;
	int status;

	sigemptyset(&child);
	sigaddset(&child, SIGCHLD);
	sigprocmask(SIG_BLOCK, &child, NULL);
	watched[ORPHANS].fd = signalfd(-1, &child, SFD_CLOEXEC);
	watched[ORPHANS].events = POLLIN;

	status = watched[ORPHANS].fd < 0 || prepare(argc, argv) ? errno : 0;
	if (write(STDIN_FILENO, &status, sizeof(status)) != sizeof(status) || status)
		return 1;
	for (;;) {
		int timeout = expected && watched[COPY].fd < 0 ? UNTIL_THERE : -1;

		if (poll(watched, WATCHED, timeout) < 0 && errno != EINTR)
			return 1;
		if (watched[CALLER].revents || watched[COPY].revents)
			return 0;
		if (watched[CONTROL].revents && hear())
			return 0;
		if (look_for(&watched[COPY]))
			return 0;
		if (watched[ORPHANS].revents &&
		    read(watched[ORPHANS].fd, &ended, sizeof(ended)) == sizeof(ended))
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
	}
}
