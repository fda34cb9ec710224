"""The host of a self-test, as vulnerable as possible: it forwards, listens everywhere, and reports leaks."""

import contextlib
import re
import selectors
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Final

from vtl_tools.common.selftest.netns import Networks, ip, sysctl
from vtl_tools.common.selftest.raw_socket import open_raw_socket, receive_all

LINK: Final = "vmnet1"
"""The guest's addresses."""
MAC: Final = "02:00:00:00:00:01"
UPLINK: Final = "uplink"
_UPLINK_MAC: Final = "02:00:00:00:00:02"

_SPARE: Final = "spare0"

LAN4, LAN6 = "10.0.2.1", "fd76:746c:0:1::ffff"
"""The host's addresses on the guest's link."""
WAN4, WAN6 = "192.0.2.1", "2001:db8:ffff::1"
"""The host's addresses on its uplink."""
VLAN: Final = 5
VLAN4: Final = "10.5.0.1"

_ROUTER_MAC: Final = "02:00:00:00:00:fe"
_NEXT4, _NEXT6 = "192.0.2.254", "2001:db8:ffff::fe"
_WORLD: Final = ("198.51.100.0/24", "2001:db8:7::/64")
"""The networks of the guest's peers."""

TCP_PORTS: Final = (21, 22, 23, 25, 53, 80, 139, 443, 445, 853, 3478, 8080, 9050, 9051)
UDP_PORTS: Final = (
    53, 67, 68, 69, 123, 137, 138, 161, 443, 500, 514, 546, 547, 1194, 1701, 1900, 3478, 3702, 4500, 4789,
    5353, 5355, 19302, 33434, 51820,
)  # fmt: skip
PROTOCOLS4: Final = (1, 2, 4, 6, 17, 33, 41, 46, 47, 50, 51, 89, 94, 103, 112, 115, 132, 136, 253)
PROTOCOLS6: Final = (58, 4, 6, 17, 33, 41, 47, 50, 51, 59, 89, 103, 112, 115, 132, 136, 253)
GROUPS4: Final = ("224.0.0.251", "224.0.0.252", "239.255.255.250")
GROUPS6: Final = ("ff02::fb", "ff02::c", "ff02::1:2", "ff02::1:3")

_IN_RECEIVES: Final = "Ip6InReceives"
_SHOWN_MAX: Final = 12


def _variables() -> dict[str, int]:
    """Return what is set: forward and believe all, and tell groups at once what there is to tell."""
    found = {"ipv4/ip_forward": 1, "ipv4/icmp_echo_ignore_broadcasts": 0, "ipv6/conf/all/forwarding": 1}
    for place in ("all", "default", LINK, UPLINK):
        of4 = dict.fromkeys(
            ("forwarding", "accept_source_route", "accept_redirects", "send_redirects", "proxy_arp",
             "proxy_arp_pvlan", "accept_local", "route_localnet", "arp_accept",
             "igmpv2_unsolicited_report_interval", "igmpv3_unsolicited_report_interval"), 1,
        )  # fmt: skip
        of6 = dict.fromkeys(
            ("forwarding", "accept_redirects", "accept_source_route", "proxy_ndp", "seg6_enabled",
             "mldv1_unsolicited_report_interval", "mldv2_unsolicited_report_interval"), 1,
        )  # fmt: skip
        of6 |= {
            "accept_ra": 2,
            "accept_dad": 0,
            "dad_transmits": 0,
            "router_solicitations": 0,
            "disable_ipv6": 0,
        }
        found |= {f"ipv4/conf/{place}/{name}": value for name, value in {**of4, "rp_filter": 0}.items()}
        found |= {f"ipv6/conf/{place}/{name}": value for name, value in of6.items()}
    return found


