/* Makes the system call whose number is its first argument, with the numbers that follow, and prints
 * the result, or the error's number with a minus. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	long arguments[6] = { 0 };
	long result;

	if (argc < 2 || argc > 8)
		return 1;
	for (int number = 2; number < argc; number++)
		arguments[number - 2] = (long)strtoull(argv[number], NULL, 0);
	result = syscall(strtol(argv[1], NULL, 0), arguments[0], arguments[1], arguments[2],
			 arguments[3], arguments[4], arguments[5]);
	printf("%ld\n", result < 0 ? -(long)errno : result);
	return 0;
}
