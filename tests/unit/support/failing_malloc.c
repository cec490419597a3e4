/*
 * Memory that runs out: the n-th allocation asked for by our extension, libcriu or protobuf-c
 * fails after fail_allocation(n), on any thread. Preloaded by a test.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);

static long left = -1; /* -1: none fails */
static long seen;
static __thread int inside;

void fail_allocation(long n)
{
	left = n;
	seen = 0;
}

long allocations(void)
{
	return seen;
}

static int fails(const void *caller)
{
	Dl_info info;
	int ours;

	if (left < 0 || inside)
		return 0;
	inside = 1; /* dladdr may allocate */
	ours = dladdr(caller, &info) && info.dli_fname &&
	       (strstr(info.dli_fname, "extension.") || strstr(info.dli_fname, "libcriu") ||
		strstr(info.dli_fname, "libprotobuf-c"));
	inside = 0;
	if (!ours || __atomic_add_fetch(&seen, 1, __ATOMIC_RELAXED) != left)
		return 0;
	errno = ENOMEM;
	return 1;
}

void *malloc(size_t size)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}

char *strdup(const char *text)
{
	size_t size = strlen(text) + 1;
	char *copy = fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);

	return copy ? memcpy(copy, text, size) : NULL;
}
