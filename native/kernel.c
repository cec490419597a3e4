/*
 * System calls for which Python 3.11 has no function, or a slow one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif
#ifndef SYS_fsopen
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif

/* From <linux/fs.h>, which conflicts with <sys/mount.h> of older C libraries. */
#ifndef FICLONE
#define FICLONE _IOW(0x94, 9, int)
#endif

/* From <linux/mount.h>, which conflicts with the headers of older C libraries. */
#define FS_CLOEXEC    1 /* FSOPEN_CLOEXEC, FSMOUNT_CLOEXEC */
#define CONFIG_STRING 1 /* FSCONFIG_SET_STRING */
#define CONFIG_CREATE 6 /* FSCONFIG_CMD_CREATE */

const int pn_map_locked = MAP_LOCKED, pn_map_noreserve = MAP_NORESERVE, pn_map_hugetlb = MAP_HUGETLB;
const int pn_sigkill = SIGKILL, pn_sigcont = SIGCONT;

int pn_enter_network_namespace(int fd)
{
	return setns(fd, CLONE_NEWNET) ? -errno : 0;
}

/* The thread no longer shares its root and working directory with the other threads. */
int pn_enter_mount_namespace(int fd)
{
	return unshare(CLONE_FS) || setns(fd, CLONE_NEWNS) ? -errno : 0;
}

int pn_unshare(int flags)
{
	return unshare(flags) ? -errno : 0;
}

int pn_mount(const char *source, const char *place, const char *type, unsigned long flags, const char *data)
{
	return mount(source, place, type, flags, data) ? -errno : 0;
}

int pn_unmount(const char *place)
{
	return umount2(place, MNT_DETACH) ? -errno : 0;
}

int pn_end_with_parent(void)
{
	return prctl(PR_SET_PDEATHSIG, SIGKILL) ? -errno : 0;
}

long pn_file_system_type(const char *path)
{
	struct statfs result;

	return statfs(path, &result) ? -errno : (long)result.f_type;
}

int pn_open_by_handle(int mount, int type, const uint8_t *bytes, unsigned size)
{
	union {
		struct file_handle handle;
		char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} file = { .handle = { .handle_bytes = size, .handle_type = type } };
	int fd;

	if (size > MAX_HANDLE_SZ)
		return -EINVAL;
	memcpy(file.handle.f_handle, bytes, size);
	fd = open_by_handle_at(mount, &file.handle, O_PATH | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* The kernel makes the copy close-on-exec. */
int pn_copy_descriptor(int pidfd, int fd)
{
	int copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);

	return copy < 0 ? -errno : copy;
}

int pn_send_signal(int pidfd, int signal)
{
	return syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0) ? -errno : 0;
}

int pn_kcmp(int pid, int other, int type, unsigned long index, unsigned long other_index)
{
	long order = syscall(SYS_kcmp, pid, other, type, index, other_index);

	return order < 0 ? -errno : (int)order;
}

int pn_io_priority(int pid)
{
	long priority = syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, pid);

	return priority < 0 ? -errno : (int)priority;
}

/* The number of this ioctl depends on the architecture. */
int pn_namespace_owner(int fd)
{
	int owner = ioctl(fd, NS_GET_USERNS);

	return owner < 0 ? -errno : owner;
}

/* The number of this ioctl, too. */
int pn_clone_file(int target, int source)
{
	return ioctl(target, FICLONE, source) ? -errno : 0;
}

int pn_unnamed_directory(void)
{
	int context = (int)syscall(SYS_fsopen, "tmpfs", FS_CLOEXEC);
	int directory = -1, error;

	if (context < 0)
		return -errno;
	if (!syscall(SYS_fsconfig, context, CONFIG_STRING, "mode", "0700", 0) &&
	    !syscall(SYS_fsconfig, context, CONFIG_CREATE, NULL, NULL, 0))
		directory = (int)syscall(SYS_fsmount, context, FS_CLOEXEC, 0);
	error = errno;
	close(context);
	return directory < 0 ? -error : directory;
}

int pn_kill_at(int64_t nanoseconds)
{
	static bool made;
	static int timer;
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL };
	struct itimerspec when = { .it_value = { nanoseconds / 1000000000, nanoseconds % 1000000000 } };

	if (!made && syscall(SYS_timer_create, CLOCK_BOOTTIME, &event, &timer))
		return -errno;
	made = true;
	return syscall(SYS_timer_settime, timer, TIMER_ABSTIME, &when, NULL) ? -errno : 0;
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
