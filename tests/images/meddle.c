/*
 * A container's root that lies in wait for processes on their way into its PID namespace: as long as
 * one is still called as the agent's launcher is, it has not executed its command.
 *   meddle look   tries to take descriptors from each, and to look into it
 *   meddle stop   stops each
 *   meddle swap A B   has nothing to do with them: the two names change places without end
 * A line of output per process and success: "seen PID", "got WHAT PID". Ends by a signal.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int on_its_way(int pid)
{
	char path[64], name[32] = "";
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/comm", pid);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return 0;
	if (read(fd, name, sizeof(name) - 1) < 0)
		name[0] = 0;
	close(fd);
	return strncmp(name, "bulkhead-launch", 15) == 0;
}

/* What came after execve was the command's own, and is no theft. */
static void tell(const char *what, int pid)
{
	if (on_its_way(pid))
		printf("got %s %d\n", what, pid);
}

static void look(int pid)
{
	char path[64], target[256];
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0), fd;

	for (int number = 0; number < 32 && pidfd >= 0; number++) {
		fd = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0);
		if (fd >= 0) {
			tell("descriptor", pid);
			close(fd);
		}
	}
	if (pidfd >= 0)
		close(pidfd);
	snprintf(path, sizeof(path), "/proc/%d/exe", pid);
	if (readlink(path, target, sizeof(target)) > 0)
		tell("program", pid);
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	if (fd >= 0) {
		tell("memory", pid);
		close(fd);
	}
	/* Their numbers may be listed; what they are may not be seen, nor opened once more. */
	for (int number = 0; number < 32; number++) {
		snprintf(path, sizeof(path), "/proc/%d/fd/%d", pid, number);
		if (readlink(path, target, sizeof(target)) > 0)
			tell("link", pid);
		fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
		if (fd >= 0) {
			tell("file", pid);
			close(fd);
		}
	}
}

/* What somebody has made at the new name meanwhile goes out of the way. */
static void move(const char *from, const char *to)
{
	static unsigned count;
	char away[256];

	while (rename(from, to) != 0 && errno != ENOENT) {
		snprintf(away, sizeof(away), "%s.was%u", to, count++);
		rename(to, away);
	}
}

/* Not by RENAME_EXCHANGE, which not every file system of a node has. */
static void swap(const char *one, const char *other)
{
	char away[256];

	snprintf(away, sizeof(away), "%s.away", one);
	for (;;) {
		move(one, away);
		move(other, one);
		move(away, other);
	}
}

int main(int argc, char **argv)
{
	int stop = argc > 1 && strcmp(argv[1], "stop") == 0, last = 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc > 3 && strcmp(argv[1], "swap") == 0)
		swap(argv[2], argv[3]);
	for (;;) {
		DIR *proc = opendir("/proc");
		struct dirent *entry;

		while (proc && (entry = readdir(proc))) {
			int pid = atoi(entry->d_name);

			if (pid <= 1 || !on_its_way(pid))
				continue;
			if (stop)
				kill(pid, SIGSTOP);
			else
				look(pid);
			if (pid != last)
				printf("seen %d\n", pid);
			last = pid;
		}
		if (proc)
			closedir(proc);
	}
}
