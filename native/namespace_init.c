/*
 * The init process of the namespaces of one started copy (pid_namespaces(7)).
 *
 *	namespace_init CALLER [--network] [--hostname NAME]
 *
 * It is started as pid 1 of a new pid namespace, in a new mount namespace, by the process that
 * starts the copy. Standard input is a stream socket to that process, CALLER a pidfd of it. It
 * mounts /proc, brings up the loopback interface (--network), sets the host name (--hostname), and
 * writes one int: 0, or the errno of what failed. It then reaps orphans. The first int that it reads
 * is the future pid of the copy's root process; the second one means that this process was created.
 *
 * It ends when the socket is closed, when the caller has ended, or when the copy's root process has
 * ended; the kernel then kills all processes of the namespace and frees the namespaces.
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

#define PID_POLL_MS 5 /* milliseconds between two attempts to open the root process */

enum { CONTROL, CALLER, COPY, ORPHANS, WATCHED };

static int bring_up_loopback(void)
{
	struct ifreq interface = { .ifr_name = "lo" };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int failed = sock < 0 || ioctl(sock, SIOCGIFFLAGS, &interface);

	interface.ifr_flags |= IFF_UP;
	failed = failed || ioctl(sock, SIOCSIFFLAGS, &interface);
	if (sock >= 0)
		close(sock);
	return failed;
}

/* Mount events propagate from the host to this namespace, and not back. */
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

/* The copy's root process. */
static int expected; /* its pid; 0: not known yet */
static int existed;     /* 1: it was created */

static int read_pid(void)
{
	int number;

	if (read(STDIN_FILENO, &number, sizeof(number)) != sizeof(number))
		return -1;
	existed = expected != 0;
	if (!existed)
		expected = number;
	return 0;
}

/* Opens the root process once it exists. -1: it has ended. poll() ignores a negative descriptor. */
static int watch_copy(struct pollfd *copy)
{
	if (!expected || copy->fd >= 0)
		return 0;
	copy->fd = (int)syscall(SYS_pidfd_open, expected, 0);
	return copy->fd < 0 && existed ? -1 : 0;
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
		int timeout = expected && watched[COPY].fd < 0 ? PID_POLL_MS : -1;

		if (poll(watched, WATCHED, timeout) < 0 && errno != EINTR)
			return 1;
		if (watched[CALLER].revents || watched[COPY].revents)
			return 0;
		if (watched[CONTROL].revents && read_pid())
			return 0;
		if (watch_copy(&watched[COPY]))
			return 0;
		if (watched[ORPHANS].revents &&
		    read(watched[ORPHANS].fd, &ended, sizeof(ended)) == sizeof(ended))
			while (waitpid(-1, NULL, WNOHANG) > 0)
				;
	}
}
