/*
 * Walking a path one component at a time, each looked at before the next one is opened in it.
 *
 * Why, and what is trusted, _system/trusted_path.py says. This is in C since a call looks at some ten paths.
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

#define STEP	   (O_PATH | O_NOFOLLOW | O_CLOEXEC)
#define MOST_LINKS 40 /* the kernel stops there too */

_Static_assert(sizeof(((struct pn_refusal *)0)->shown) == PATH_MAX, "room for any path");

struct walk {
	int at;		       /* what has been reached */
	char shown[PATH_MAX];  /* its path, for messages */
	char ahead[PATH_MAX];  /* the components to go, after which a NUL */
	size_t next;	       /* where in there */
	int links;	       /* that have been followed */
	unsigned own;	       /* who is trusted, beside root */
	bool follows;	       /* what the path leads to need not be ours */
	bool shared;	       /* others can make entries in what has been reached */
	struct pn_refusal *refusal;
};

/* The number that root has here if it is not mapped into this user namespace; else no user's. */
static unsigned unmapped_root = (unsigned)-1;

void pn_trust_unmapped_root(unsigned uid)
{
	unmapped_root = uid;
}

static int refuse(struct pn_refusal *refusal, int why, const struct stat *found)
{
	refusal->why = why;
	refusal->uid = found->st_uid;
	refusal->gid = found->st_gid;
	refusal->mode = found->st_mode & ~S_IFMT;
	return -EPERM;
}

static int look_at_owner(unsigned own, const struct stat *found,
			 struct pn_refusal *refusal)
{
	if (found->st_uid == 0 || found->st_uid == own)
		return 0;
	return refuse(refusal, PN_OWNER, found);
}

static int look_at(unsigned own, const struct stat *found, bool on_the_way,
		   struct pn_refusal *refusal)
{
	int status = look_at_owner(own, found, refusal);

	if (status)
		return status;
	if (!(found->st_mode & (S_IWGRP | S_IWOTH)) || (on_the_way && found->st_mode & S_ISVTX))
		return 0;
	return refuse(refusal, PN_WRITABLE, found);
}

/* All users that are not mapped have that number. So it counts for what only root can have made,
 * and not for entries of directories that others can write, nor for what has to be ours. */
static unsigned owner_here(const struct walk *walk, const struct stat *found, bool on_the_way)
{
	bool is_root = found->st_uid == unmapped_root && !walk->shared && (on_the_way || walk->follows);

	return is_root ? unmapped_root : walk->own;
}

static int look_here(struct walk *walk, const struct stat *found, bool on_the_way)
{
	int status = look_at(owner_here(walk, found, on_the_way), found, on_the_way, walk->refusal);

	walk->shared = found->st_mode & (S_IWGRP | S_IWOTH);
	return status;
}

int pn_trust_descriptor(int fd, unsigned own, struct pn_refusal *refusal)
{
	struct stat found;

	refusal->shown[0] = '\0';
	return fstat(fd, &found) ? -errno : look_at(own, &found, false, refusal);
}

/* Where the next component that counts begins; false: there is none. */
static bool more(struct walk *walk)
{
	const char *ahead = walk->ahead;
	size_t at = walk->next;

	while (ahead[at] == '/' || (ahead[at] == '.' && (ahead[at + 1] == '/' || !ahead[at + 1])))
		at++;
	walk->next = at;
	return ahead[at] != '\0';
}

/* Go on from another descriptor. */
static int step(struct walk *walk, int fd)
{
	if (fd < 0)
		return -errno;
	if (walk->at >= 0)
		close(walk->at);
	walk->at = fd;
	return 0;
}

static int start(struct walk *walk, const char *path)
{
	strcpy(walk->shown, path[0] == '/' ? "/" : ".");
	walk->shared = false;
	return step(walk, open(walk->shown, STEP));
}

/* What a link says comes before what is ahead. */
static int put_ahead(struct walk *walk, const char *target, size_t length)
{
	size_t left = strlen(walk->ahead + walk->next);

	if (length + 1 + left >= sizeof(walk->ahead))
		return -ENAMETOOLONG;
	memmove(walk->ahead + length + 1, walk->ahead + walk->next, left + 1);
	memcpy(walk->ahead, target, length);
	walk->ahead[length] = '/';
	walk->next = 0;
	return 0;
}

/* Whether a link is one of /proc that leads to an object of the kernel's. */
static bool is_magic(const struct stat *link, const char *target)
{
	struct stat proc;

	if (stat("/proc", &proc) || link->st_dev != proc.st_dev)
		return false;
	return target[0] == '/' || strstr(target, ":[");
}

static int follow(struct walk *walk, int link, const struct stat *found, const char *name,
		  size_t above)
{
	char target[PATH_MAX];
	ssize_t length;
	int status = look_at_owner(owner_here(walk, found, true), found, walk->refusal);

	if (status)
		return status;
	if (++walk->links > MOST_LINKS)
		return -ELOOP;
	length = readlinkat(link, "", target, sizeof(target) - 1);
	if (length < 0)
		return -errno;
	target[length] = '\0';
	if (is_magic(found, target)) {
		struct stat there;

		/* It leads to an open file, whatever its text says. */
		status = step(walk, openat(walk->at, name, STEP & ~O_NOFOLLOW));
		if (!status)
			status = fstat(walk->at, &there) ? -errno : 0;
		return status ? status : look_here(walk, &there, more(walk));
	}
	status = put_ahead(walk, target, (size_t)length);
	if (status)
		return status;
	walk->shown[above] = '\0';
	return target[0] == '/' ? start(walk, target) : 0;
}

