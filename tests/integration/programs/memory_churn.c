/*
 * Memory of every kind, which is checked and changed on request.
 *
 * It fills its memory, writes "ready", and answers each line of its standard input with "ok", or
 * with what is wrong. Blocks of the allocator belong to the main thread and three others. Each
 * word in a block is a function of the block's number and the place in it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MADV_GUARD_INSTALL /* Linux 6.13 */
#define MADV_GUARD_INSTALL 102
#endif

#define THREADS 4
#define BLOCKS	1500
#define REGION	(3UL << 20)

struct block {
	uint64_t *words;
	size_t count;
	uint64_t number;
};

struct part {
	struct block blocks[BLOCKS];
	uint64_t random;
	char wrong[100];
};

static struct part parts[THREADS];
static pthread_barrier_t begin, end;
static void (*volatile work)(struct part *);

static uint64_t next_random(struct part *part)
{
	part->random ^= part->random << 13;
	part->random ^= part->random >> 7;
	return part->random ^= part->random << 17;
}

static size_t some_size(struct part *part)
{
	uint64_t kind = next_random(part) % 100;

	if (kind < 80)
		return 1 + next_random(part) % 200;
	if (kind < 99)
		return 1 + next_random(part) % 8000;
	return 20000 + next_random(part) % 400000;
}

static uint64_t word_of(const struct block *block, size_t at)
{
	return block->number * 0x9e3779b97f4a7c15ULL + at;
}

static void fill(struct block *block, size_t from)
{
	for (size_t at = from; at < block->count; at++)
		block->words[at] = word_of(block, at);
}

static void check(struct part *part, const struct block *block, size_t count)
{
	for (size_t at = 0; at < count; at++)
		if (block->words[at] != word_of(block, at)) {
			snprintf(part->wrong, sizeof(part->wrong), "word %zu of %zu at %p", at, block->count,
				 (void *)block->words);
			return;
		}
}

static void make(struct part *part, struct block *block)
{
	block->count = some_size(part);
	block->number = next_random(part);
	block->words = calloc(block->count, sizeof(uint64_t));
	for (size_t at = 0; at < block->count; at++)
		if (block->words[at])
			snprintf(part->wrong, sizeof(part->wrong), "calloc gives no zeros");
	fill(block, 0);
}

static void make_all(struct part *part)
{
	for (int i = 0; i < BLOCKS; i++)
		make(part, &part->blocks[i]);
}

static void check_all(struct part *part)
{
	for (int i = 0; i < BLOCKS; i++)
		check(part, &part->blocks[i], part->blocks[i].count);
}

static void churn(struct part *part)
{
	for (int i = 0; i < 6000; i++) {
		struct block *block = &part->blocks[next_random(part) % BLOCKS];
		size_t before = block->count;

		check(part, block, before);
		if (next_random(part) % 3) {
			free(block->words);
			make(part, block);
			continue;
		}
		block->count += some_size(part);
		block->words = realloc(block->words, block->count * sizeof(uint64_t));
		check(part, block, before);
		fill(block, before);
	}
	check_all(part);
}

static void free_most(struct part *part)
{
	for (int i = 0; i < BLOCKS; i++)
		if (i % 50) {
			free(part->blocks[i].words);
			part->blocks[i].count = 0;
			part->blocks[i].words = NULL;
		}
}

static void make_again(struct part *part)
{
	for (int i = 0; i < BLOCKS; i++)
		if (!part->blocks[i].words)
			make(part, &part->blocks[i]);
	check_all(part);
}

static void *serve(void *argument)
{
	for (;;) {
		pthread_barrier_wait(&begin);
		work(argument);
		pthread_barrier_wait(&end);
	}
	return NULL;
}

static const char *on_all(void (*what)(struct part *))
{
	work = what;
	pthread_barrier_wait(&begin);
	what(&parts[0]);
	pthread_barrier_wait(&end);
	for (int i = 0; i < THREADS; i++)
		if (*parts[i].wrong)
			return parts[i].wrong;
	return "ok";
}

/* ---- mappings ---- */

enum { DONTNEED, FREE, WIPE, GROW, FORK, GUARD, NONE, READ, CODE, SPARSE, LAST };

static unsigned char *region[LAST];
static size_t page_size;

/* Whether the kernel has guard pages: the second page of their region is one. */
static int guarded;

static unsigned char byte_of(int kind, size_t page)
{
	return 1 + (kind * 31 + page * 7) % 255;
}

