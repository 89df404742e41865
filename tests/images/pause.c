/* Waits until it is told to end: all that the pause images' program does where there is no process
 * namespace to hold open. */
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

static void end(int signal)
{
	(void)signal;
	_exit(0);
}

int main(void)
{
	signal(SIGINT, end);
	signal(SIGTERM, end);
	for (;;)
		pause();
}
