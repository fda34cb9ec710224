"""A station of a self-test: a raw socket that sends any frame, and collects received ones."""

import selectors
from collections.abc import Callable, Iterable
from typing import Final

from scapy.packet import Packet

from vtl_tools.common.selftest.netns import Networks
from vtl_tools.common.selftest.raw_socket import open_raw_socket, receive_all

Wait = Callable[[Callable[[], bool], float], bool]
"""Serves all sockets until a condition holds, for so many seconds at most; returns whether it holds."""

_AGAIN_S: Final = 0.001


class Station:
    """A raw socket on an interface of one network. wait: serves the others while this one waits."""

    def __init__(
        self, networks: Networks, network: int, interface: str, selector: selectors.BaseSelector, wait: Wait
    ) -> None:
        self._wait, self._selector = wait, selector
        self._got: list[bytes] = []
        with networks.within(network):
            self._socket = open_raw_socket(interface)
        selector.register(self._socket, selectors.EVENT_READ, self._on_frames)

    def _on_frames(self) -> None:
        self._got += receive_all(self._socket)

    def send(self, frames: Iterable[Packet | bytes]) -> int:
        """Send frames; return how many."""
        count = 0
        for frame in frames:
            self._put(bytes(frame))
            count += 1
        return count

    def _put(self, octets: bytes) -> None:
        while True:
            try:
                self._socket.send(octets)
            except BlockingIOError:
                self._wait(lambda: False, _AGAIN_S)
            else:
                return

    def take(self) -> list[bytes]:
        """Remove and return the frames received since the last call."""
        got, self._got = self._got, []
        return got

    def forget(self) -> None:
        """Discard the frames received since the last call."""
        self._got.clear()

    def close(self) -> None:
        """Close the socket."""
        self._selector.unregister(self._socket)
        self._socket.close()
