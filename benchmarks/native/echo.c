/* The floor of any local server: reads a request of a fixed size, writes an answer of a fixed size, does nothing else.
 *
 *   echo ADDRESS IN OUT        ADDRESS is unix:PATH or tcp:PORT (of 127.0.0.1); sizes in bytes
 *
 * A thread a connection, blocking sockets. Prints a line when it listens; runs until it is killed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static size_t in_bytes, out_bytes;

static void *serve(void *argument) {
  int fd = (int)(long)argument;
  char *in = malloc(in_bytes), *out = calloc(1, out_bytes);
  for (;;) {
    size_t have = 0;
    while (have < in_bytes) {
      ssize_t count = read(fd, in + have, in_bytes - have);
      if (count <= 0) goto end;
      have += (size_t)count;
    }
    for (size_t sent = 0; sent < out_bytes;) {
      ssize_t count = write(fd, out + sent, out_bytes - sent);
      if (count <= 0) goto end;
      sent += (size_t)count;
    }
  }
end:
  free(in);
  free(out);
  close(fd);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  in_bytes = strtoul(argv[2], NULL, 10);
  out_bytes = strtoul(argv[3], NULL, 10);
  int is_unix = strncmp(argv[1], "unix:", 5) == 0, one = 1, listener;
  if (is_unix) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, argv[1] + 5, sizeof address.sun_path - 1);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) return 1;
  } else {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    address.sin_port = htons((unsigned short)atoi(argv[1] + 4));
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address)) return 1;
  }
  if (listen(listener, 128)) return 1;
  puts("listening");
  fflush(stdout);
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) continue;
    if (!is_unix) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    pthread_t thread;
    pthread_create(&thread, NULL, serve, (void *)(long)fd);
    pthread_detach(thread);
  }
}
