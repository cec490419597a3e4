/*
 * Opens a path one component at a time; each component is checked before the next one is opened in it.
 *
 * _system/trusted_path.py documents the reason and the rules. In C, because each call checks some ten paths.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcriu_types.h"
#include "pycriu_native.h"

#define OPEN_FLAGS (O_PATH | O_NOFOLLOW | O_CLOEXEC)
#define MAX_LINKS  40 /* the kernel's limit */

_Static_assert(sizeof(((struct pn_refusal *)0)->path) == PATH_MAX, "pn_refusal.path holds PATH_MAX bytes");

struct walk {
	int current;		    /* descriptor of the current component */
	char path[PATH_MAX];	    /* its path, for error messages */
	char remaining[PATH_MAX];   /* the remaining components, NUL-terminated */
	size_t next;		    /* offset of the next component in `remaining` */
	int links;		    /* number of links followed so far */
	unsigned owner;		    /* the trusted user, besides root */
	bool follow;		    /* PN_FOLLOW: the last component may belong to an unmapped root */
	bool writable_by_others;    /* other users can create entries in the current component */
	struct pn_refusal *refusal;
};

/* The uid of root's files if root is not mapped into this user namespace; else (uid_t)-1. */
static unsigned unmapped_root = (unsigned)-1;

void pn_trust_unmapped_root(unsigned uid)
{
	unmapped_root = uid;
}

static int refuse(struct pn_refusal *refusal, int reason, const struct stat *entry)
{
	refusal->reason = reason;
	refusal->uid = entry->st_uid;
	refusal->gid = entry->st_gid;
	refusal->mode = entry->st_mode & ~S_IFMT;
	return -EPERM;
}

static int check_owner(unsigned owner, const struct stat *entry, struct pn_refusal *refusal)
{
	if (entry->st_uid == 0 || entry->st_uid == owner)
		return 0;
	return refuse(refusal, PN_OWNER, entry);
}

static int check_owner_and_mode(unsigned owner, const struct stat *entry, bool is_parent,
				struct pn_refusal *refusal)
{
	int status = check_owner(owner, entry, refusal);

	if (status)
		return status;
	if (!(entry->st_mode & (S_IWGRP | S_IWOTH)) || (is_parent && entry->st_mode & S_ISVTX))
		return 0;
	return refuse(refusal, PN_WRITABLE, entry);
}

/* All users that are not mapped have that uid. It is therefore trusted only if root alone can have
 * created the entry: not in a directory that others can write, and not as a last component that has
 * to belong to the caller. */
static unsigned trusted_owner(const struct walk *walk, const struct stat *entry, bool is_parent)
{
	bool is_root = entry->st_uid == unmapped_root && !walk->writable_by_others &&
		       (is_parent || walk->follow);

	return is_root ? unmapped_root : walk->owner;
}

static int check_component(struct walk *walk, const struct stat *entry, bool is_parent)
{
	int status = check_owner_and_mode(trusted_owner(walk, entry, is_parent), entry, is_parent, walk->refusal);

	walk->writable_by_others = entry->st_mode & (S_IWGRP | S_IWOTH);
	return status;
}

int pn_trust_descriptor(int fd, unsigned owner, struct pn_refusal *refusal)
{
	struct stat entry;

	refusal->path[0] = '\0';
	return fstat(fd, &entry) ? -errno : check_owner_and_mode(owner, &entry, false, refusal);
}

/* Skips slashes and "." components; false: no component remains. */
static bool has_next(struct walk *walk)
{
	const char *remaining = walk->remaining;
	size_t at = walk->next;

	while (remaining[at] == '/' || (remaining[at] == '.' && (remaining[at + 1] == '/' || !remaining[at + 1])))
		at++;
	walk->next = at;
	return remaining[at] != '\0';
}

/* Continues from another descriptor. */
static int set_current(struct walk *walk, int fd)
{
	if (fd < 0)
		return -errno;
	if (walk->current >= 0)
		close(walk->current);
	walk->current = fd;
	return 0;
}

