"""Linux as a firewall: a bridge whose IP frames go by br_netfilter through nftables and conntrack.

Everything is on one processor, so that frames go by in the order in which they were sent.
"""

import ctypes
import os
import socket

from nft_world import SENTINEL, VLANS, Shot, came_out

ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA = 3, 263, 8
OUT_BIT, STACKED_BIT = 0x10000, 0x8000
ZONES = len(VLANS)
LOADS_MAX = 14_000
"""Rule sets of one lab: there are 65,536 zones of connections, and each VLAN of each set has its own."""
SYSCTLS = {
    "net.bridge.bridge-nf-filter-vlan-tagged": 1,
    "net.netfilter.nf_conntrack_tcp_loose": 0,
    "net.netfilter.nf_conntrack_tcp_be_liberal": 0,
    "net.ipv4.icmp_ratemask": 0,
    "net.ipv6.icmp.ratelimit": 0,
}


def mark_of(vlan):
    return 0 if vlan is None else vlan + 1


_PRE = "".join(
    f'iifname "{port}" {"" if vlan is None else f"vlan id {vlan} "}meta mark set {bit | mark_of(vlan)};\n'
    for port, bit in (("vm", OUT_BIT), ("net", 0))
    for vlan in VLANS
) + "".join(
    f'iifname "{port}" ether type 8021ad meta mark set {bit | STACKED_BIT};\n'
    for port, bit in (("vm", OUT_BIT), ("net", 0))
)


class Kernel:
    """The bridge of a lab: judge() sends what is on one side, and tells what came out at the other."""

    def __init__(self, lab):
        self._outside, self.middle = lab.host("outside", ipv6=False), lab.host("linux")
        middle = self.middle
        middle.sysctl("net.ipv6.conf.default.addr_gen_mode", 1)  # it says nothing unasked
        for port in "vm", "net":
            lab.veth(self._outside, port, middle, port)
            self._outside.run("ip", "link", "set", port, "arp", "off")
        bridge = ("br0", "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0")
        middle.run("ip", "link", "add", *bridge)
        for port in "vm", "net":
            middle.run("ip", "link", "set", port, "master", "br0")
            middle.run("bridge", "link", "set", "dev", port, "learning", "off")
        middle.run("ip", "link", "set", "br0", "arp", "off")
        middle.run("ip", "link", "set", "br0", "up")
        for name, value in SYSCTLS.items():
            middle.sysctl(name, value)
        self._lib = lib = ctypes.CDLL("libnftables.so.1")  # nft itself, without a process for each rule set
        lib.nft_ctx_new.restype = ctypes.c_void_p
        lib.nft_ctx_new.argtypes = [ctypes.c_uint32]
        lib.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        lib.nft_ctx_buffer_error.argtypes = lib.nft_ctx_free.argtypes = [ctypes.c_void_p]
        lib.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = middle.call(lib.nft_ctx_new, 0)
        lab.defer(lib.nft_ctx_free, self._context)
        lib.nft_ctx_buffer_error(self._context)
        self.nft(
            f"table bridge tags {{ chain pre {{ type filter hook prerouting priority -300;\n{_PRE}}}\n}}"
        )
        self._loaded, self._zone = "", 1
        self._sockets = {}
        with self._outside.enter():
            for port in "vm", "net":
                sock = self._sockets[port] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
                sock.bind((port, ETH_P_ALL))
                sock.settimeout(20)
                lab.defer(sock.close)
        affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(affinity)})
        lab.defer(os.sched_setaffinity, 0, affinity)

    def nft(self, text):
        """Do what nft -f does."""
        if self.middle.call(self._lib.nft_run_cmd_from_buffer, self._context, text.encode()):
            message = self._lib.nft_ctx_get_error_buffer(self._context).decode()
            raise AssertionError(f"nft: {message}\n{text}")

    def load(self, tables):
        """Take tables `bridge fw` and `inet fw` in the place of those before, and forget all connections."""
        self._zone += ZONES
        assert self._zone < 1 << 16
        zones = "".join(
            f"meta mark & 0xffff == {mark_of(vlan)} ct zone set {self._zone + i};\n"
            for i, vlan in enumerate(VLANS)
        )
        zone = f"table inet zones {{ chain pre {{ type filter hook prerouting priority -450;\n{zones}}}\n}}\n"
        self.nft(f"{self._loaded}{zone}{tables}")
        self._loaded = "delete table inet zones; delete table inet fw; delete table bridge fw;\n"

    def judge(self, shots: list[Shot]):
        """Return what came out where: of each port the frames, in order."""
        for shot in shots:
            sock = self._sockets["vm" if shot.out else "net"]
            for frame in shot.frames:
                sock.send(frame)
        for port in self._sockets:
            self._sockets[port].send(SENTINEL)
        return came_out(self._drain("net"), self._drain("vm"))

    def _drain(self, port):
        frames = []
        while True:
            frame, (_, _, kind, _, _) = self._sockets[port].recvfrom(1 << 16)
            if kind == socket.PACKET_OUTGOING:
                continue
            if frame == SENTINEL:
                return frames
            frames.append(frame)