static void map_all(void)
{
	page_size = sysconf(_SC_PAGESIZE);
	for (int kind = 0; kind < SPARSE; kind++) {
		/* A gap below: mappings do not adjoin. */
		region[kind] = mmap(NULL, REGION + 2 * page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		region[kind] += page_size;
		munmap(region[kind] - page_size, page_size);
		munmap(region[kind] + REGION, page_size);
		mprotect(region[kind], REGION, PROT_READ | PROT_WRITE);
		for (size_t at = 0; at < REGION; at += page_size)
			region[kind][at] = byte_of(kind, at / page_size);
	}
	guarded = !madvise(region[GUARD] + page_size, page_size, MADV_GUARD_INSTALL);
	mprotect(region[NONE], REGION, PROT_NONE);
	mprotect(region[READ], REGION, PROT_READ);
#ifdef __x86_64__
	memcpy(region[CODE] + 16, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */
	mprotect(region[CODE], REGION, PROT_READ | PROT_WRITE | PROT_EXEC);
#endif
	region[SPARSE] = mmap(NULL, 256 * REGION, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	for (size_t page = 0; page < 256; page++)
		region[SPARSE][page * REGION] = byte_of(SPARSE, page);
}

static int differs(int kind, int zeros)
{
	for (size_t at = 0; at < REGION; at += page_size) {
		unsigned char found = region[kind][at];

		if (zeros == 2 && !found)
			continue;
		if (found != (zeros == 1 ? 0 : byte_of(kind, at / page_size)))
			return 1;
		if (region[kind][at + page_size - 1])
			return 1;
	}
	return 0;
}

static int child_says(int (*question)(void))
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(question());
	return waitpid(pid, &status, 0) < 0 || status;
}

static int wiped(void)
{
	return differs(WIPE, 1);
}

static int as_before(void)
{
	if (differs(FORK, 0))
		return 1;
	memset(region[FORK], 0, REGION);
	return differs(FORK, 1);
}

static int guard_page(void)
{
	signal(SIGSEGV, SIG_DFL);
	return *(volatile unsigned char *)(region[GUARD] + page_size);
}

static int ends_by_a_guard(void)
{
	int status;
	pid_t pid = fork();

	if (!pid)
		_exit(guard_page());
	return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static const char *mappings(void)
{
	unsigned char *grown;

	if (differs(DONTNEED, 0) || madvise(region[DONTNEED], REGION, MADV_DONTNEED) || differs(DONTNEED, 1))
		return "MADV_DONTNEED";
	memset(region[DONTNEED], 5, REGION);
	if (differs(FREE, 0) || madvise(region[FREE], REGION, MADV_FREE) || differs(FREE, 2))
		return "MADV_FREE";
	if (differs(WIPE, 0) || madvise(region[WIPE], REGION, MADV_WIPEONFORK) || child_says(wiped) ||
	    differs(WIPE, 0))
		return "MADV_WIPEONFORK";
	grown = mremap(region[GROW], REGION, 4 * REGION, MREMAP_MAYMOVE);
	if (grown == MAP_FAILED)
		return "mremap";
	region[GROW] = grown;
	if (differs(GROW, 0))
		return "mremap: what was there";
	for (size_t at = REGION; at < 4 * REGION; at++)
		if (grown[at])
			return "mremap: what is new";
	if (child_says(as_before) || differs(FORK, 0))
		return "fork";
	if (guarded && !ends_by_a_guard())
		return "MADV_GUARD_INSTALL";
	if (region[GUARD][0] != byte_of(GUARD, 0) || region[GUARD][2 * page_size] != byte_of(GUARD, 2))
		return "MADV_GUARD_INSTALL: beside the guard";
	if (mprotect(region[NONE], REGION, PROT_READ | PROT_WRITE) || differs(NONE, 0))
		return "PROT_NONE";
	if (differs(READ, 0))
		return "PROT_READ";
#ifdef __x86_64__
	if (((int (*)(void))(region[CODE] + 16))() != 42)
		return "PROT_EXEC";
#endif
	for (size_t page = 0; page < 256; page++)
		if (region[SPARSE][page * REGION] != byte_of(SPARSE, page) || region[SPARSE][page * REGION + 9999])
			return "MAP_NORESERVE";
	return "ok";
}

int main(void)
{
	char line[100];
	pthread_t thread;

	pthread_barrier_init(&begin, NULL, THREADS);
	pthread_barrier_init(&end, NULL, THREADS);
	for (int i = 0; i < THREADS; i++) {
		parts[i].random = 88172645463325252ULL + i;
		if (i)
			pthread_create(&thread, NULL, serve, &parts[i]);
	}
	on_all(make_all);
	on_all(churn);
	map_all();
	puts("ready");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin)) {
		const char *answer = "what?";

		if (!strcmp(line, "check\n"))
			answer = on_all(check_all);
		else if (!strcmp(line, "churn\n"))
			answer = on_all(churn);
		else if (!strcmp(line, "mappings\n"))
			answer = mappings();
		else if (!strcmp(line, "refill\n"))
			answer = (on_all(free_most), on_all(make_again));
		puts(answer);
		fflush(stdout);
	}
	return 0;
}
