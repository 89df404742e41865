/* Writes a file by a shared mapping and by a descriptor that appends, in turns, as a database does that
 * keeps an index in front of its log; then reads it back. Its argument is the file. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define HEAD 4096
#define ROUNDS 200

static int fail(const char *what)
{
	perror(what);
	return 1;
}

int main(int argc, char **argv)
{
	static char expected[HEAD + ROUNDS * 8], found[sizeof(expected) + 1];
	size_t end = HEAD;
	int file, log;
	char *head;

	if (argc != 2)
		return 2;
	file = open(argv[1], O_RDWR | O_CREAT | O_TRUNC, 0644);
	/* Opened last: of several the kernel takes this one to write pages by. */
	log = open(argv[1], O_WRONLY | O_APPEND);
	if (file < 0 || log < 0 || ftruncate(file, HEAD) < 0)
		return fail("making the file");
	head = mmap(NULL, HEAD, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (head == MAP_FAILED)
		return fail("mapping it");
	for (int round = 0; round < ROUNDS; round++) {
		char line[9];

		snprintf(line, sizeof(line), "%07d\n", round);
		memcpy(head + round * 16, line, 8);
		memcpy(expected + round * 16, line, 8);
		if (write(log, line, 8) != 8)
			return fail("appending");
		memcpy(expected + end, line, 8);
		end += 8;
		if (round % 7 == 0 && msync(head, HEAD, MS_SYNC) < 0)
			return fail("writing the mapping out");
	}
	if (msync(head, HEAD, MS_SYNC) < 0 || fsync(log) < 0)
		return fail("writing all out");
	if (pread(file, found, sizeof(found), 0) != (ssize_t)end)
		return fail("the length is wrong");
	if (memcmp(found, expected, end) != 0)
		return fail("the content is wrong");
	printf("%zu bytes as written\n", end);
	return 0;
}
