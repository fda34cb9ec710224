/* Sends frames as they are: what root in a guest can do, and busybox cannot.

usage: frames INTERFACE <FRAMES
A line is a frame in hexadecimal, as the tools have it: 10 octets of virtio_net_hdr, then Ethernet. So the
header may lie, too. Prints the number of the line and why, where the kernel refuses one, and goes on. */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

static char line[1 << 18];
static unsigned char frame[sizeof line / 2];

static int nibble(int digit)
{
    return digit >= '0' && digit <= '9' ? digit - '0' : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10 : -1;
}

int main(int argc, char **argv)
{
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL)};
    int yes = 1, sock = socket(AF_PACKET, SOCK_RAW, 0);
    if (argc != 2 || sock < 0 || !(to.sll_ifindex = if_nametoindex(argv[1])) ||
        bind(sock, (struct sockaddr *)&to, sizeof to) ||
        setsockopt(sock, SOL_PACKET, PACKET_VNET_HDR, &yes, sizeof yes)) {
        perror("frames");
        return 1;
    }
    for (int number = 1; fgets(line, sizeof line, stdin); number++) {
        size_t octets = 0;
        for (const char *at = line; nibble(at[0]) >= 0 && nibble(at[1]) >= 0; at += 2)
            frame[octets++] = nibble(at[0]) << 4 | nibble(at[1]);
        if (send(sock, frame, octets, 0) < 0)
            printf("%d: %s\n", number, strerror(errno));
    }
    return 0;
}
