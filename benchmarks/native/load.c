/* A load generator: kept-alive connections, each asking again as soon as it has its answer (closed loop).
 *
 *   load MODE ADDRESS REQUEST CONNECTIONS SECONDS [MANIFESTS [PAUSE]]
 *
 * MODE       http; frame (docs/frames.md); or raw:N, an answer of N bytes
 * ADDRESS    unix:PATH or tcp:HOST:PORT
 * REQUEST    file with the bytes that are sent each time
 * MANIFESTS  file with a digest a line (64 hexadecimal digits), oldest first: every answer has to name one of them, and
 *            on one connection none may come after a newer one; an empty file checks nothing
 * PAUSE      microseconds between an answer and the next request of a connection; 0 when not given
 *
 * Runs for SECONDS or until SIGTERM, then prints one JSON object. One thread: a single connection blocks, several are
 * polled. An answer that is not HTTP 200, or no frame of tensors, has failed; so has a connection that ends early, which
 * is made again; an answer that announces the end of its connection is no loss of it. Latencies are in microseconds; "silence" is the longest time in which no good answer came at all. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS_MAX 256
#define ANSWER_BYTES_MAX (8u << 20)
#define LATENCIES_MAX (16u << 20)
#define MANIFESTS_MAX 4096

enum mode { HTTP, FRAME, RAW };
struct connection {
  int fd;
  size_t sent, have, want; /* want: whole answer, 0 while unknown */
  uint64_t begun, due; /* due: when the next request may go */
  int newest; /* ordinal of the newest manifest that answered here */
  unsigned char *answer;
};

static enum mode mode;
static size_t raw_bytes, request_bytes;
static char *request;
static struct sockaddr_storage address;
static socklen_t address_bytes;
static int family, manifest_count;
static char manifests[MANIFESTS_MAX][65];
static uint32_t *latencies; /* tenths of a microsecond */
static size_t latency_count;
static uint64_t answers, failed, closes, resets, refused, backwards, unknown, silence, last_answer, first_failure_status;
static uint64_t pause_ns;
static volatile sig_atomic_t is_over;

static void on_term(int number) {
  (void)number;
  is_over = 1;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int open_connection(struct connection *c, int is_blocking) {
  int one = 1;
  c->fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(c->fd, (struct sockaddr *)&address, address_bytes)) {
    refused++;
    close(c->fd);
    c->fd = -1;
    return -1;
  }
  if (family == AF_INET) setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (!is_blocking) fcntl(c->fd, F_SETFL, O_NONBLOCK);
  c->sent = c->have = c->want = 0;
  c->newest = -1;
  return 0;
}

static const unsigned char *find_header(const unsigned char *head, size_t size, const char *name) {
  size_t length = strlen(name);
  for (const unsigned char *p = head, *end = head + size; p + length + 1 < end; p++)
    if (p[-1 + (p == head)] == '\n' || p == head)
      if (!strncasecmp((const char *)p, name, length) && p[length] == ':') {
        p += length + 1;
        while (*p == ' ') p++;
        return p;
      }
  return NULL;
}

/* Whether the answer is whole; sets want once it can be told. */
static int is_whole(struct connection *c) {
  if (!c->want) {
    if (mode == RAW) {
      c->want = raw_bytes;
    } else if (mode == FRAME && c->have >= 64) {
      uint32_t payload;
      memcpy(&payload, c->answer + 8, 4);
      c->want = 64 + (size_t)payload;
    } else if (mode == HTTP) {
      unsigned char *end = memmem(c->answer, c->have, "\r\n\r\n", 4);
      if (end) {
        size_t head = (size_t)(end - c->answer) + 4;
        const unsigned char *length = find_header(c->answer, head, "content-length");
        c->want = head + (length ? strtoul((const char *)length, NULL, 10) : 0);
      }
    }
    if (c->want > ANSWER_BYTES_MAX) return -1;
  }
  return c->want && c->have >= c->want;
}

