/*
 * SPDX-License-Identifier: MIT
 *
 * Replaces libnftables in a statically linked criu: defines the functions that CRIU calls, and loads the
 * system's shared library at the first call. Only network locks and nftables rules need it.
 *
 * CRIU creates a context at its start, to probe the kernel. A context is therefore created even if the
 * library is not installed; each command of such a context fails.
 */
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define LIBRARY "libnftables.so.1"
#define LOG_WARN 2 /* of criu-log.h */

struct nft_ctx;

/* Writes to CRIU's log. Weak: tests in CRIU's makefiles link this file without the rest of CRIU. */
extern void print_on_level(unsigned int level, const char *format, ...) __attribute__((weak));

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
	{ "nft_ctx_new", &nft.ctx_new }, /* the last one: if it is set, all are */
};

/* The reason why the library cannot be loaded. Its address is the context in this case. */
static char reason[256];

static int is_unavailable(const struct nft_ctx *ctx)
{
	return (const char *)ctx == reason;
}

static int load_functions(void)
{
	void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_GLOBAL);

	for (size_t i = 0; library && i < sizeof(functions) / sizeof(*functions); i++) {
		void *function = dlsym(library, functions[i].name);

		if (!function)
			return -1;
		memcpy(functions[i].function, &function, sizeof(function));
	}
	return library ? 0 : -1;
}

struct nft_ctx *nft_ctx_new(uint32_t flags)
{
	if (!nft.ctx_new && load_functions()) {
		snprintf(reason, sizeof(reason), LIBRARY " cannot be loaded: %s", dlerror());
		if (print_on_level)
			print_on_level(LOG_WARN, "Warn  (nftables): %s\n", reason);
		return (struct nft_ctx *)reason;
	}
	return nft.ctx_new(flags);
}

void nft_ctx_free(struct nft_ctx *ctx)
{
	if (!is_unavailable(ctx))
		nft.ctx_free(ctx);
}

int nft_ctx_buffer_error(struct nft_ctx *ctx)
{
	return is_unavailable(ctx) ? 0 : nft.ctx_buffer_error(ctx);
}

int nft_ctx_buffer_output(struct nft_ctx *ctx)
{
	return is_unavailable(ctx) ? 0 : nft.ctx_buffer_output(ctx);
}

const char *nft_ctx_get_error_buffer(struct nft_ctx *ctx)
{
	return is_unavailable(ctx) ? reason : nft.ctx_get_error_buffer(ctx);
}

FILE *nft_ctx_set_error(struct nft_ctx *ctx, FILE *file)
{
	return is_unavailable(ctx) ? file : nft.ctx_set_error(ctx, file);
}

FILE *nft_ctx_set_output(struct nft_ctx *ctx, FILE *file)
{
	return is_unavailable(ctx) ? file : nft.ctx_set_output(ctx, file);
}

int nft_run_cmd_from_buffer(struct nft_ctx *ctx, const char *commands)
{
	return is_unavailable(ctx) ? -1 : nft.run_cmd_from_buffer(ctx, commands);
}
