/* bulk: moves bytes for the benchmark, in a container and beside it.
 *
 *   bulk vsock PORT BYTES        writes so many to each who connects to a vsock port, one by one
 *   bulk out BYTES               writes so many to standard output
 *   bulk write|read FILE BYTES   in pieces of 128 KiB, the written ones down to the disk
 *   bulk random-read|random-write FILE COUNT   4 KiB each, the written ones down to the disk
 *   bulk memset BYTES            writes so many of its own memory for the first time
 *
 * Both sources write the same, lines of 1 KiB in pieces of 64 KiB. What works on files and
 * memory prints the microseconds it took; reading starts with nothing of the file cached by this kernel. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PIECE (128 << 10)
#define PAGE 4096

static char block[PIECE];

static int fail(const char *what)
{
	perror(what);
	return 1;
}

static int pour(int to, long long left)
{
	while (left > 0) {
		ssize_t n = write(to, block, left < (64 << 10) ? left : (64 << 10));

		if (n <= 0)
			return -1;
		left -= n;
	}
	return 0;
}

static int serve(unsigned port, long long bytes)
{
	struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 1))
		return fail("vsock");
	puts("listening");
	fflush(stdout);
	for (;;) {
		int to = accept(listener, NULL, NULL);

		if (to >= 0) {
			/* One that went away early is not of interest. */
			pour(to, bytes);
			close(to);
		}
	}
}

static void say_since(const struct timespec *began)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("%lld\n", (now.tv_sec - began->tv_sec) * 1000000LL + (now.tv_nsec - began->tv_nsec) / 1000);
}

static int files(const char *how, const char *path, long long amount)
{
	int writes = strstr(how, "write") != NULL, random = strncmp(how, "random-", 7) == 0;
	int fd = open(path, writes ? O_RDWR | O_CREAT : O_RDONLY, 0600);
	size_t piece = random ? PAGE : PIECE;
	long long steps = random ? amount : amount / PIECE, pages;
	unsigned long long state = 88172645463325252ULL;
	struct timespec began;
	struct stat meta;

	if (fd < 0 || fstat(fd, &meta))
		return fail(path);
	pages = meta.st_size / PAGE;
	if (random && pages == 0) {
		fputs("the file is empty\n", stderr);
		return 1;
	}
	if (!writes && (fsync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED)))
		return fail(path);
	clock_gettime(CLOCK_MONOTONIC, &began);
	for (long long step = 0; step < steps; step++) {
		off_t at = step * (off_t)piece;
		ssize_t n;

		if (random) {
			state ^= state << 13;
			state ^= state >> 7;
			state ^= state << 17;
			at = (off_t)(state % pages) * PAGE;
		}
		n = writes ? pwrite(fd, block, piece, at) : pread(fd, block, piece, at);
		if (n != (ssize_t)piece)
			return fail(how);
	}
	if (writes && fsync(fd))
		return fail("fsync");
	say_since(&began);
	return 0;
}

static int touch(long long bytes)
{
	struct timespec began;
	char *memory;

	clock_gettime(CLOCK_MONOTONIC, &began);
	memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return fail("mmap");
	memset(memory, 1, bytes);
	say_since(&began);
	return memory[bytes - 1] != 1;
}

int main(int argc, char **argv)
{
	memset(block, 'x', sizeof(block));
	for (size_t at = 1023; at < sizeof(block); at += 1024)
		block[at] = '\n';
	if (argc == 4 && strcmp(argv[1], "vsock") == 0)
		return serve(strtoul(argv[2], NULL, 10), atoll(argv[3]));
	if (argc == 3 && strcmp(argv[1], "out") == 0)
		return pour(STDOUT_FILENO, atoll(argv[2])) ? fail("write") : 0;
	if (argc == 3 && strcmp(argv[1], "memset") == 0)
		return touch(atoll(argv[2]));
	if (argc == 4)
		return files(argv[1], argv[2], atoll(argv[3]));
	fputs("usage: see bulk.c\n", stderr);
	return 2;
}