static void check_manifest(struct connection *c) {
  char hex[65];
  if (mode == FRAME) {
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", c->answer[32 + i]);
  } else {
    const unsigned char *value = find_header(c->answer, c->want, "lighterman-manifest");
    if (!value || strncmp((const char *)value, "sha256:", 7)) {
      unknown++;
      return;
    }
    memcpy(hex, value + 7, 64);
    hex[64] = 0;
  }
  int from = c->newest < 0 ? 0 : c->newest;
  for (int step = 0; step < manifest_count; step++) {
    int i = (from + step) % manifest_count;
    if (memcmp(hex, manifests[i], 64)) continue;
    if (i < c->newest) backwards++;
    if (i > c->newest) c->newest = i;
    return;
  }
  unknown++;
}

static void take_answer(struct connection *c) {
  uint64_t now = now_ns();
  int is_good = mode == RAW || (mode == FRAME ? c->answer[4] == 0x82 : !memcmp(c->answer + 8, " 200", 4));
  if (is_good) {
    answers++;
    if (latency_count < LATENCIES_MAX) latencies[latency_count++] = (uint32_t)((now - c->begun) / 100);
    if (now - last_answer > silence) silence = now - last_answer;
    last_answer = now;
    if (manifest_count) check_manifest(c);
  } else {
    failed++;
    if (!first_failure_status) first_failure_status = mode == FRAME ? c->answer[4] : strtoul((char *)c->answer + 9, NULL, 10);
  }
  /* An answer that says so is the last one of its connection: no loss, but counted. */
  const unsigned char *last = mode == HTTP ? find_header(c->answer, c->want, "connection") : NULL;
  if ((last && !strncasecmp((const char *)last, "close", 5)) || (mode == FRAME && c->answer[5] & 2)) {
    closes++;
    close(c->fd);
    c->fd = -1;
  }
  c->sent = c->have = c->want = 0;
  c->due = pause_ns ? now + pause_ns : 0;
}

static void lose(struct connection *c) {
  resets++;
  close(c->fd);
  c->fd = -1;
}

