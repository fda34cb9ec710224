"""The frames that arrive at an interface, and a way to send any."""

from typing import SupportsBytes

from vtl_tools.common.selftest.raw_socket import open_raw_socket, receive_all


class Wire:
    """A raw socket on an interface of the calling thread's network. Made by Host.wire()."""

    def __init__(self, interface: str) -> None:
        self.sock = open_raw_socket(interface)
        self.sock.setblocking(True)

    def send(self, frame: SupportsBytes) -> None:
        """Send a frame, when there is room: octets, or a packet of scapy."""
        self.sock.send(bytes(frame))

    def read(self) -> list[bytes]:
        """Return the frames that came in since the last call, VLAN tags included."""
        return receive_all(self.sock)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        self.sock.close()
