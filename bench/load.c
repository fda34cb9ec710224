/* The load of bench/relay.py: clients, servers and a SOCKS server that must not be the limit themselves.

usage: load server ADDRESS COUNTER             ports from 9001: a sink, a source, echoes
       load socks PORT                         a SOCKS5 server on 127.0.0.1 and on all other addresses
       load up|down ADDRESS COUNTER FLOWS WARM SECONDS
       load cps ADDRESS AT_ONCE SECONDS        connect, echo, close
       load rtt ADDRESS SECONDS                one echo after the other on one connection
       load udp ADDRESS AT_ONCE OCTETS SECONDS so many datagrams under way at once, which are echoed
       load idle ADDRESS COUNT                 connect, echo, hold until standard input ends
       load first ADDRESS SECONDS              when (CLOCK_MONOTONIC, s) an echo first came back
LOAD_SOCKS=ADDRESS:PORT makes the clients go through a SOCKS server themselves.

COUNTER is a file that the server and the client both map: it holds the octets that the sink took, since
what a relay has swallowed but not yet carried does not count. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { SINK = 9001, SOURCE, ECHO, ECHOES = 8, BACKLOG = 4096, EVENTS = 256, OCTETS = 64 };
enum { CHUNK = 256 << 10, PIPE = 1 << 20, GIVE_UP_S = 5 };

static char chunk[CHUNK];
static atomic_ulong *sunk;

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int must(int result, const char *what)
{
    return result < 0 ? die(what), -1 : result;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void watch(int poll, int fd, uint32_t events, void *what)
{
    struct epoll_event event = {.events = events, .data.ptr = what};
    must(epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
}

static void map_counter(const char *path)
{
    int fd = must(open(path, O_RDWR | O_CREAT, 0600), path);
    must(ftruncate(fd, sizeof *sunk), path);
    if ((sunk = mmap(NULL, sizeof *sunk, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)) == MAP_FAILED)
        die(path);
}

static struct sockaddr_in address(const char *text, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, text, &a.sin_addr) != 1)
        errno = EINVAL, die(text);
    return a;
}

static int listen_at(const char *text, int port)
{
    struct sockaddr_in a = address(text, port);
    int one = 1, fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    must(bind(fd, (struct sockaddr *)&a, sizeof a), "bind");
    must(listen(fd, BACKLOG), "listen");
    return fd;
}

/* One process a processor; two at least, since each may hold only so many descriptors. */
static void spread(void)
{
    long workers = sysconf(_SC_NPROCESSORS_ONLN);
    for (workers = workers < 2 ? 2 : workers > 4 ? 4 : workers; workers > 1; workers--)
        if (must(fork(), "fork") == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            return;
        }
}

/* ---- the server --------------------------------------------------------------------------------------- */

enum { DATAGRAMS = ECHOES + 2 }; /* the index behind those of the TCP ports */

static int bind_at(const char *text, int port)
{
    struct sockaddr_in a = address(text, port);
    int one = 1, room = 4 << 20, fd = must(socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0), "socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    must(bind(fd, (struct sockaddr *)&a, sizeof a), "bind");
    return fd;
}

static void echo_datagrams(int fd)
{
    struct sockaddr_in from;
    for (int i = 0; i < EVENTS; i++) {
        socklen_t size = sizeof from;
        ssize_t n = recvfrom(fd, chunk, CHUNK, 0, (struct sockaddr *)&from, &size);
        if (n < 0)
            return;
        sendto(fd, chunk, n, 0, (struct sockaddr *)&from, size);
    }
}

