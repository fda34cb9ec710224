/* Frames with time stamps, for bench/wan.py.

usage: wan send INTERFACE PER_SECOND COUNT OCTETS      one frame at a time, evenly spaced
       wan flood INTERFACE SECONDS OCTETS              as many as go; prints how many
       wan receive INTERFACE COUNT QUIET_S             prints the delay of each frame, in microseconds
       wan busy SECONDS                                prints by how much a process that never sleeps is late

A frame has EtherType 0x88b5 (for experiments), its number and CLOCK_REALTIME before send(). The time of its
arrival is the kernel's, so that the receiver's own delay does not count. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TYPE = 0x88b5, HEADER = 14, BATCH = 64 };

static unsigned char frame[2048];

static int64_t now(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static int open_on(const char *name)
{
    struct sockaddr_ll at = {
        .sll_family = AF_PACKET, .sll_protocol = htons(TYPE), .sll_ifindex = if_nametoindex(name)};
    int sock = socket(AF_PACKET, SOCK_RAW, htons(TYPE)), size = 64 << 20, yes = 1;

    if (sock < 0 || !at.sll_ifindex || bind(sock, (struct sockaddr *)&at, sizeof at)) {
        perror(name);
        exit(1);
    }
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_TIMESTAMPNS, &yes, sizeof yes);
    return sock;
}

static void fill(void)
{
    memset(frame, 0xff, 6);
    memcpy(frame + 6, "\2\0\0\0\0\1", 6);
    frame[12] = TYPE >> 8;
    frame[13] = TYPE & 255;
}

static void stamp(int64_t number)
{
    int64_t at = now(CLOCK_REALTIME);
    memcpy(frame + HEADER, &number, 8);
    memcpy(frame + HEADER + 8, &at, 8);
}

/* Sleeps between frames, so that it leaves a processor to what is measured: a frame's time is that of its sending. */
static void send_evenly(int sock, long per_s, long count, int octets)
{
    int64_t began = now(CLOCK_MONOTONIC);

    prctl(PR_SET_TIMERSLACK, 1);
    for (long n = 0; n < count; n++) {
        int64_t due = began + n * 1000000000LL / per_s;
        if (due > now(CLOCK_MONOTONIC)) {
            struct timespec until = {due / 1000000000, due % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        }
        stamp(n);
        send(sock, frame, octets, 0);
    }
}

static void flood(int sock, double seconds, int octets)
{
    int64_t until = now(CLOCK_MONOTONIC) + seconds * 1e9;
    struct iovec iov = {frame, octets};
    struct mmsghdr many[BATCH] = {0};
    long sent = 0;

    for (int i = 0; i < BATCH; i++)
        many[i].msg_hdr = (struct msghdr){.msg_iov = &iov, .msg_iovlen = 1};
    while (now(CLOCK_MONOTONIC) < until) {
        int n = sendmmsg(sock, many, BATCH, 0);
        if (n > 0)
            sent += n;
    }
    printf("%ld\n", sent);
}

static void receive(int sock, long count, double quiet_s)
{
    struct timeval patience = {(long)quiet_s, (quiet_s - (long)quiet_s) * 1e6};
    char control[256];

    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setvbuf(stdout, NULL, _IOFBF, 1 << 20);
    puts("ready");
    fflush(stdout);
    for (long n = 0; n < count; n++) {
        struct iovec iov = {frame, sizeof frame};
        struct msghdr message = {
            .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        int64_t number, sent, arrived = 0;

        if (n % BATCH == 0)
            usleep(10000); /* frames wait with their times: one wake-up for many */
        if (recvmsg(sock, &message, 0) < 0)
            break;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
            if (c->cmsg_type == SCM_TIMESTAMPNS) {
                struct timespec at;
                memcpy(&at, CMSG_DATA(c), sizeof at);
                arrived = at.tv_sec * 1000000000LL + at.tv_nsec;
            }
        memcpy(&number, frame + HEADER, 8);
        memcpy(&sent, frame + HEADER + 8, 8);
        printf("%lld %.1f\n", (long long)number, (arrived - sent) / 1e3);
    }
}

/* A moment within a gap, in which other processes ran, is noticed at the gap's end. Of moments that are spread
evenly, the share that is noticed more than x late is the sum of what gaps exceed x by, over the time. */
static double late_us(const int64_t *gaps, long count, int64_t took, double share)
{
    double low = 0, high = took;

    while (high - low > 100) {
        double middle = (low + high) / 2, over = 0;
        for (long i = 0; i < count; i++)
            over += gaps[i] > middle ? gaps[i] - middle : 0;
        if (over > (1 - share) * took)
            low = middle;
        else
            high = middle;
    }
    return high / 1e3;
}

static void busy(double seconds)
{
    enum { MOST = 1 << 20 };
    static int64_t gaps[MOST];
    int64_t began = now(CLOCK_MONOTONIC), last = began, until = began + seconds * 1e9, at;
    long count = 0;

    while ((at = now(CLOCK_MONOTONIC)) < until) {
        if (at - last > 1000 && count < MOST)
            gaps[count++] = at - last;
        last = at;
    }
    printf("%.1f %.1f\n", late_us(gaps, count, at - began, 0.5), late_us(gaps, count, at - began, 0.99));
}

int main(int argc, char **argv)
{
    int sock;

    if (argc == 3 && !strcmp(argv[1], "busy"))
        return busy(atof(argv[2])), 0;
    sock = argc > 2 ? open_on(argv[2]) : -1;
    fill();
    if (argc == 6 && !strcmp(argv[1], "send"))
        send_evenly(sock, atol(argv[3]), atol(argv[4]), atoi(argv[5]));
    else if (argc == 5 && !strcmp(argv[1], "flood"))
        flood(sock, atof(argv[3]), atoi(argv[4]));
    else if (argc == 5 && !strcmp(argv[1], "receive"))
        receive(sock, atol(argv[3]), atof(argv[4]));
    else
        return 2;
    return 0;
}
