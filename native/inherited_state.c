/*
 * What a process takes over from the one that starts it, as bytes to be compared (_transport/inherited_state.py).
 *
 * In one go: it is asked before each call that takes a warm worker, out of some twenty files of
 * /proc. Each part ends with a zero byte and begins with '+', or with '-' where there is no such
 * thing here.
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

static ssize_t read_whole(int here, const char *path, char *buffer, size_t size)
{
	int fd = openat(here, path, O_RDONLY | O_CLOEXEC);
	ssize_t length;

	if (fd < 0)
		return -errno;
	length = read(fd, buffer, size); /* these files are told in one piece where there is room */
	if (length < 0)
		length = -errno;
	close(fd);
	return length == (ssize_t)size ? -ENOBUFS : length;
}

static bool is_one_of(const char *line, size_t length, const char *names)
{
	for (; *names; names += strlen(names) + 1)
		if (length >= strlen(names) && !memcmp(line, names, strlen(names)))
			return true;
	return false;
}

/* Of what was read, the lines that begin with one of these names. */
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

/* Of /proc/PID/stat, the fields behind the name whose place has an 'x' in the mask. */
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

/* Which directory it is, and through which mount. */
static ssize_t tell_place(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	char fdinfo[64];
	struct stat found;
	ssize_t length, more;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &found)) {
		close(fd);
		return -EIO;
	}
	length = snprintf(buffer, size, "%ju:%ju ", (uintmax_t)found.st_dev, (uintmax_t)found.st_ino);
	snprintf(fdinfo, sizeof(fdinfo), "/proc/self/fdinfo/%d", fd);
	more = read_whole(AT_FDCWD, fdinfo, buffer + length, size - (size_t)length);
	close(fd);
	if (more < 0)
		return more;
	more = (ssize_t)keep_lines(buffer + length, (size_t)more, "mnt_id:\0");
	return more ? length + more : -ENODATA;
}

/* Which file it is, in which state. */
static ssize_t tell_stamp(const char *path, char *buffer, size_t size)
{
	struct stat found;

	if (stat(path, &found))
		return -errno;
	return snprintf(buffer, size, "%ju:%ju %ju %ju.%ld %ju.%ld", (uintmax_t)found.st_dev,
			(uintmax_t)found.st_ino, (uintmax_t)found.st_size, (uintmax_t)found.st_mtim.tv_sec,
			found.st_mtim.tv_nsec, (uintmax_t)found.st_ctim.tv_sec, found.st_ctim.tv_nsec);
}

/* What system calls tell, faster than the files that have it too. */
static ssize_t tell_state(char *buffer, size_t size)
{
	int length = snprintf(buffer, size, "%ld %d %d", syscall(SYS_ioprio_get, 1 /* IOPRIO_WHO_PROCESS */, 0),
			      personality(0xffffffff), prctl(PR_GET_TIMERSLACK));

	for (int which = 0; which < RLIM_NLIMITS; which++) {
		struct rlimit limit;

		if (getrlimit(which, &limit))
			return -errno;
		if ((size_t)length >= size)
			return -ENOBUFS;
		length += snprintf(buffer + length, size - (size_t)length, " %llx:%llx",
				   (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
	}
	return (size_t)length < size ? length : -ENOBUFS;
}

static ssize_t tell(int here, const struct pn_part *part, char *buffer, size_t size)
{
	ssize_t length;

	switch (part->kind) {
	case PN_PART_LINK:
		length = readlinkat(here, part->path, buffer, size);
		return length < 0 ? -errno : length;
	case PN_PART_PLACE:
		return tell_place(part->path, buffer, size);
	case PN_PART_STAMP:
		return tell_stamp(part->path, buffer, size);
	case PN_PART_STATE:
		return tell_state(buffer, size);
	}
	length = read_whole(here, part->path, buffer, size);
	if (length > 0 && part->kind == PN_PART_LINES)
		length = (ssize_t)keep_lines(buffer, (size_t)length, part->only);
	if (length > 0 && part->kind == PN_PART_FIELDS)
		length = (ssize_t)keep_fields(buffer, (size_t)length, part->only);
	return length;
}

#define LONGEST_LINE 256 /* of what is printed here */

static long gather(int here, const struct pn_part *parts, size_t count, char *buffer, size_t size)
{
	size_t at = 0;

	for (size_t i = 0; i < count; i++) {
		ssize_t length;

		if (size - at < LONGEST_LINE)
			return -ENOBUFS;
		length = tell(here, &parts[i], buffer + at + 1, size - at - 2);
		if (length == -ENOBUFS || (length < 0 && parts[i].needed))
			return length;
		buffer[at] = length < 0 ? '-' : '+';
		at += 1 + (length < 0 ? 0 : (size_t)length);
		buffer[at++] = '\0';
	}
	return (long)at;
}

long pn_read_state(const struct pn_part *parts, size_t count, char *buffer, size_t size)
{
	int here = open("/proc/thread-self", O_PATH | O_DIRECTORY | O_CLOEXEC);
	long length = here < 0 ? -errno : gather(here, parts, count, buffer, size);

	if (here >= 0)
		close(here);
	return length;
}
