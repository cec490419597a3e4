/*
 * SPDX-License-Identifier: MIT
 *
 * libnftables for a criu that is linked statically: the functions that CRIU calls, each of which
 * loads the shared library at its first use. Only network locks and nftables rules need it, so
 * most starts of criu do without loading it and the five libraries that it depends on.
 *
 * The copies of these libraries in nftables/ beside the executable are loaded by their paths, in
 * the order of their dependencies. So no run path is needed, which the loader would ignore in a
 * program with file capabilities.
 */
#include <dlfcn.h>
#include <limits.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct nft_ctx;

/* Dependencies first. */
static const char *const libraries[] = { NFTABLES_LIBRARIES };

static struct {
	struct nft_ctx *(*ctx_new)(uint32_t flags);
	void (*ctx_free)(struct nft_ctx *ctx);
	int (*ctx_buffer_error)(struct nft_ctx *ctx);
	int (*ctx_buffer_output)(struct nft_ctx *ctx);
	const char *(*ctx_get_error_buffer)(struct nft_ctx *ctx);
	FILE *(*ctx_set_error)(struct nft_ctx *ctx, FILE *file);
	FILE *(*ctx_set_output)(struct nft_ctx *ctx, FILE *file);
	int (*run_cmd_from_buffer)(struct nft_ctx *ctx, const char *commands);
} nft;

static const struct {
	const char *name;
	void *function;
} functions[] = {
	{ "nft_ctx_free", &nft.ctx_free },
	{ "nft_ctx_buffer_error", &nft.ctx_buffer_error },
	{ "nft_ctx_buffer_output", &nft.ctx_buffer_output },
	{ "nft_ctx_get_error_buffer", &nft.ctx_get_error_buffer },
	{ "nft_ctx_set_error", &nft.ctx_set_error },
	{ "nft_ctx_set_output", &nft.ctx_set_output },
	{ "nft_run_cmd_from_buffer", &nft.run_cmd_from_buffer },
	{ "nft_ctx_new", &nft.ctx_new }, /* the last: it tells that all are there */
};

/* The directory of the executable, with a slash at its end; 0 if it is unknown or too long. */
static size_t directory(char *path, size_t size)
{
	ssize_t length = readlink("/proc/self/exe", path, size);

	while (length > 0 && path[length - 1] != '/')
		length--;
	return length > 0 ? length : 0;
}

static void *load_library(void)
{
	char path[PATH_MAX + NAME_MAX];
	size_t length = directory(path, PATH_MAX);
	void *library = NULL;

	if (!length)
		return NULL;
	for (size_t i = 0; i < sizeof(libraries) / sizeof(*libraries); i++) {
		snprintf(path + length, sizeof(path) - length, "nftables/%s", libraries[i]);
		library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
		if (!library)
			return NULL;
	}
	return library;
}

struct nft_ctx *nft_ctx_new(uint32_t flags)
{
	void *library;

	if (!nft.ctx_new) {
		library = load_library();
		if (!library) {
			fprintf(stderr, "Error: libnftables cannot be loaded: %s\n", dlerror() ?: "no /proc");
			return NULL;
		}
		for (size_t i = 0; i < sizeof(functions) / sizeof(*functions); i++) {
			void *function = dlsym(library, functions[i].name);

			if (!function)
				return NULL;
			memcpy(functions[i].function, &function, sizeof(function));
		}
	}
	return nft.ctx_new(flags);
}

/* The others have a context, so nft_ctx_new() has succeeded before. */

void nft_ctx_free(struct nft_ctx *ctx)
{
	nft.ctx_free(ctx);
}

int nft_ctx_buffer_error(struct nft_ctx *ctx)
{
	return nft.ctx_buffer_error(ctx);
}

int nft_ctx_buffer_output(struct nft_ctx *ctx)
{
	return nft.ctx_buffer_output(ctx);
}

const char *nft_ctx_get_error_buffer(struct nft_ctx *ctx)
{
	return nft.ctx_get_error_buffer(ctx);
}

FILE *nft_ctx_set_error(struct nft_ctx *ctx, FILE *file)
{
	return nft.ctx_set_error(ctx, file);
}

FILE *nft_ctx_set_output(struct nft_ctx *ctx, FILE *file)
{
	return nft.ctx_set_output(ctx, file);
}

int nft_run_cmd_from_buffer(struct nft_ctx *ctx, const char *commands)
{
	return nft.run_cmd_from_buffer(ctx, commands);
}
