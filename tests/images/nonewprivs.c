/* Says as whom it runs. Its file is set-user-ID root: what no_new_privs is there to defeat. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %u\n", (unsigned)geteuid());
	return 0;
}