/* One component. */
static int enter(struct walk *walk, int flags)
{
	size_t above = strlen(walk->shown), length;
	const char *rest = walk->ahead + walk->next;
	char name[NAME_MAX + 1];
	struct stat found;
	int below, status;

	length = strcspn(rest, "/");
	if (length > NAME_MAX || above + 1 + length >= sizeof(walk->shown))
		return -ENAMETOOLONG;
	memcpy(name, rest, length);
	name[length] = '\0';
	walk->next += length;
	if (above == 0 || walk->shown[above - 1] != '/')
		strcat(walk->shown, "/");
	strcat(walk->shown, name);

	/* Whoever made what is there already: it is looked at like any other. */
	if (flags & PN_MAKE && !more(walk) && mkdirat(walk->at, name, 0700) && errno != EEXIST)
		return -errno;
	below = openat(walk->at, name, STEP);
	if (below < 0)
		return -errno;
	if (fstat(below, &found)) {
		status = -errno;
	} else if (!S_ISLNK(found.st_mode)) {
		status = look_here(walk, &found, more(walk));
		return status ? (close(below), status) : step(walk, below);
	} else if (!more(walk) && !(flags & PN_FOLLOW)) {
		status = refuse(walk->refusal, PN_LINK, &found);
	} else {
		status = follow(walk, below, &found, name, above);
	}
	close(below);
	return status;
}

int pn_trust_path(const char *path, int flags, unsigned own,
		  struct pn_refusal *refusal)
{
	struct walk walk = { .at = -1, .own = own, .follows = flags & PN_FOLLOW, .refusal = refusal };
	struct stat found;
	int status;

	if (!*path)
		return -ENOENT;
	if (strlen(path) >= sizeof(walk.ahead))
		return -ENAMETOOLONG;
	strcpy(walk.ahead, path);
	status = start(&walk, path);
	if (!status)
		status = fstat(walk.at, &found) ? -errno : look_here(&walk, &found, more(&walk));
	while (!status && more(&walk))
		status = enter(&walk, flags);
	memcpy(refusal->shown, walk.shown, sizeof(refusal->shown));
	if (!status)
		return walk.at;
	if (walk.at >= 0)
		close(walk.at);
	return status;
}

/* How much of a path is a directory above it that was looked at. */
static size_t shared(const char *path, size_t length, const char *known)
{
	size_t found = 0;

	for (size_t at = 0; at + 1 < length && known[at] && known[at] == path[at]; at++)
		if ((known[at + 1] == '/' || !known[at + 1]) && path[at + 1] == '/')
			found = at + 1;
	return found;
}

enum glance { UNSURE, TRUSTED, MISSING };

/* Looks at a path by its names, as long as no link is on it: who could put another in the place of
 * one could change the directory that it is in, which has been looked at before. ``known`` is a
 * directory that was looked at so. */
static enum glance glance_at(const char *path, unsigned own, char known[PATH_MAX])
{
	struct pn_refusal refusal;
	char so_far[PATH_MAX];
	size_t length = strlen(path), seen;

	while (length > 1 && path[length - 1] == '/')
		length--;
	if (path[0] != '/' || length >= PATH_MAX || strstr(path, ".."))
		return UNSURE;
	seen = shared(path, length, known);
	known[seen] = '\0';
	memcpy(so_far, path, length);
	for (size_t end = seen + 1; end <= length; end++) {
		bool on_the_way = end < length;
		struct stat found;

		if (end > 1 && on_the_way && path[end] != '/')
			continue;
		so_far[end] = '\0';
		if (lstat(so_far, &found))
			return MISSING;
		if (S_ISLNK(found.st_mode) || look_at(own, &found, on_the_way, &refusal))
			return UNSURE;
		if (end > 1 && on_the_way)
			strcpy(known, so_far);
		so_far[end] = path[end];
	}
	return TRUSTED;
}

int pn_trust_simple_path(const char *path, unsigned own)
{
	char known[PATH_MAX] = "";

	return glance_at(path, own, known) == TRUSTED;
}

/* What is missing under trusted directories is as trusted as they are. */
static bool is_trusted(const char *path, unsigned own, char known[PATH_MAX])
{
	struct pn_refusal refusal = { .why = 0 };
	int found;

	if (glance_at(path, own, known) != UNSURE)
		return true;
	found = pn_trust_path(path, PN_FOLLOW, own, &refusal);
	if (found >= 0)
		close(found);
	return !refusal.why;
}

static bool are_trusted_in(const char *path, const char *ending, unsigned own, char known[PATH_MAX])
{
	DIR *directory = opendir(path);
	bool so_far = true;

	if (!directory)
		return true; /* nobody else reads it either */
	for (struct dirent *entry; so_far && (entry = readdir(directory));) {
		size_t length = strlen(entry->d_name);
		char inner[PATH_MAX];

		if (length < strlen(ending) || strcmp(entry->d_name + length - strlen(ending), ending))
			continue;
		so_far = snprintf(inner, sizeof(inner), "%s/%s", path, entry->d_name) < PATH_MAX &&
			 is_trusted(inner, own, known);
	}
	closedir(directory);
	return so_far;
}

int pn_trust_all(char *const *paths, size_t n_directories, size_t count, const char *ending, unsigned own)
{
	char known[PATH_MAX] = "";

	for (size_t i = 0; i < count; i++)
		if (!is_trusted(paths[i], own, known) ||
		    (i < n_directories && !are_trusted_in(paths[i], ending, own, known)))
			return false;
	return true;
}