class HostileHost:
    """The host's network with its sockets, and the socket at the far end of its uplink.

    is_routed: the default route leads to the uplink, where no frame may arrive. Else the uplink is a
    service's, too: then frames that the host gets by the guest's interface count, and it has other routes.
    """

    def __init__(
        self, networks: Networks, selector: selectors.BaseSelector, *, is_routed: bool = True
    ) -> None:
        self.link = LINK
        self.uplinked: list[bytes] = []
        self.heard: list[str] = []
        self._sockets: list[socket.socket] = []
        self._selector = selector
        self._device = b"" if is_routed else LINK.encode()
        networks.cable(LINK, MAC, "eth0", networks.guest)
        networks.cable(UPLINK, _UPLINK_MAC, "wan0", networks.world)
        for network, far in ((networks.guest, "eth0"), (networks.world, "wan0")):
            with networks.within(network):
                sysctl("ipv6/conf/all/disable_ipv6", 1)  # else its own stack would speak up
                ip("link", "set", "dev", far, "up")
        self._settle(("default", "default") if is_routed else _WORLD)
        if is_routed:
            with networks.within(networks.world):
                self._watch(open_raw_socket("wan0"), self._on_uplink)
        self._listen()
        self._before = self._counters()

    def _settle(self, routes: tuple[str, str]) -> None:
        for name, value in _variables().items():
            sysctl(name, value)
        for link in ("lo", LINK, UPLINK):
            ip("link", "set", "dev", link, "up")
            for name, value in _variables().items():  # those of an interface that is up
                sysctl(name, value)
        for link, of4, of6 in ((LINK, LAN4, LAN6), (UPLINK, WAN4, WAN6)):
            ip("addr", "add", f"{of4}/24", "dev", link)
            ip("addr", "add", f"{of6}/64", "dev", link, "nodad", needed=False)
        for router, to, needed in ((_NEXT4, routes[0], True), (_NEXT6, routes[1], False)):
            neighbour = ("neigh", "replace", router, "lladdr", _ROUTER_MAC, "dev", UPLINK, "nud", "permanent")
            ip(*neighbour, needed=needed)
            ip("-6" if ":" in router else "-4", "route", "add", to, "via", router, needed=needed)
        tagged = f"{LINK}.{VLAN}"
        if ip("link", "add", "link", LINK, "name", tagged, "type", "vlan", "id", str(VLAN), needed=False):
            ip("addr", "add", f"{VLAN4}/24", "dev", tagged)
            ip("link", "set", "dev", tagged, "up")

    def _listen(self) -> None:
        for family, anywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
            of6 = family == socket.AF_INET6
            for port in TCP_PORTS:
                with contextlib.suppress(OSError):  # no IPv6 here
                    sock = self._open(family, socket.SOCK_STREAM, 0, (anywhere, port))
                    sock.listen(64)
                    self._watch(sock, self._on_caller, f"TCP port {port}")
            for port in UDP_PORTS:
                with contextlib.suppress(OSError):
                    self._watch(
                        self._open(family, socket.SOCK_DGRAM, 0, (anywhere, port)),
                        self._on_datagram,
                        f"UDP port {port}",
                    )
            for protocol in PROTOCOLS6 if of6 else PROTOCOLS4:
                with contextlib.suppress(OSError):
                    sock = self._open(family, socket.SOCK_RAW, protocol, None)
                    self._watch(sock, self._on_datagram, f"IPv{6 if of6 else 4} protocol {protocol}")
        self._join()

    def _open(self, family: int, kind: int, protocol: int, where: tuple[str, int] | None) -> socket.socket:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        self._sockets.append(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._device)
        if family == socket.AF_INET6 and kind != socket.SOCK_RAW:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if where is not None:
            sock.bind(where)
        return sock

    def _join(self) -> None:
        """Be in the groups that guests talk to. Here and not before: until now it did not matter."""
        index = socket.if_nametoindex(LINK)
        for family, groups in ((socket.AF_INET, GROUPS4), (socket.AF_INET6, GROUPS6)):
            with contextlib.suppress(OSError):
                member = self._open(family, socket.SOCK_DGRAM, 0, None)
                for group in groups:
                    packed = socket.inet_pton(family, group)
                    if family == socket.AF_INET:
                        request = struct.pack("4s4xi", packed, index)
                        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
                    else:
                        request = packed + struct.pack("i", index)
                        member.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)

    def _watch(self, sock: socket.socket, on_ready: object, what: str = "") -> None:
        if sock not in self._sockets:
            self._sockets.append(sock)
        self._selector.register(sock, selectors.EVENT_READ, lambda: on_ready(sock, what))  # type: ignore[operator]

    def _on_uplink(self, sock: socket.socket, what: str) -> None:
        self.uplinked += receive_all(sock)

    def _on_caller(self, sock: socket.socket, what: str) -> None:
        with contextlib.suppress(OSError):
            caller, where = sock.accept()
            caller.close()
            self.heard.append(f"{what} was called from {where[0]}")

    def _on_datagram(self, sock: socket.socket, what: str) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                octets, where = sock.recvfrom(65536)
                self.heard.append(f"{what} got {len(octets)} octets from {where[0]}")

    def other_link(self) -> str:
        """Return an interface for a second service to join the guest's with, without the default route."""
        if not self._device:
            ip("link", "add", "name", _SPARE, "type", "veth", "peer", "name", f"{_SPARE}p")
            ip("link", "set", "dev", _SPARE, "up")
        return UPLINK if self._device else _SPARE

    def rename(self, name: str) -> None:
        """Give the guest's interface another name, as an administrator or udev may."""
        if not ip("link", "set", "dev", self.link, "name", name, needed=False):  # not while it is up
            ip("link", "set", "dev", self.link, "down")
            ip("link", "set", "dev", self.link, "name", name)
            ip("link", "set", "dev", name, "up")
        self.link = name

    def has_route_by_guest(self) -> bool:
        """Return whether the host's default route of IPv6 is by the guest's interface."""
        lines = Path("/proc/net/ipv6_route").read_text().splitlines()
        routes = [line.split() for line in lines]
        return any(
            fields[0] == "0" * 32 and fields[1] == "00" and fields[-1] == self.link for fields in routes
        )

    def _counters(self) -> dict[str, int]:
        """Count what the host's stack was given of the guest's, before it looked at it.

        IPv4 is counted for the whole network; nobody but the guest sends any here.
        """
        counters = {}
        lines = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines()]
        for names, values in zip(lines[::2], lines[1::2], strict=False):
            if names[0] == "Ip:":
                counters["IPv4 packets"] = int(values[names.index("InReceives")])
        with contextlib.suppress(OSError):
            text = Path(f"/proc/net/dev_snmp6/{self.link}").read_text()
            found = re.search(rf"^{_IN_RECEIVES}\s+(\d+)", text, re.M)
            counters["IPv6 packets"] = int(found[1]) if found else 0
        for path, what in (("/proc/net/arp", "ARP"),):
            entries = [line.split() for line in Path(path).read_text().splitlines()[1:]]
            counters[f"neighbours by {what}"] = sum(entry[-1].startswith(self.link) for entry in entries)
        counters["frames of VLANs"] = _received(f"{LINK}.{VLAN}")
        return counters

    def leaks(self) -> list[tuple[str, str]]:
        """Return the leaks since the last call: place and description."""
        found = [("uplink", summary(frame)) for frame in self.uplinked]
        found += [("host", what) for what in self.heard]
        now = self._counters()
        for what, count in now.items():
            more = count - self._before.get(what, 0)
            if more > 0:
                found += [("host", f"its stack got {what}")] * more
        self._before = now
        self.uplinked.clear()
        self.heard.clear()
        return found

    def close(self) -> None:
        """Close all sockets."""
        for sock in self._sockets:
            with contextlib.suppress(KeyError):
                self._selector.unregister(sock)
            sock.close()


def _received(link: str) -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    found = [line.split() for line in lines if line.strip().startswith(f"{link}:")]
    return int(found[0][2]) if found else 0


def summary(frame: bytes) -> str:
    """Return a one-line description of a frame."""
    from scapy.layers.l2 import Ether

    return str(Ether(frame).summary())


def counted(leaks: list[tuple[str, str]]) -> list[str]:
    """Return leaks as lines, equal ones merged, the most frequent first."""
    lines = Counter(f"{where}: {what}" for where, what in leaks).most_common(_SHOWN_MAX)
    return [line if count == 1 else f"{line} ({count} times)" for line, count in lines]
