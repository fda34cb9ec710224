"""A SOCKS 5 server that connects to nothing: it accepts every request, and records it."""

import contextlib
import selectors
import socket
from pathlib import Path
from typing import Final, NamedTuple

from vtl_tools.common.packet import address
from vtl_tools.common.socks import Command

_IPV4: Final = 1
_NAME: Final = 3
_IPV6: Final = 4
_BAD_ONION: Final = 0xF6
_GREETING: Final = b"\5"
_ANSWER: Final = b"HTTP/1.0 204 No Content\r\n\r\n"

RESOLVED: Final = address.ip("203.0.113.9")
NAMED: Final = b"host.example.com"


class RecordedRequest(NamedTuple):
    """A request: its target, as text, and port."""

    command: Command
    target: str
    port: int

    def __str__(self) -> str:
        where = f"[{self.target}]" if ":" in self.target else self.target
        return f"{self.command.name.lower()} {where}:{self.port}"


class RecordingProxy:
    """Listens on a unix socket, so that no packet of an IP network is for the proxy. asked: the requests."""

    def __init__(self, path: Path, selector: selectors.BaseSelector) -> None:
        self.path, self.asked = path, list[RecordedRequest]()
        self._selector = selector
        self._clients = set[socket.socket]()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(path))
        self._socket.listen(128)
        selector.register(self._socket, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._socket.accept()
            sock.setblocking(False)
            self._clients.add(sock)
            client = _Client(self, sock)
            self._selector.register(sock, selectors.EVENT_READ, client.read)

    def forget(self, sock: socket.socket) -> None:
        """Close a client's connection."""
        self._clients.discard(sock)
        self._selector.unregister(sock)
        sock.close()

    def close(self) -> None:
        """Stop listening, and disconnect all clients."""
        for sock in list(self._clients):
            self.forget(sock)
        self._selector.unregister(self._socket)
        self._socket.close()


class _Client:
    """One connection: greeting, request, and then an exchange of data."""

    def __init__(self, proxy: RecordingProxy, sock: socket.socket) -> None:
        self._proxy, self._socket = proxy, sock
        self._held = b""
        self._turn = self._greet

    def read(self) -> None:
        try:
            octets = self._socket.recv(65536)
            self._held += octets
            while octets and self._turn():
                pass
        except OSError:
            octets = b""
        if not octets:
            self._proxy.forget(self._socket)

    def _take(self, size: int) -> bytes:
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    def _greet(self) -> bool:
        held = self._held
        if held[:1] not in (b"", _GREETING):  # a browser's request, by which Tor is told from others
            self._socket.sendall(b"Tor is not an HTTP Proxy\r\n")
            self._held = b""
            return False
        if len(held) < 2 or len(held) < 2 + held[1]:
            return False
        method = 2 if 2 in self._take(2 + held[1])[2:] else 0
        self._socket.sendall(bytes((5, method)))
        self._turn = self._authenticate if method else self._request
        return True

    def _authenticate(self) -> bool:
        held = self._held
        if len(held) < 2 or len(held) < 3 + held[1] or len(held) < 3 + held[1] + held[2 + held[1]]:
            return False
        self._take(3 + held[1] + held[2 + held[1]])
        self._socket.sendall(b"\1\0")
        self._turn = self._request
        return True

    def _request(self) -> bool:
        held = self._held
        if len(held) < 5:
            return False
        kind, start = held[3], 4 + (held[3] == _NAME)
        size = {_IPV4: 4, _IPV6: 16}.get(kind, held[4])
        if len(held) < start + size + 2:
            return False
        command, target = Command(held[1]), self._take(start + size + 2)[start:]
        host, port = target[:-2], int.from_bytes(target[-2:], "big")
        text = host.decode(errors="backslashreplace") if kind == _NAME else address.format_ip(host)
        self._proxy.asked.append(RecordedRequest(command, text, port))
        self._socket.sendall(self._answer(command, text))
        self._turn = self._talk
        return True

    @staticmethod
    def _answer(command: Command, text: str) -> bytes:
        if text.endswith(".onion"):
            return bytes((5, _BAD_ONION, 0, _IPV4)) + bytes(6)
        if command is Command.RESOLVE:
            return bytes((5, 0, 0, _IPV4)) + RESOLVED + bytes(2)
        if command is Command.RESOLVE_PTR:
            return bytes((5, 0, 0, _NAME, len(NAMED))) + NAMED + bytes(2)
        return bytes((5, 0, 0, _IPV4)) + bytes(6)

    def _talk(self) -> bool:
        if self._held:
            self._held = b""
            self._socket.sendall(_ANSWER)
        return False
