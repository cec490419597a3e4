/*
 * A C program that only uses libcriu: plain MIB THREADS DESCRIPTORS CRIU PID DIRECTORY TIMES
 *
 * It allocates memory, threads and descriptors, and then dumps the process TIMES times, leaving it running
 * (PID 0: requests the version instead). It prints the duration of each call in milliseconds.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <criu/criu.h>

static void *idle(void *argument)
{
	pause();
	return argument;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec * 1e3 + (double)time.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
	size_t size = argc > 7 ? strtoull(argv[1], NULL, 10) << 20 : 0;
	int threads, descriptors, pid, times, images;
	struct rlimit limit;
	char *memory;

	if (argc < 8)
		return 2;
	threads = atoi(argv[2]);
	descriptors = atoi(argv[3]);
	pid = atoi(argv[5]);
	times = atoi(argv[7]);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	memory = mmap(NULL, size + 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	madvise(memory, size + 1, MADV_NOHUGEPAGE);
	for (size_t at = 0; at < size; at += 4096)
		memory[at] = 1;
	for (int i = 1; i < threads; i++) {
		pthread_t thread;

		pthread_create(&thread, NULL, idle, NULL);
	}
	for (int i = 0; i < descriptors; i++)
		open("/dev/null", O_RDONLY | O_CLOEXEC);
	images = open(argv[6], O_RDONLY | O_DIRECTORY);

	for (int i = 0; i < times; i++) {
		double started = now();
		criu_opts *opts = NULL; /* criu_local_init_opts() frees the options that it is passed */
		int result;

		criu_local_init_opts(&opts);
		criu_local_set_service_binary(opts, argv[4]);
		if (pid) {
			criu_local_set_images_dir_fd(opts, images);
			criu_local_set_leave_running(opts, true);
			criu_local_set_log_file(opts, "dump.log");
			criu_local_set_pid(opts, pid);
			result = criu_local_dump(opts);
		} else {
			result = criu_local_get_version(opts);
		}
		criu_local_free_opts(opts);
		if (result < 0) {
			fprintf(stderr, "libcriu: %d\n", result);
			return 1;
		}
		printf("%.3f\n", now() - started);
	}
	return 0;
}
