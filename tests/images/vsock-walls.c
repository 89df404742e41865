/*
 * Tries every way to sockets of AF_VSOCK and AF_ALG, and what one of AF_VSOCK could reach:
 *   vsock-walls make            makes sockets by socket(2), socketpair(2), io_uring and 32-bit socketcall(2)
 *   vsock-walls talk CID PORT   connects, says 64 bytes, and prints how many came back
 *   vsock-walls open PATH       opens a device node
 * Each line of output is a way and its result: "made", or the name of the error.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Debian 12's headers are older than the guest's kernel (linux/io_uring.h of 5.19). */
#define OP_SOCKET 45

static void tell(const char *way, int type, long result)
{
	printf("%s %d %s\n", way, type, result >= 0 ? "made" : strerrorname_np((int)-result));
	fflush(stdout);
	if (result > 2)
		close((int)result);
}

static long by_uring(int family, int type)
{
	struct io_uring_params given = { 0 };
	long ring = syscall(SYS_io_uring_setup, 1, &given), result = -EIO;
	struct io_uring_sqe *entry;
	char *submitted, *completed;
	size_t submitted_size, completed_size;

	if (ring < 0)
		return -errno;
	submitted_size = given.sq_off.array + given.sq_entries * sizeof(uint32_t);
	completed_size = given.cq_off.cqes + given.cq_entries * sizeof(struct io_uring_cqe);
	submitted = mmap(NULL, submitted_size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)ring, IORING_OFF_SQ_RING);
	completed = mmap(NULL, completed_size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)ring, IORING_OFF_CQ_RING);
	entry = mmap(NULL, sizeof *entry, PROT_READ | PROT_WRITE, MAP_SHARED, (int)ring, IORING_OFF_SQES);
	if (submitted == MAP_FAILED || completed == MAP_FAILED || entry == MAP_FAILED)
		return -errno;
	memset(entry, 0, sizeof *entry);
	entry->opcode = OP_SOCKET;
	entry->fd = family;
	entry->off = (uint64_t)type;
	((uint32_t *)(submitted + given.sq_off.array))[0] = 0;
	__atomic_store_n((uint32_t *)(submitted + given.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, (int)ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1)
		result = ((struct io_uring_cqe *)(completed + given.cq_off.cqes))->res;
	close((int)ring);
	return result;
}

/* socketcall(2) of 32-bit programs, which any program can call. Its arguments are below 4 GiB. */
static long by_socketcall(int family, int type)
{
	uint32_t *arguments = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	long result;

	if (arguments == MAP_FAILED)
		return -errno;
	arguments[0] = (uint32_t)family;
	arguments[1] = (uint32_t)type;
	arguments[2] = 0;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(102L), "b"(1L), "c"((long)(uintptr_t)arguments)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

/* socket(2) of 32-bit programs by its own number. */
static long by_socket_of_32_bits(int family, int type)
{
	long result;

	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(359L), "b"((long)family), "c"((long)type), "d"(0L)
			 : "memory", "r8", "r9", "r10", "r11");
	return (int)result;
}

static void make(int family, const char *prefix)
{
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
	char way[64];
	int pair[2];

	for (unsigned i = 0; i < sizeof types / sizeof *types; i++) {
		int type = types[i];
#define WAY(name, result)                                                   \
	do {                                                                \
		long r = (result);                                          \
		snprintf(way, sizeof way, "%s-%s", prefix, name);           \
		tell(way, type, r);                                         \
	} while (0)
		WAY("socket", socket(family, type, 0) < 0 ? -errno : 0);
		WAY("socketpair", socketpair(family, type, 0, pair) < 0 ? -errno : 0);
		WAY("io_uring", by_uring(family, type));
		WAY("socketcall", by_socketcall(family, type));
		WAY("socket32", by_socket_of_32_bits(family, type));
	}
}

static int talk(unsigned cid, unsigned port)
{
	struct sockaddr_vm to = { .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port };
	int made = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct pollfd ready = { .fd = made, .events = POLLIN };
	char bytes[64] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";
	char answer[4096];
	long heard = 0, length;

	if (made < 0) {
		printf("talk socket %s\n", strerrorname_np(errno));
		return 0;
	}
	if (connect(made, (struct sockaddr *)&to, sizeof to)) {
		printf("talk connect %s\n", strerrorname_np(errno));
		return 0;
	}
	if (send(made, bytes, sizeof bytes, MSG_NOSIGNAL) < 0) {
		printf("talk send %s\n", strerrorname_np(errno));
		return 0;
	}
	/* To the end, or to a silence that is long for any answer. */
	while (poll(&ready, 1, 120000) == 1 && (length = read(made, answer, sizeof answer)) > 0)
		heard += length;
	printf("talk heard %ld\n", heard);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "make")) {
		make(AF_VSOCK, "vsock");
		make(AF_ALG, "alg");
		/* That a way is there at all. */
		make(AF_INET, "inet");
		return 0;
	}
	if (argc == 4 && !strcmp(argv[1], "talk"))
		return talk((unsigned)strtoul(argv[2], NULL, 0), (unsigned)strtoul(argv[3], NULL, 0));
	if (argc == 3 && !strcmp(argv[1], "open")) {
		int opened = open(argv[2], O_RDWR);
		tell("open", 0, opened < 0 ? -errno : opened);
		return 0;
	}
	return 1;
}
