"""QEMU's monitor (QMP): events of a guest, over QEMU's unix socket, as JSON lines."""

import json
import socket
from collections.abc import Callable
from typing import Any, Final

from vtl_tools.common.device.handle import Handle
from vtl_tools.common.host import broker

RETRY_S: Final = 0.5
"""Seconds between attempts to connect."""
LINE_MAX: Final = 1 << 20
"""Maximum octets of a line."""
LINES: Final = 64
"""Maximum lines per turn."""

OnEvent = Callable[[str, dict[str, Any], float], object]
"""Called with an event's name, its data, and now."""


class Monitor:
    """A connection to QEMU, as a service's source (stage.Source). QEMU may be absent, and may restart.

    on_event: called with each event, named as in QMP (STOP, RESUME, MIGRATION), and with STATUS and the
    result of query-status after each connect. `up`: whether there is a connection.
    """

    def __init__(self, path: str, on_event: OnEvent) -> None:
        self.path, self.on_event = path, on_event
        self.up = False
        self.losses = 0
        self._door = broker.UnixTarget(path)
        self._handle = Handle()
        self.fileno = self._handle.fileno
        self._sock: socket.socket | None = None
        self._read = bytearray()
        self._handle.wake()

    def poll(self, now: float) -> bool:
        """Process QEMU's messages. Return whether there were any. Never blocks."""
        alarm_expired = self._handle.alarm_expired()
        if self._sock is None:
            if alarm_expired:
                self._connect()
            return False
        try:
            octets = self._sock.recv(1 << 16)
        except BlockingIOError:
            octets = None
        except OSError:
            octets = b""
        if octets is not None:
            self._read += octets
        worked = self._take_lines(now)
        if octets == b"" or len(self._read) > LINE_MAX:
            self._lose()
        return worked

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if self._door.connect_ex(sock):  # absent, or in use by another client
            sock.close()
            self._handle.alarm(RETRY_S)
            return
        self._sock = sock
        self._read.clear()
        self._handle.watch(sock.fileno())

    def _take_lines(self, now: float) -> bool:
        for done in range(LINES):
            line, ended, rest = self._read.partition(b"\n")
            if not ended:
                return done > 0
            self._read = rest
            try:
                message = json.loads(line)
            except (ValueError, RecursionError):
                message = None
            if not isinstance(message, dict):
                self._lose()
                return True
            self._take(message, now)
        self._handle.wake()  # there may be more lines, which no descriptor announces
        return True

    def _take(self, message: dict[str, Any], now: float) -> None:
        if "QMP" in message:
            # Else QEMU sends no migration events. It refuses during a migration, which is harmless.
            events = {"capabilities": [{"capability": "events", "state": True}]}
            self.up = (
                self._ask("qmp_capabilities")
                and self._ask("migrate-set-capabilities", **events)
                and self._ask("query-status")
            )
            return
        said, event, data = message.get("return"), message.get("event"), message.get("data")
        if isinstance(event, str):
            self.on_event(event, data if isinstance(data, dict) else {}, now)
        elif isinstance(said, dict) and "running" in said:
            self.on_event("STATUS", said, now)

    def _ask(self, command: str, **arguments: Any) -> bool:
        if self._sock is None:
            return False
        try:
            self._sock.send(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\r\n")
        except OSError:
            self._lose()
            return False
        return True

    def _lose(self) -> None:
        if self._sock is None:
            return
        self._handle.forget(self._sock.fileno())
        self._sock.close()
        self._sock = None
        self._read.clear()
        self.losses += self.up
        self.up = False
        self._handle.alarm(RETRY_S)

    def status(self) -> dict[str, object]:
        """Return the monitor's part of `status`."""
        return {"socket": self.path, "up": self.up, "losses": self.losses}

    def close(self) -> None:
        """Release all resources. Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        self._handle.close()