static int start(struct walk *walk, const char *path)
{
	strcpy(walk->path, path[0] == '/' ? "/" : ".");
	walk->writable_by_others = false;
	return set_current(walk, open(walk->path, OPEN_FLAGS));
}

/* Puts the target of a link before the remaining components. */
static int prepend(struct walk *walk, const char *target, size_t length)
{
	size_t remaining_length = strlen(walk->remaining + walk->next);

	if (length + 1 + remaining_length >= sizeof(walk->remaining))
		return -ENAMETOOLONG;
	memmove(walk->remaining + length + 1, walk->remaining + walk->next, remaining_length + 1);
	memcpy(walk->remaining, target, length);
	walk->remaining[length] = '/';
	walk->next = 0;
	return 0;
}

/* Whether a link is a magic link of /proc (proc(5)), such as /proc/PID/fd/N. */
static bool is_magic_link(const struct stat *link, const char *target)
{
	struct stat proc;

	if (stat("/proc", &proc) || link->st_dev != proc.st_dev)
		return false;
	return target[0] == '/' || strstr(target, ":[");
}

static int follow_link(struct walk *walk, int link, const struct stat *entry, const char *name,
		       size_t parent_length)
{
	char target[PATH_MAX];
	ssize_t length;
	int status = check_owner(trusted_owner(walk, entry, true), entry, walk->refusal);

	if (status)
		return status;
	if (++walk->links > MAX_LINKS)
		return -ELOOP;
	length = readlinkat(link, "", target, sizeof(target) - 1);
	if (length < 0)
		return -errno;
	target[length] = '\0';
	if (is_magic_link(entry, target)) {
		struct stat there;

		/* The kernel opens the file itself and ignores the text of the link. */
		status = set_current(walk, openat(walk->current, name, OPEN_FLAGS & ~O_NOFOLLOW));
		if (!status)
			status = fstat(walk->current, &there) ? -errno : 0;
		return status ? status : check_component(walk, &there, has_next(walk));
	}
	status = prepend(walk, target, (size_t)length);
	if (status)
		return status;
	walk->path[parent_length] = '\0';
	return target[0] == '/' ? start(walk, target) : 0;
}

/* Opens and checks the next component. */
static int open_component(struct walk *walk, int flags)
{
	size_t parent_length = strlen(walk->path), length;
	const char *next = walk->remaining + walk->next;
	char name[NAME_MAX + 1];
	struct stat entry;
	int fd, status;

	length = strcspn(next, "/");
	if (length > NAME_MAX || parent_length + 1 + length >= sizeof(walk->path))
		return -ENAMETOOLONG;
	memcpy(name, next, length);
	name[length] = '\0';
	walk->next += length;
	if (parent_length == 0 || walk->path[parent_length - 1] != '/')
		strcat(walk->path, "/");
	strcat(walk->path, name);

	/* An existing component is checked like any other. */
	if (flags & PN_CREATE && !has_next(walk) && mkdirat(walk->current, name, 0700) && errno != EEXIST)
		return -errno;
	fd = openat(walk->current, name, OPEN_FLAGS);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &entry)) {
		status = -errno;
	} else if (!S_ISLNK(entry.st_mode)) {
		status = check_component(walk, &entry, has_next(walk));
		return status ? (close(fd), status) : set_current(walk, fd);
	} else if (!has_next(walk) && !(flags & PN_FOLLOW)) {
		status = refuse(walk->refusal, PN_LINK, &entry);
	} else {
		status = follow_link(walk, fd, &entry, name, parent_length);
	}
	close(fd);
	return status;
}

