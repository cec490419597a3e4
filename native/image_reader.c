/*
 * The small files of an images directory, all in one go: a restore looks at a dozen of them first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

static bool is_wanted(const char *name)
{
	size_t length = strlen(name);

	return length > 4 && !strcmp(name + length - 4, ".img") && strncmp(name, "pages-", 6);
}

/* The whole file, if it is one and there is room; else nothing is read. A pipe does not block. */
static ssize_t read_file(int directory, const char *name, char *buffer, size_t size)
{
	int fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat found;
	ssize_t length = -1;

	if (fd < 0)
		return -1;
	if (!fstat(fd, &found) && S_ISREG(found.st_mode) && (uint64_t)found.st_size < size)
		length = read(fd, buffer, size);
	close(fd);
	return length < (ssize_t)size ? length : -1;
}

int pn_read_images(int directory, char *buffer, size_t size, struct pn_image *images, size_t room)
{
	int again = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *listing = again < 0 ? NULL : fdopendir(again);
	size_t count = 0, at = 0;
	struct dirent *entry;

	if (!listing) {
		int error = errno;

		if (again >= 0)
			close(again);
		return -error;
	}
	while ((entry = readdir(listing)) && count < room) {
		size_t length = strlen(entry->d_name);
		struct pn_image *image = &images[count];

		if (size - at < length)
			break;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		image->name = at;
		image->data = at + length;
		memcpy(buffer + at, entry->d_name, length);
		at += length;
		image->length = is_wanted(entry->d_name) ? read_file(directory, entry->d_name, buffer + at, size - at) : -1;
		at += image->length > 0 ? (size_t)image->length : 0;
		count++;
	}
	closedir(listing);
	return entry ? -ENOBUFS : (int)count;
}
