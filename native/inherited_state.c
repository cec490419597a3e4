/*
 * The state that a process inherits from the one that starts it, as bytes to be compared
 * (_transport/inherited_state.py).
 *
 * One call reads some twenty files of /proc: it is made before each use of a worker that was started
 * ahead. Each part begins with '+', or with '-' if it does not exist here, and ends with a NUL byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

static ssize_t read_file(int proc, const char *path, char *buffer, size_t capacity)
{
	int fd = openat(proc, path, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (fd < 0)
		return -errno;
	length = read(fd, buffer, capacity); /* /proc returns these files in one read() if the buffer is large enough */
	if (length < 0)
		length = -errno;
	close(fd);
	return length == (ssize_t)capacity ? -ENOBUFS : length;
}

static bool is_one_of(const char *line, size_t length, const char *names)
{
	for (; *names; names += strlen(names) + 1)
		if (length >= strlen(names) && !memcmp(line, names, strlen(names)))
			return true;
	return false;
}

/* Keeps the lines that begin with one of these names. */
static size_t keep_lines(char *text, size_t length, const char *names)
{
	char *to = text, *end = text + length;

	for (char *line = text, *next; line < end; line = next) {
		next = memchr(line, '\n', (size_t)(end - line));
		next = next ? next + 1 : end;
		if (!is_one_of(line, (size_t)(next - line), names))
			continue;
		memmove(to, line, (size_t)(next - line));
		to += next - line;
	}
	return (size_t)(to - text);
}

/* Keeps the fields of /proc/PID/stat behind the name that have an 'x' in the mask. */
static size_t keep_fields(char *text, size_t length, const char *mask)
{
	char *to = text, *end = text + length;
	char *from = memrchr(text, ')', length);

	for (from = from ? from + 2 : end; from < end && *mask; mask++) {
		char *space = memchr(from, ' ', (size_t)(end - from));
		size_t field = (size_t)((space ? space + 1 : end) - from);

		if (*mask == 'x') {
			memmove(to, from, field);
			to += field;
		}
		from += field;
	}
	return (size_t)(to - text);
}

/* Device, inode and mount of a directory. */
static ssize_t format_directory(const char *path, char *buffer, size_t capacity)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	char fdinfo[64];
	struct stat status;
	ssize_t length, n_read;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &status)) {
		close(fd);
		return -EIO;
	}
	length = snprintf(buffer, capacity, "%ju:%ju ", (uintmax_t)status.st_dev, (uintmax_t)status.st_ino);
	snprintf(fdinfo, sizeof(fdinfo), "/proc/self/fdinfo/%d", fd);
	n_read = read_file(AT_FDCWD, fdinfo, buffer + length, capacity - (size_t)length);
	close(fd);
	if (n_read < 0)
		return n_read;
	n_read = (ssize_t)keep_lines(buffer + length, (size_t)n_read, "mnt_id:\0");
	return n_read ? length + n_read : -ENODATA;
}

/* Device, inode, size and times of a file. */
static ssize_t format_file(const char *path, char *buffer, size_t capacity)
{
	struct stat status;

	if (stat(path, &status))
		return -errno;
	return snprintf(buffer, capacity, "%ju:%ju %ju %ju.%ld %ju.%ld", (uintmax_t)status.st_dev,
			(uintmax_t)status.st_ino, (uintmax_t)status.st_size, (uintmax_t)status.st_mtim.tv_sec,
			status.st_mtim.tv_nsec, (uintmax_t)status.st_ctim.tv_sec, status.st_ctim.tv_nsec);
}

/* Requests of prctl(2) whose result processes inherit; as numbers those that older headers lack. */
static const int inherited_values[] = {
	PR_GET_TIMERSLACK, PR_GET_SECUREBITS, PR_MCE_KILL_GET, PR_GET_THP_DISABLE,
	58 /* PR_GET_IO_FLUSHER */, 66 /* PR_GET_MDWE */, 68 /* PR_GET_MEMORY_MERGE */,
};

