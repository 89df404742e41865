/* vsock-source PORT BYTES: the plain copy that exec's throughput is held against. Listens on a vsock
 * port and writes so many bytes to whoever connects, 64 KiB at a time; then the next. */
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	static char block[64 << 10];
	struct sockaddr_vm at = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (argc != 3)
		return 2;
	at.svm_port = strtoul(argv[1], NULL, 10);
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 1)) {
		perror("vsock");
		return 1;
	}
	puts("listening");
	fflush(stdout);
	for (;;) {
		long long left = atoll(argv[2]);
		int to = accept(listener, NULL, NULL);

		while (to >= 0 && left > 0) {
			ssize_t n = write(to, block, left < (long long)sizeof(block) ? left : sizeof(block));

			if (n <= 0)
				break;
			left -= n;
		}
		close(to);
	}
}
