/* Says its second argument to the Unix socket that is its first, and prints the answer to its end. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int talk = socket(AF_UNIX, SOCK_STREAM, 0);
	char buffer[4096];
	ssize_t length;

	if (argc != 3 || talk < 0 || strlen(argv[1]) >= sizeof to.sun_path)
		return 1;
	strcpy(to.sun_path, argv[1]);
	if (connect(talk, (struct sockaddr *)&to, sizeof to)) {
		perror("connect");
		return 1;
	}
	if (write(talk, argv[2], strlen(argv[2])) < 0 || shutdown(talk, SHUT_WR))
		return 1;
	while ((length = read(talk, buffer, sizeof buffer)) > 0)
		if (write(1, buffer, length) < 0)
			return 1;
	return length < 0;
}
