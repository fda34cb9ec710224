"""A guest whose whole network is vtl-split: guest - [vmnet1 host] - router - server, and servers."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S
from tests.running import Bridge, bridge

GUEST: Final = {4: "10.0.2.15", 6: "fd76:746c:0:1::15"}
GATEWAY: Final = {4: "10.0.2.2", 6: "fd76:746c:0:1::1"}
HOST: Final = {4: "203.0.113.1", 6: "2001:db8:1::1"}
ROUTER: Final = {4: "203.0.113.254", 6: "2001:db8:1::fe"}
SERVER: Final = {4: "198.51.100.2", 6: "2001:db8:2::2"}
FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


class SplitWorld:
    """The hosts. configured: the guest has its addresses already, as a static configuration has it."""

    def __init__(self, lab: Lab, *, configured: bool = True) -> None:
        self.lab = lab
        self.guest, self.host, self.router, self.server = (
            lab.host(name) for name in ("guest", "host", "router", "server")
        )
        lab.veth(self.guest, "eth0", self.host, "vmnet1")
        lab.veth(self.host, "eth0", self.router, "eth0")
        lab.veth(self.router, "eth1", self.server, "eth0")
        self.host.sysctl("net.ipv6.conf.vmnet1.disable_ipv6", 1)
        self.host.sysctl("net.ipv4.ping_group_range", "0 2147483647")
        for family in ("ipv4.ip_forward", "ipv6.conf.all.forwarding"):
            self.router.sysctl(f"net.{family}", 1)
        self.router.sysctl("net.ipv4.icmp_ratelimit", 0)
        self.router.sysctl("net.ipv6.icmp.ratelimit", 0)
        self.host.addr("eth0", f"{HOST[4]}/24", f"{HOST[6]}/64")
        self.router.addr("eth0", f"{ROUTER[4]}/24", f"{ROUTER[6]}/64")
        self.router.addr("eth1", "198.51.100.1/24", "2001:db8:2::1/64")
        self.server.addr("eth0", f"{SERVER[4]}/24", f"{SERVER[6]}/64")
        for host, gateways in (
            (self.host, ROUTER.values()),
            (self.server, ("198.51.100.1", "2001:db8:2::1")),
        ):
            for gateway in gateways:
                host.route("default", gateway)
        if configured:
            self.guest.addr("eth0", f"{GUEST[4]}/24", f"{GUEST[6]}/64")
            for gateway in GATEWAY.values():
                self.guest.route("default", gateway)

    @contextmanager
    def split(self, *arguments: str | Path) -> Iterator[Bridge]:
        """Run vtl-split on the host."""
        with bridge(self.lab, self.host, "--iface", "vmnet1", *arguments, service="vtl-split") as running:
            yield running

    def open(self, host: Host, version: int, kind: socket.SocketKind) -> socket.socket:
        """Return a socket of a host."""
        with host.enter():
            sock = socket.socket(FAMILY[version], kind)
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.settimeout(PATIENCE_S)
        return sock

    def listen(self, host: Host, address: str, port: int = 0) -> socket.socket:
        """Return a TCP socket that listens on a host."""
        with host.enter():
            sock = socket.create_server((address, port), family=FAMILY[6 if ":" in address else 4])
        sock.settimeout(PATIENCE_S)
        return sock

    def connect(self, version: int, port: int, address: str = "") -> socket.socket:
        """Return a socket of the guest that is connected to the server, or to an address."""
        with self.guest.enter():
            return socket.create_connection((address or SERVER[version], port), PATIENCE_S)

    def joined(self, version: int) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a TCP connection: the guest's, and the server's."""
        with self.listen(self.server, SERVER[version]) as listener:
            near = self.connect(version, listener.getsockname()[1])
            far, _ = listener.accept()
        far.settimeout(PATIENCE_S)
        return near, far

    def echo(self, host: Host, address: str, port: int = 7) -> socket.socket:
        """Return a UDP socket of a host that sends everything back, in a thread of its own."""
        sock = self.open(host, 6 if ":" in address else 4, socket.SOCK_DGRAM)
        sock.settimeout(None)
        sock.bind((address, port))
        self._serve(lambda: sock.sendto(*sock.recvfrom(65_536)))
        self.lab.defer(sock.close)
        return sock

    def record(self, sock: socket.socket) -> list[object]:
        """Return a list to which a thread adds each client of a socket: of TCP, or UDP."""
        seen: list[object] = []
        sock.settimeout(None)
        take = sock.accept if sock.type == socket.SOCK_STREAM else lambda: sock.recvfrom(65_536)
        self._serve(lambda: seen.append(take()))
        self.lab.defer(sock.close)
        return seen

    def _serve(self, once: Callable[[], object]) -> None:
        def serve() -> None:
            try:
                while True:
                    once()
            except OSError:  # it was closed
                return

        threading.Thread(target=serve, daemon=True).start()


def exchange(near: socket.socket, far: socket.socket, octets: bytes) -> None:
    """Send octets to the far end, and these reversed back meanwhile; each end ends its half by itself."""
    sending = threading.Thread(target=near.sendall, args=(octets,))
    back = threading.Thread(target=far.sendall, args=(octets[::-1],))
    for thread in sending, back:
        thread.start()
    sending.join()
    near.shutdown(socket.SHUT_WR)
    assert receive_all(far) == octets
    back.join()
    far.sendall(b"the other half is open")
    far.shutdown(socket.SHUT_WR)
    assert receive_all(near) == octets[::-1] + b"the other half is open"


def receive_all(sock: socket.socket) -> bytes:
    """Return everything up to the end of a stream."""
    octets = bytearray()
    while piece := sock.recv(1 << 16):
        octets += piece
    return bytes(octets)
