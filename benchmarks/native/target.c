/*
 * A process to checkpoint: target FILE MIB PASSWORD [PART]
 *
 * Fills MIB mebibytes with pages that all differ, and waits. On SIGUSR1 it writes to FILE the password, a
 * checksum of its memory, and the longest time for which it was stopped. With PART it continuously writes
 * to a part of its memory: 1 is all of it, 16 a sixteenth.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t requested;

static void on_request(int number)
{
	(void)number;
	requested = 1;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_RAW, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void report(const char *path, const char *password, const uint64_t *memory, size_t words, double still)
{
	char partial[4096];
	uint64_t sum = 0;
	FILE *file;

	for (size_t i = 0; i < words; i += 64)
		sum = sum * 31 + memory[i];
	snprintf(partial, sizeof(partial), "%s.partial", path);
	file = fopen(partial, "w");
	if (!file)
		exit(3);
	fprintf(file, "%s %016llx %.6f\n", password, (unsigned long long)sum, still);
	fclose(file);
	rename(partial, path);
}

int main(int argc, char **argv)
{
	size_t size, words, part;
	uint64_t *memory, state = 88172645463325252ULL;
	double still = 0, before;

	if (argc < 4)
		return 2;
	size = strtoull(argv[2], NULL, 10) << 20;
	words = size / sizeof(*memory);
	part = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
	memory = size ? mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) : NULL;
	if (memory == MAP_FAILED)
		return 3;
	for (size_t i = 0; i < words; i++) /* half of the words are compressible */
		memory[i] = i & 1 ? next(&state) : i >> 9;
	signal(SIGUSR1, on_request);
	report(argv[1], argv[3], memory, words, 0);

	before = now();
	for (size_t page = 0;; page = (page + 7919) % (words / 512 / (part ? part : 1) + 1)) {
		struct timespec pause = { .tv_nsec = part ? 20000 : 20000000 };
		double time;

		if (part && words)
			memory[page * 512 % words]++;
		nanosleep(&pause, NULL);
		time = now();
		if (time - before > still)
			still = time - before;
		before = time;
		if (requested) {
			requested = 0;
			report(argv[1], argv[3], memory, words, still);
			still = 0;
			before = now();
		}
	}
}