static void serve(const char *text)
{
    struct epoll_event events[EVENTS];
    struct { int listener, kind; } ports[ECHOES + 3];
    spread();
    int poll = must(epoll_create1(0), "epoll_create1");
    uintptr_t tag; /* a listener: its index; else 16 + kind + descriptor * 16 */
    for (int i = 0; i < ECHOES + 2; i++) {
        ports[i].kind = SINK + i > ECHO ? ECHO : SINK + i;
        watch(poll, ports[i].listener = listen_at(text, SINK + i), EPOLLIN, (void *)(uintptr_t)i);
    }
    ports[DATAGRAMS].kind = DATAGRAMS;
    watch(poll, ports[DATAGRAMS].listener = bind_at(text, ECHO), EPOLLIN, (void *)(uintptr_t)DATAGRAMS);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            if ((tag = (uintptr_t)events[i].data.ptr) == DATAGRAMS) {
                echo_datagrams(ports[tag].listener);
                continue;
            }
            if (tag < 16) {
                for (int fd; (fd = accept4(ports[tag].listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                    int kind = ports[tag].kind;
                    uintptr_t conn = 16 * (fd + 1) + (kind - SINK);
                    watch(poll, fd, (kind == SOURCE ? EPOLLOUT | EPOLLRDHUP : EPOLLIN), (void *)conn);
                }
                continue;
            }
            int fd = tag / 16 - 1, kind = SINK + tag % 16;
            ssize_t n;
            if (kind == SINK) {
                if ((n = recv(fd, NULL, 64 << 20, MSG_TRUNC)) > 0)
                    atomic_fetch_add_explicit(sunk, n, memory_order_relaxed);
            } else if (kind == SOURCE) {
                n = events[i].events & EPOLLRDHUP ? 0 : send(fd, chunk, CHUNK, MSG_NOSIGNAL);
            } else if ((n = recv(fd, chunk, CHUNK, 0)) > 0) {
                n = send(fd, chunk, n, MSG_NOSIGNAL);
            }
            if (n == 0 || (n < 0 && errno != EAGAIN))
                close(fd);
        }
    }
}

/* ---- the SOCKS server --------------------------------------------------------------------------------- */

struct pair;
struct side {
    struct pair *pair;
    int fd, pipe[2]; /* what came from fd waits in the pipe, which is borrowed while it holds something */
    size_t held;
    bool ended, done;
};
struct pair {
    struct side side[2]; /* the client, the server */
    enum { HELLO, PASSWORD, REQUEST, CONNECTING, OPEN, DEAD } state;
    size_t have;
    unsigned char said[600];
    struct pair *next;
};

static int spare[4096][2], spares;
static struct pair *dead;

static void borrow(struct side *from)
{
    if (spares) {
        memcpy(from->pipe, spare[--spares], sizeof from->pipe);
        return;
    }
    must(pipe2(from->pipe, O_NONBLOCK), "pipe2");
    fcntl(from->pipe[1], F_SETPIPE_SZ, PIPE);
}

static void give_back(struct side *from)
{
    if (from->held || spares == sizeof spare / sizeof *spare) {
        close(from->pipe[0]), close(from->pipe[1]);
    } else {
        memcpy(spare[spares++], from->pipe, sizeof from->pipe);
    }
    from->pipe[0] = -1;
}

static void bury(struct pair *pair)
{
    for (int i = 0; i < 2; i++) {
        if (pair->side[i].pipe[0] >= 0)
            give_back(&pair->side[i]);
        if (pair->side[i].fd >= 0)
            close(pair->side[i].fd);
    }
    pair->state = DEAD, pair->next = dead, dead = pair; /* more events of it may wait in this batch */
}

/* Carry what came from one side. False: the connection is broken. */
static bool carry(int poll, struct side *from, struct side *to)
{
    for (int rounds = 0; !from->done; rounds++) {
        if (rounds == 32) { /* others want their turn; a changed registration tells again what is ready */
            struct epoll_event again = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = from};
            return epoll_ctl(poll, EPOLL_CTL_MOD, from->fd, &again) == 0;
        }
        ssize_t n;
        if (!from->held && !from->ended) {
            if (from->pipe[0] < 0)
                borrow(from);
            n = splice(from->fd, NULL, from->pipe[1], NULL, PIPE, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (n < 0 && errno != EAGAIN)
                return false;
            if (n < 0)
                break;
            from->held = n, from->ended = n == 0;
        }
        if (from->held) {
            n = splice(from->pipe[0], NULL, to->fd, NULL, from->held, SPLICE_F_MOVE | SPLICE_F_NONBLOCK);
            if (n < 0)
                return errno == EAGAIN;
            from->held -= n;
        }
        if (from->ended && !from->held)
            shutdown(to->fd, SHUT_WR), from->done = true;
    }
    if (from->pipe[0] >= 0)
        give_back(from);
    return true;
}