int pn_trust_path(const char *path, int flags, unsigned owner, struct pn_refusal *refusal)
{
	struct walk walk = { .current = -1, .owner = owner, .follow = flags & PN_FOLLOW, .refusal = refusal };
	struct stat entry;
	int status;

	if (!*path)
		return -ENOENT;
	if (strlen(path) >= sizeof(walk.remaining))
		return -ENAMETOOLONG;
	strcpy(walk.remaining, path);
	status = start(&walk, path);
	if (!status)
		status = fstat(walk.current, &entry) ? -errno : check_component(&walk, &entry, has_next(&walk));
	while (!status && has_next(&walk))
		status = open_component(&walk, flags);
	memcpy(refusal->path, walk.path, sizeof(refusal->path));
	if (!status)
		return walk.current;
	if (walk.current >= 0)
		close(walk.current);
	return status;
}

/* The length of the longest directory of a path that has been checked before. */
static size_t common_directory(const char *path, size_t length, const char *known)
{
	size_t result = 0;

	for (size_t at = 0; at + 1 < length && known[at] && known[at] == path[at]; at++)
		if ((known[at + 1] == '/' || !known[at + 1]) && path[at + 1] == '/')
			result = at + 1;
	return result;
}

enum quick_result { UNDECIDED, TRUSTED, MISSING };

/* Checks a path by its names, as long as it has no link: to replace a component, a user must be able
 * to change its directory, which has been checked before. ``known`` is the last checked directory. */
static enum quick_result check_by_names(const char *path, unsigned owner, char known[PATH_MAX])
{
	struct pn_refusal refusal;
	char prefix[PATH_MAX];
	size_t length = strlen(path), known_length;

	while (length > 1 && path[length - 1] == '/')
		length--;
	if (path[0] != '/' || length >= PATH_MAX || strstr(path, ".."))
		return UNDECIDED;
	known_length = common_directory(path, length, known);
	known[known_length] = '\0';
	memcpy(prefix, path, length);
	for (size_t end = known_length + 1; end <= length; end++) {
		bool is_parent = end < length;
		struct stat entry;

		if (end > 1 && is_parent && path[end] != '/')
			continue;
		prefix[end] = '\0';
		if (lstat(prefix, &entry))
			return errno == ENOENT ? MISSING : UNDECIDED;
		if (S_ISLNK(entry.st_mode) || check_owner_and_mode(owner, &entry, is_parent, &refusal))
			return UNDECIDED;
		if (end > 1 && is_parent)
			strcpy(known, prefix);
		prefix[end] = path[end];
	}
	return TRUSTED;
}

int pn_trust_simple_path(const char *path, unsigned owner)
{
	char known[PATH_MAX] = "";

	return check_by_names(path, owner, known) == TRUSTED;
}

/* A missing file in a trusted directory is trusted. */
static bool is_trusted(const char *path, unsigned owner, char known[PATH_MAX])
{
	struct pn_refusal refusal = { .reason = 0 };
	int fd;

	if (check_by_names(path, owner, known) != UNDECIDED)
		return true;
	fd = pn_trust_path(path, PN_FOLLOW, owner, &refusal);
	if (fd >= 0)
		close(fd);
	return !refusal.reason;
}

static bool are_files_trusted(const char *path, const char *ending, unsigned owner, char known[PATH_MAX])
{
	DIR *directory = opendir(path);
	bool trusted = true;

	if (!directory)
		return true; /* CRIU cannot read it either */
	for (struct dirent *entry; trusted && (entry = readdir(directory));) {
		size_t length = strlen(entry->d_name);
		char inner[PATH_MAX];

		if (length < strlen(ending) || strcmp(entry->d_name + length - strlen(ending), ending))
			continue;
		trusted = snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name) < PATH_MAX &&
			  is_trusted(inner, owner, known);
	}
	closedir(directory);
	return trusted;
}

int pn_trust_all(char *const *paths, size_t n_directories, size_t count, const char *ending, unsigned owner)
{
	char known[PATH_MAX] = "";

	for (size_t i = 0; i < count; i++)
		if (!is_trusted(paths[i], owner, known) ||
		    (i < n_directories && !are_files_trusted(paths[i], ending, owner, known)))
			return false;
	return true;
}
