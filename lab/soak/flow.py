"""A TCP connection that carries data both ways for hours, each octet compared with the one that was sent."""

import os
import socket
import threading
import time
from functools import partial
from typing import Final

from lab.host import Host

PIECE: Final = 32 << 10
PAUSE_S: Final = 0.05
_BLOCK: Final = 65521  # prime, so that a shift by any piece shows


class Way:
    """One direction. octets: received and right. broken: why it carries no more."""

    def __init__(self, name: str, source: socket.socket, sink: socket.socket) -> None:
        self.name, self.source, self.sink = name, source, sink
        self.octets = 0
        self.broken = ""
        self._ends = threading.Event()
        block = os.urandom(_BLOCK)
        self._data = block * (2 + (PIECE + _BLOCK) // _BLOCK)
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        at = 0
        try:
            while not self._ends.is_set():
                at = (at + self.source.send(self._data[at : at + PIECE])) % _BLOCK
                time.sleep(PAUSE_S)
        except OSError as e:
            self._break(f"sender: {e.strerror or e}")

    def _receive(self) -> None:
        try:
            while octets := self.sink.recv(PIECE):
                at = self.octets % _BLOCK
                if octets != self._data[at : at + len(octets)]:
                    return self._break(f"other octets than were sent, within {len(octets)} at {self.octets}")
                self.octets += len(octets)
            self._break("ended")
        except OSError as e:
            self._break(f"receiver: {e.strerror or e}")
        return None

    def _break(self, why: str) -> None:
        if not self._ends.is_set():
            self.broken = self.broken or f"{self.name}: {why} after {self.octets} octets"

    def end(self) -> None:
        """Stop comparing; the sockets are about to be closed."""
        self._ends.set()


class Flow:
    """A connection from a client to a server, with data in both directions."""

    def __init__(self, client: Host, server: Host, address: str, name: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with server.call(partial(socket.create_server, (address, 0), family=family)) as listener:
            where = listener.getsockname()[:2]
            self._ends = [client.call(partial(socket.create_connection, where, 30.0))]
            self._ends.append(listener.accept()[0])
        for end in self._ends:
            end.settimeout(None)
        self.ways = [Way(f"{name} up", *self._ends), Way(f"{name} down", *reversed(self._ends))]

    @property
    def octets(self) -> int:
        """Octets that arrived as they were sent."""
        return sum(way.octets for way in self.ways)

    @property
    def broken(self) -> list[str]:
        """Why ways carry no more."""
        return [way.broken for way in self.ways if way.broken]

    def close(self) -> None:
        """End the connection. Idempotent."""
        for way in self.ways:
            way.end()
        for end in self._ends:
            end.close()
