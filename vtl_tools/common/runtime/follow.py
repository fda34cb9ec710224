"""Follows the events of running services from another process."""

import json
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from vtl_tools.common.errors import NotRunningError, VTLError
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.events import Event, made

_OCTETS = 1 << 16
_PATIENCE_S = 1.0
LAST_WORDS = ("stats", "error")
"""The events after which a service ends."""


def follow(paths: Sequence[Path], last: int) -> Iterator[Event]:
    """Yield the events of services as they come, from the `last` ones before now, until all services ended.

    The last event of a service that was killed, or that dropped us, is an `error` made here. Raises what
    control.ask() raises.
    """
    with ExitStack() as stack:
        poll = select.poll()
        streams: dict[int, _Stream] = {}
        for path in paths:
            stream = _Stream(path, *control.open_stream(path, "events", last=last))
            stack.callback(stream.sock.close)
            streams[stream.sock.fileno()] = stream
            poll.register(stream.sock, select.POLLIN)
            yield from stream.lines()
        while streams:
            for fd, _ in poll.poll():
                stream = streams[fd]
                if stream.receive():
                    yield from stream.lines()
                    continue
                poll.unregister(fd)
                del streams[fd]
                if stream.name not in LAST_WORDS:
                    yield stream.end()


class _Stream:
    """The events of one service. told: its answer to our request. octets: those that came behind it."""

    def __init__(self, path: Path, sock: socket.socket, told: Event, octets: bytes) -> None:
        self.path, self.sock, self._told = path, sock, told
        self._octets = octets
        self.name = ""
        """Of the event that came last."""

    def receive(self) -> bool:
        """Take what is there; False: the stream has ended."""
        try:
            octets = self.sock.recv(_OCTETS)
        except OSError:
            return False
        self._octets += octets
        return bool(octets)

    def lines(self) -> Iterator[Event]:
        """Yield the events that are here whole."""
        *lines, self._octets = self._octets.split(b"\n")
        if len(self._octets) > control.ANSWER_MAX:
            raise VTLError(f"{self.path}: an event without end; the service is not to be trusted")
        for line in lines:
            try:
                event = json.loads(line)
                self.name = str(event["event"])
            except (ValueError, KeyError, TypeError, RecursionError):
                raise VTLError(f"{self.path}: no event: it is not a service of this version") from None
            yield event

    def end(self) -> Event:
        """Return an event that tells why the stream ended without a last one."""
        why = _why(self.path)
        until = time.monotonic() + _PATIENCE_S
        while type(why) is NotRunningError and time.monotonic() < until:
            time.sleep(_PATIENCE_S / 20)  # it may end a moment later than its stream
            why = _why(self.path)
        service, link = str(self._told.get("service")), str(self._told.get("link"))
        return made(service, link, "error", {"error": str(why), "exit": why.exit_code})


def _why(path: Path) -> VTLError:
    """Return why a service sends no more."""
    try:
        control.ask(path, "status")
    except VTLError as e:
        return e
    return VTLError("it dropped this reader, which did not read; follow it again")