#define GET_SPECULATION_CTRL 52 /* PR_GET_SPECULATION_CTRL */
#define N_SPECULATIONS	     3	/* store bypass, indirect branch, L1D flush */
#define SCHED_CORE	     62 /* PR_SCHED_CORE; 0 is PR_SCHED_CORE_GET of a thread */
#define SESSION_KEYRING	     -3 /* KEY_SPEC_SESSION_KEYRING; 0 is KEYCTL_GET_KEYRING_ID */
#define N_NODE_WORDS	     (1024 / (8 * sizeof(unsigned long)))

static size_t append(char *buffer, size_t capacity, size_t length, unsigned long long value)
{
	int added = length < capacity ? snprintf(buffer + length, capacity - length, " %llx", value) : 0;

	return length + (size_t)added;
}

/* Values that system calls return faster than files of /proc. */
static ssize_t format_thread(char *buffer, size_t capacity)
{
	unsigned long nodes[N_NODE_WORDS] = { 0 };
	unsigned long long cookie = 0;
	int mode = 0;
	size_t length = 0;

#define ADD(value) (length = append(buffer, capacity, length, (unsigned long long)(value)))
	ADD(syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0));
	ADD(personality(0xffffffff));
	for (size_t i = 0; i < sizeof(inherited_values) / sizeof(*inherited_values); i++)
		ADD(prctl(inherited_values[i], 0, 0, 0, 0));
	for (unsigned long which = 0; which < N_SPECULATIONS; which++)
		ADD(prctl(GET_SPECULATION_CTRL, which, 0, 0, 0));
	prctl(SCHED_CORE, 0, 0, 0, &cookie);
	ADD(cookie);
	ADD(syscall(SYS_keyctl, 0, SESSION_KEYRING, 0));
	ADD(syscall(SYS_get_mempolicy, &mode, nodes, 8 * sizeof(nodes), 0, 0));
	ADD(mode);
	for (size_t i = 0; i < N_NODE_WORDS; i++)
		if (nodes[i])
			ADD(i), ADD(nodes[i]); /* most words are 0 */
	for (int which = 0; which < RLIM_NLIMITS; which++) {
		struct rlimit limit;

		if (getrlimit(which, &limit))
			return -errno;
		ADD(limit.rlim_cur);
		ADD(limit.rlim_max);
	}
#undef ADD
	return length < capacity ? (ssize_t)length : -ENOBUFS;
}

static ssize_t format_part(int proc, const struct pn_part *part, char *buffer, size_t capacity)
{
	ssize_t length;

	switch (part->kind) {
	case PN_PART_LINK:
		length = readlinkat(proc, part->path, buffer, capacity);
		return length < 0 ? -errno : length;
	case PN_PART_DIRECTORY:
		return format_directory(part->path, buffer, capacity);
	case PN_PART_FILE:
		return format_file(part->path, buffer, capacity);
	case PN_PART_THREAD:
		return format_thread(buffer, capacity);
	}
	length = read_file(proc, part->path, buffer, capacity);
	if (length > 0 && part->kind == PN_PART_LINES)
		length = (ssize_t)keep_lines(buffer, (size_t)length, part->filter);
	if (length > 0 && part->kind == PN_PART_FIELDS)
		length = (ssize_t)keep_fields(buffer, (size_t)length, part->filter);
	return length;
}

#define MAX_LINE 256 /* bytes that are formatted here at once */

static long format_parts(int proc, const struct pn_part *parts, size_t count, char *buffer, size_t capacity)
{
	size_t at = 0;

	for (size_t i = 0; i < count; i++) {
		ssize_t length;

		if (capacity - at < MAX_LINE)
			return -ENOBUFS;
		length = format_part(proc, &parts[i], buffer + at + 1, capacity - at - 2);
		if (length == -ENOBUFS || (length < 0 && parts[i].required))
			return length;
		buffer[at] = length < 0 ? '-' : '+';
		at += 1 + (length < 0 ? 0 : (size_t)length);
		buffer[at++] = '\0';
	}
	return (long)at;
}

long pn_read_inherited_state(const struct pn_part *parts, size_t count, char *buffer, size_t capacity)
{
	int proc = open("/proc/thread-self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	long length = proc < 0 ? -errno : format_parts(proc, parts, count, buffer, capacity);

	if (proc >= 0)
		close(proc);
	return length;
}