/* Sends what is left of the request; -1 when the connection is lost. */
static int send_request(struct connection *c) {
  if (!c->sent) c->begun = now_ns();
  while (c->sent < request_bytes) {
    ssize_t count = send(c->fd, request + c->sent, request_bytes - c->sent, MSG_NOSIGNAL);
    if (count < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    c->sent += (size_t)count;
  }
  return 0;
}

/* Receives what is there; -1 when the connection is lost, 1 after an answer. */
static int receive(struct connection *c) {
  for (;;) {
    ssize_t count = recv(c->fd, c->answer + c->have, ANSWER_BYTES_MAX - c->have, 0);
    if (count < 0) return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (!count) return -1;
    c->have += (size_t)count;
    int whole = is_whole(c);
    if (whole < 0) return -1;
    if (whole) {
      take_answer(c);
      return 1;
    }
  }
}

static void run_one(struct connection *c, uint64_t end) {
  while (!is_over && now_ns() < end) {
    if (c->fd < 0 && open_connection(c, 1)) {
      usleep(1000);
      continue;
    }
    if (send_request(c) < 0 || receive(c) < 0) lose(c);
  }
}

static void run_many(struct connection *all, int count, uint64_t end) {
  struct pollfd polled[CONNECTIONS_MAX];
  uint64_t now;
  while (!is_over && (now = now_ns()) < end) {
    for (int i = 0; i < count; i++) {
      struct connection *c = &all[i];
      if (c->fd >= 0 && c->due > now) { /* POLLIN shows that the server closed it meanwhile */
        polled[i] = (struct pollfd){.fd = c->fd, .events = POLLIN};
        continue;
      }
      if ((c->fd < 0 && open_connection(c, 0)) || (!c->sent && send_request(c) < 0)) {
        if (c->fd >= 0) lose(c);
        polled[i] = (struct pollfd){.fd = -1};
        continue;
      }
      polled[i] = (struct pollfd){.fd = c->fd, .events = (short)(POLLIN | (c->sent < request_bytes ? POLLOUT : 0))};
    }
    poll(polled, (nfds_t)count, pause_ns ? 1 : 10);
    for (int i = 0; i < count; i++) {
      struct connection *c = &all[i];
      if (c->fd < 0 || !polled[i].revents) continue;
      if (c->sent < request_bytes && send_request(c) < 0)
        lose(c);
      else if (polled[i].revents & (POLLIN | POLLHUP | POLLERR) && receive(c) < 0)
        lose(c);
    }
  }
}

static int by_size(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

static double quantile(double share) {
  if (!latency_count) return 0;
  size_t place = (size_t)(share * (double)latency_count);
  return latencies[place < latency_count ? place : latency_count - 1] / 10.0;
}

static int read_address(char *text) {
  if (!strncmp(text, "unix:", 5)) {
    struct sockaddr_un *a = (struct sockaddr_un *)&address;
    a->sun_family = (sa_family_t)(family = AF_UNIX);
    strncpy(a->sun_path, text + 5, sizeof a->sun_path - 1);
    address_bytes = sizeof *a;
    return 0;
  }
  char *colon = strrchr(text, ':');
  if (strncmp(text, "tcp:", 4) || !colon) return -1;
  struct sockaddr_in *a = (struct sockaddr_in *)&address;
  *colon = 0;
  a->sin_family = (sa_family_t)(family = AF_INET);
  a->sin_port = htons((unsigned short)atoi(colon + 1));
  address_bytes = sizeof *a;
  return inet_pton(AF_INET, text + 4, &a->sin_addr) == 1 ? 0 : -1;
}

int main(int argc, char **argv) {
  static struct connection all[CONNECTIONS_MAX];
  if (argc < 6 || read_address(argv[2])) return 2;
  if (!strncmp(argv[1], "raw:", 4)) {
    mode = RAW;
    raw_bytes = strtoul(argv[1] + 4, NULL, 10);
  } else {
    mode = strcmp(argv[1], "frame") ? HTTP : FRAME;
  }
  FILE *file = fopen(argv[3], "rb");
  if (!file) return 2;
  fseek(file, 0, SEEK_END);
  request_bytes = (size_t)ftell(file);
  rewind(file);
  request = malloc(request_bytes);
  if (fread(request, 1, request_bytes, file) != request_bytes) return 2;
  fclose(file);
  int count = atoi(argv[4]);
  if (count < 1 || count > CONNECTIONS_MAX) return 2;
  if (argc > 6) {
    if (!(file = fopen(argv[6], "r"))) return 2;
    while (manifest_count < MANIFESTS_MAX && fscanf(file, "%64s", manifests[manifest_count]) == 1) manifest_count++;
    fclose(file);
  }
  if (argc > 7) pause_ns = strtoul(argv[7], NULL, 10) * 1000;
  latencies = malloc(LATENCIES_MAX * sizeof *latencies);
  signal(SIGTERM, on_term);
  signal(SIGPIPE, SIG_IGN);
  for (int i = 0; i < count; i++) {
    all[i].answer = malloc(ANSWER_BYTES_MAX);
    if (open_connection(&all[i], count == 1 && !pause_ns)) return 1;
  }
  uint64_t begun = last_answer = now_ns();
  uint64_t end = begun + (uint64_t)(atof(argv[5]) * 1e9);
  if (count == 1 && !pause_ns)
    run_one(&all[0], end);
  else
    run_many(all, count, end);
  double seconds = (double)(now_ns() - begun) / 1e9;
  qsort(latencies, latency_count, sizeof *latencies, by_size);
  printf("{\"answers\": %lu, \"failed\": %lu, \"failure\": %lu, \"closes\": %lu, \"resets\": %lu, \"refused\": %lu, \"backwards\": %lu, "
         "\"unknown\": %lu, \"seconds\": %.4f, \"p50_us\": %.1f, \"p90_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, "
         "\"silence_us\": %.1f}\n",
         answers, failed, first_failure_status, closes, resets, refused, backwards, unknown, seconds, quantile(0.5),
         quantile(0.9), quantile(0.99), quantile(1), (double)silence / 1e3);
  return 0;
}
