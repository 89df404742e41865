/* Watches a directory with inotify and prints a file of it: at the beginning, and whenever something
 * called ..data has been moved into the directory. Each event that comes before is told too. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

static int show(const char *path)
{
	char text[4096];
	int file = open(path, O_RDONLY);
	ssize_t length = file < 0 ? -1 : read(file, text, sizeof text);

	if (length < 0)
		return 1;
	close(file);
	printf("%.*s\n", (int)length, text);
	return fflush(stdout);
}

int main(int argc, char **argv)
{
	char path[4096], buffer[65536] __attribute__((aligned(8)));
	int events = inotify_init1(IN_CLOEXEC);

	if (argc != 3 || events < 0 ||
	    inotify_add_watch(events, argv[1], IN_CREATE | IN_MOVED_TO | IN_DELETE) < 0)
		return 1;
	snprintf(path, sizeof path, "%s/%s", argv[1], argv[2]);
	if (show(path))
		return 1;
	for (;;) {
		ssize_t length = read(events, buffer, sizeof buffer);
		char *at = buffer;

		if (length <= 0)
			return 1;
		while (at < buffer + length) {
			struct inotify_event *event = (struct inotify_event *)at;

			at += sizeof *event + event->len;
			if (event->mask & IN_Q_OVERFLOW)
				return 2;
			if (!event->len)
				continue;
			fprintf(stderr, "%s %s\n",
				event->mask & IN_CREATE ? "made" :
				event->mask & IN_DELETE ? "removed" : "moved",
				event->name);
			if (event->mask & IN_MOVED_TO && !strcmp(event->name, "..data") &&
			    show(path))
				return 1;
		}
	}
}