static bool answer(struct pair *pair, const void *octets, size_t length, size_t taken, int state)
{
    memmove(pair->said, pair->said + taken, pair->have -= taken);
    pair->state = state;
    return send(pair->side[0].fd, octets, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static bool connect_to(int poll, struct pair *pair, int type, const unsigned char *host, size_t length, int port)
{
    char text[256] = "", service[8];
    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *found;
    if (type == 3)
        memcpy(text, host, length);
    else
        inet_ntop(type == 4 ? AF_INET6 : AF_INET, host, text, sizeof text);
    snprintf(service, sizeof service, "%d", port);
    if (getaddrinfo(text, service, &hints, &found))
        return false;
    int one = 1, fd = pair->side[1].fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    bool begun = fd >= 0 && (connect(fd, found->ai_addr, found->ai_addrlen) == 0 || errno == EINPROGRESS);
    freeaddrinfo(found);
    if (begun)
        watch(poll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &pair->side[1]);
    pair->state = CONNECTING;
    return begun;
}

/* RFC 1928 and 1929, as far as they go without asking who it is. */
static bool negotiate(int poll, struct pair *pair)
{
    unsigned char *s = pair->said;
    ssize_t n = recv(pair->side[0].fd, s + pair->have, sizeof pair->said - pair->have, 0);
    if (n <= 0)
        return n < 0 && errno == EAGAIN;
    pair->have += n;
    if (pair->state == HELLO && pair->have >= 2 && pair->have >= 2u + s[1]) {
        bool open = memchr(s + 2, 0, s[1]) != NULL;
        if (!answer(pair, open ? "\5\0" : "\5\2", 2, 2 + s[1], open ? REQUEST : PASSWORD))
            return false;
    }
    if (pair->state == PASSWORD && pair->have >= 2 && pair->have >= 3u + s[1]
        && pair->have >= 3u + s[1] + s[2 + s[1]]) {
        if (!answer(pair, "\1\0", 2, 3 + s[1] + s[2 + s[1]], REQUEST))
            return false;
    }
    if (pair->state == REQUEST && pair->have >= 5) {
        size_t at = s[3] == 3 ? 5 : 4, length = s[3] == 3 ? s[4] : s[3] == 4 ? 16 : 4;
        if (s[1] != 1)
            return false;
        if (s[3] == 3 && length >= 6 && pair->have >= at + length && !memcmp(s + at + length - 6, ".onion", 6)) {
            answer(pair, "\5\xf6\0\1\0\0\0\0\0\0", 10, pair->have, DEAD); /* as Tor, so that it is taken for Tor */
            return false;
        }
        if (pair->have >= at + length + 2) {
            int port = s[at + length] << 8 | s[at + length + 1];
            if (!connect_to(poll, pair, s[3], s + at, length, port))
                return false;
            memmove(s, s + at + length + 2, pair->have -= at + length + 2);
        }
    }
    return true;
}

static bool advance(int poll, struct side *side, uint32_t events)
{
    struct pair *pair = side->pair;
    struct side *client = &pair->side[0], *server = &pair->side[1];
    if (pair->state < CONNECTING)
        return negotiate(poll, pair);
    if (pair->state == CONNECTING) {
        if (side == client || !(events & (EPOLLOUT | EPOLLERR)))
            return !(events & (EPOLLERR | EPOLLHUP));
        if (events & EPOLLERR)
            return false;
        size_t early = pair->have; /* what the client said before it was told that it may */
        if (send(server->fd, pair->said, early, MSG_NOSIGNAL) != (ssize_t)early
            || !answer(pair, "\5\0\0\1\0\0\0\0\0\0", 10, early, OPEN))
            return false;
    }
    return carry(poll, client, server) && carry(poll, server, client) && !(client->done && server->done);
}

static void socks(int port)
{
    struct epoll_event events[EVENTS];
    spread();
    int one = 1, poll = must(epoll_create1(0), "epoll_create1"), listener = listen_at("0.0.0.0", port);
    watch(poll, listener, EPOLLIN, NULL);
    for (;;) {
        int count = epoll_wait(poll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct side *side = events[i].data.ptr;
            if (side) {
                if (side->pair->state != DEAD && !advance(poll, side, events[i].events))
                    bury(side->pair);
                continue;
            }
            for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
                struct pair *pair = calloc(1, sizeof *pair);
                for (int j = 0; j < 2; j++)
                    pair->side[j] = (struct side){.pair = pair, .fd = j ? -1 : fd, .pipe = {-1, -1}};
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                watch(poll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, &pair->side[0]);
            }
        }
        for (struct pair *next; dead; dead = next)
            next = dead->next, free(dead);
    }
}

/* ---- the clients -------------------------------------------------------------------------------------- */

static const char *target;
static struct sockaddr_in proxy;
static unsigned char request[10] = {5, 1, 0, 1};

/* What is said on a connection and how many octets answer it: at a SOCKS server two steps more. */
static struct step { const void *said; size_t length, answered; } steps[3];
static int step_count;

static struct sockaddr_in aim(int port)
{
    struct sockaddr_in to = address(target, port);
    step_count = 0;
    if (proxy.sin_port) {
        memcpy(request + 4, &to.sin_addr, 4), memcpy(request + 8, &to.sin_port, 2);
        steps[step_count++] = (struct step){"\5\1", 3, 2};
        steps[step_count++] = (struct step){request, sizeof request, 10};
    }
    steps[step_count++] = (struct step){chunk, OCTETS, OCTETS};
    return proxy.sin_port ? proxy : to;
}

/* Take one step on a blocking connection. */
static bool say(int fd, const struct step *step)
{
    char heard[OCTETS];
    return send(fd, step->said, step->length, MSG_NOSIGNAL) == (ssize_t)step->length
           && recv(fd, heard, step->answered, MSG_WAITALL) == (ssize_t)step->answered;
}

static int dial(int port)
{
    struct timeval limit = {GIVE_UP_S, 0};
    struct sockaddr_in to = aim(port);
    int fd = must(socket(AF_INET, SOCK_STREAM, 0), "socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    must(connect(fd, (struct sockaddr *)&to, sizeof to), "connect");
    for (int i = 0; i < step_count - 1; i++)
        if (!say(fd, &steps[i]))
            die("socks");
    return fd;
}

static void stream(bool up, int flows, double warm, double seconds)
{
    struct epoll_event events[EVENTS];
    int fds[flows], poll = must(epoll_create1(0), "epoll_create1");
    uint64_t took = 0, begin = 0, before = atomic_load(sunk);
    for (int i = 0; i < flows; i++) {
        fds[i] = dial(up ? SINK : SOURCE);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
        watch(poll, fds[i], up ? EPOLLOUT : EPOLLIN, &fds[i]);
    }
    double start = now() + warm, began = 0, t;
    while ((t = now()) < start + seconds || !began) {
        if (!began && t >= start)
            began = t, begin = up ? atomic_load(sunk) : took;
        int count = epoll_wait(poll, events, EVENTS, 10);
        for (int i = 0; i < count; i++) {
            int fd = *(int *)events[i].data.ptr;
            ssize_t n = up ? send(fd, chunk, CHUNK, MSG_NOSIGNAL) : recv(fd, NULL, 64 << 20, MSG_TRUNC);
            if (n == 0)
                errno = EPIPE;
            if (n == 0 || (n < 0 && errno != EAGAIN))
                die("the connection broke");
            took += n > 0 ? n : 0;
        }
    }
    uint64_t end = up ? atomic_load(sunk) : took;
    for (int i = 0; i < flows; i++) /* what is still on the way would run into the next measurement */
        shutdown(fds[i], SHUT_WR);
    for (int open = flows; open && now() < t + 0.5;) {
        int count = epoll_wait(poll, events, EVENTS, 10);
        for (int i = 0; i < count; i++) {
            struct epoll_event change = {.events = EPOLLIN, .data = events[i].data};
            int fd = *(int *)events[i].data.ptr;
            ssize_t n = events[i].events & ~EPOLLOUT ? recv(fd, NULL, 64 << 20, MSG_TRUNC) : 1;
            if (n <= 0)
                change.events = 0, open--;
            else if (!up)
                took += n;
            epoll_ctl(poll, change.events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, fd, &change);
        }
    }
    uint64_t all = up ? atomic_load(sunk) - before : took;
    printf("{\"gbit\": %.4f, \"octets\": %lu}\n", (end - begin) * 8 / (t - began) / 1e9, all);
}

static uint32_t *took_ns;
static size_t taken, room;

static void note(double seconds)
{
    if (taken == room && !(took_ns = realloc(took_ns, (room = room ? 2 * room : 1 << 16) * sizeof *took_ns)))
        die("realloc");
    took_ns[taken++] = seconds < 4 ? seconds * 1e9 : 4e9;
}

static int by_size(const void *a, const void *b)
{
    return (*(uint32_t *)a > *(uint32_t *)b) - (*(uint32_t *)a < *(uint32_t *)b);
}

static void report(double seconds, long errors)
{
    if (!taken)
        errno = ETIMEDOUT, die("nothing came back");
    qsort(took_ns, taken, sizeof *took_ns, by_size);
    printf("{\"per_s\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %ld, \"count\": %zu}\n",
           taken / seconds, took_ns[taken / 2] / 1e3, took_ns[taken * 99 / 100] / 1e3, errors, taken);
}

struct caller { int fd, step; size_t heard; bool said; double since; };

static void call(int poll, struct caller *caller)
{
    static int port;
    struct sockaddr_in to = aim(ECHO + port++ % ECHOES);
    *caller = (struct caller){.fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket")};
    caller->since = now();
    if (connect(caller->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS)
        die("connect");
    watch(poll, caller->fd, EPOLLIN | EPOLLOUT | EPOLLET, caller);
}

/* 1: all was echoed, 0: not yet, -1: it failed */
static int go_on(struct caller *caller)
{
    char heard[OCTETS];
    for (;;) {
        const struct step *step = &steps[caller->step];
        ssize_t n;
        if (!caller->said) {
            if ((n = send(caller->fd, step->said, step->length, MSG_NOSIGNAL)) < 0)
                return errno == EAGAIN ? 0 : -1;
            caller->said = true;
        }
        if ((n = recv(caller->fd, heard, step->answered - caller->heard, 0)) <= 0)
            return n < 0 && errno == EAGAIN ? 0 : -1;
        if ((caller->heard += n) == step->answered) {
            if (++caller->step == step_count)
                return 1;
            caller->said = false, caller->heard = 0;
        }
    }
}

static void cps(int at_once, double seconds)
{
    struct epoll_event events[EVENTS];
    struct caller callers[at_once];
    int poll = must(epoll_create1(0), "epoll_create1");
    long errors = 0;
    double start = now(), t = start;
    for (int i = 0; i < at_once; i++)
        call(poll, &callers[i]);
    while (t < start + seconds) {
        int count = epoll_wait(poll, events, EVENTS, 100), result;
        for (int i = 0; i < count; i++) {
            struct caller *caller = events[i].data.ptr;
            if (!(result = go_on(caller)))
                continue;
            t = now();
            if (result > 0)
                note(t - caller->since);
            else if (++errors > 1000)
                errno = ECONNRESET, die("too many connections fail");
            close(caller->fd);
            call(poll, caller);
        }
        t = now();
    }
    for (int i = 0; i < at_once; i++) /* one that hangs must not go unnoticed because it never comes back */
        if (t - callers[i].since > 1)
            errors++;
    report(t - start, errors);
}

static void rtt(double seconds)
{
    int one = 1, fd = dial(ECHO);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    double start = now(), t;
    while ((t = now()) < start + seconds) {
        if (!say(fd, &steps[step_count - 1]))
            die("echo");
        note(now() - t);
    }
    report(t - start, 0);
}

/* The datagrams are numbered. One that is not back when nothing came for a while counts as an error. */
static void udp(int at_once, int octets, double seconds)
{
    struct sockaddr_in to = address(target, ECHO);
    struct timeval patience = {.tv_usec = 100000};
    int fd = must(socket(AF_INET, SOCK_DGRAM, 0), "socket"), under_way = 0;
    double sent[EVENTS], start = now(), t = start;
    uint32_t number = 0, back;
    long errors = 0;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    must(connect(fd, (struct sockaddr *)&to, sizeof to), "connect");
    while (t < start + seconds) {
        for (; under_way < at_once; under_way++, number++) {
            memcpy(chunk, &number, sizeof number);
            sent[number % EVENTS] = now();
            send(fd, chunk, octets, 0);
        }
        ssize_t n = recv(fd, chunk, CHUNK, 0);
        t = now();
        if (n < 0) {
            errors += under_way, under_way = 0;
            continue;
        }
        memcpy(&back, chunk, sizeof back);
        if (n != octets || number - back > EVENTS)
            continue;
        note(t - sent[back % EVENTS]);
        under_way -= under_way > 0;
    }
    report(t - start, errors);
}

static void idle(int count)
{
    char end;
    for (int i = 0; i < count; i++) {
        int fd = dial(ECHO + i % ECHOES);
        if (!say(fd, &steps[step_count - 1]))
            die("echo");
    }
    printf("{\"held\": %d}\n", count);
    fflush(stdout);
    while (read(0, &end, 1) > 0)
        ;
}

static void first(double seconds)
{
    enum { AT_ONCE = 64 }; /* a lost SYN is sent again only after a second, so call anew instead */
    struct caller callers[AT_ONCE];
    struct epoll_event event;
    int poll = must(epoll_create1(0), "epoll_create1"), result;
    for (int i = 0; i < AT_ONCE; i++)
        callers[i].fd = -1;
    for (double start = now(), turn = 0; now() < start + seconds;) {
        struct caller *caller = &callers[(int)turn % AT_ONCE];
        if (now() > start + turn * 0.003) {
            struct sockaddr_in to = aim(ECHO);
            close(caller->fd);
            *caller = (struct caller){.fd = must(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), "socket")};
            if (connect(caller->fd, (struct sockaddr *)&to, sizeof to) == 0 || errno == EINPROGRESS)
                watch(poll, caller->fd, EPOLLIN | EPOLLOUT | EPOLLET, caller);
            turn++;
        }
        if (epoll_wait(poll, &event, 1, 3) != 1)
            continue;
        caller = event.data.ptr;
        if ((result = go_on(caller)) > 0) {
            printf("%.6f\n", now());
            return;
        }
        if (result < 0)
            close(caller->fd), caller->fd = -1;
    }
    errno = ETIMEDOUT, die("first");
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "", *via = getenv("LOAD_SOCKS");
    char host[64];
    int port;
    if (via && sscanf(via, "%63[^:]:%d", host, &port) == 2)
        proxy = address(host, port);
    target = argv[2];
    if (!strcmp(mode, "server") && argc == 4)
        map_counter(argv[3]), serve(target);
    else if (!strcmp(mode, "socks"))
        socks(atoi(argv[2]));
    else if ((!strcmp(mode, "up") || !strcmp(mode, "down")) && argc == 7)
        map_counter(argv[3]), stream(mode[0] == 'u', atoi(argv[4]), atof(argv[5]), atof(argv[6]));
    else if (!strcmp(mode, "cps") && argc == 5)
        cps(atoi(argv[3]), atof(argv[4]));
    else if (!strcmp(mode, "rtt") && argc == 4)
        rtt(atof(argv[3]));
    else if (!strcmp(mode, "udp") && argc == 6)
        udp(atoi(argv[3]), atoi(argv[4]), atof(argv[5]));
    else if (!strcmp(mode, "idle") && argc == 4)
        idle(atoi(argv[3]));
    else if (!strcmp(mode, "first") && argc == 4)
        first(atof(argv[3]));
    else
        return fputs("load: see the first comment in load.c for what to say\n", stderr), 2;
    return 0;
}
