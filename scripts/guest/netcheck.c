/* netcheck: asks whether packets pass, for tests of security groups and networks.
 *
 *   netcheck serve tcp|udp PORT             answer every caller with "HOSTNAME saw ADDRESS", for good
 *   netcheck probe tcp|udp HOST PORT [SEC]  print the answer; exit 0 answered, 1 silence for SEC (2), 2 refused
 *
 * Busybox has no UDP in its nc, and its exit codes do not tell a refusal from silence.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void fail(const char *what)
{
	int refused = errno == ECONNREFUSED;
	int silent = errno == EAGAIN || errno == EINPROGRESS || errno == ETIMEDOUT;

	fprintf(stderr, "%s: %s\n", what, silent ? "no answer" : strerror(errno));
	exit(refused ? 2 : silent ? 1 : 3);
}

static int answer(char *buf, size_t size, const struct sockaddr_in *peer)
{
	char host[65] = "?";

	gethostname(host, sizeof host - 1);
	return snprintf(buf, size, "%s saw %s\n", host, inet_ntoa(peer->sin_addr));
}

static void serve(int type, int port)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)}, peer;
	int one = 1, s = socket(AF_INET, type, 0);
	char buf[256];

	signal(SIGPIPE, SIG_IGN);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(s, (void *)&addr, sizeof addr) < 0 || (type == SOCK_STREAM && listen(s, 16) < 0))
		fail("bind");
	for (;;) {
		socklen_t len = sizeof peer;
		int n;

		if (type == SOCK_DGRAM) {
			if (recvfrom(s, buf, sizeof buf, 0, (void *)&peer, &len) < 0)
				continue;
			n = answer(buf, sizeof buf, &peer);
			sendto(s, buf, n, 0, (void *)&peer, len);
		} else {
			int c = accept(s, (void *)&peer, &len);
			if (c < 0)
				continue;
			n = answer(buf, sizeof buf, &peer);
			if (write(c, buf, n) < 0)
				perror("write");
			close(c);
		}
	}
}

static void probe(int type, const char *host, int port, int seconds)
{
	struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons(port)};
	struct timeval limit = {.tv_sec = seconds};
	int n, s = socket(AF_INET, type, 0);
	char buf[256];

	if (!inet_aton(host, &addr.sin_addr)) {
		fprintf(stderr, "%s: not an address\n", host);
		exit(3);
	}
	setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* also bounds connect */
	setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	if (connect(s, (void *)&addr, sizeof addr) < 0)
		fail("connect");
	if (type == SOCK_DGRAM && send(s, "?", 1, 0) < 0)
		fail("send");
	n = recv(s, buf, sizeof buf, 0);
	if (n < 0)
		fail("receive");
	fwrite(buf, 1, n, stdout);
	exit(0);
}

int main(int argc, char **argv)
{
	if (argc >= 4) {
		int type = strcmp(argv[2], "udp") ? SOCK_STREAM : SOCK_DGRAM;

		if (!strcmp(argv[1], "serve"))
			serve(type, atoi(argv[3]));
		if (!strcmp(argv[1], "probe") && argc >= 5)
			probe(type, argv[3], atoi(argv[4]), argc > 5 ? atoi(argv[5]) : 2);
	}
	fprintf(stderr, "usage: netcheck serve tcp|udp PORT | probe tcp|udp HOST PORT [SECONDS]\n");
	return 64;
}
