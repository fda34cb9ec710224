"""The events of a running service: JSON objects that are printed, kept for a while, and sent to followers.

{"schema": "event/1", "time": "2026-11-26T03:53:35.123456Z", "service": "vtl-fw", "link": "vmnet1",
"event": "link", ...}: docs/schemas/event.json describes all.

An event never waits for its reader. A reader that does not keep up loses events, and learns how many by the
event `lost`.
"""

import asyncio
import json
import socket
import time
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.repeats import Repeats
from vtl_tools.common.text import stamp

Event = dict[str, Any]
Write = Callable[[str], bool]
"""Takes an event as a line; returns whether there was room for it."""

SCHEMA: Final = "event/1"
HISTORY_MAX: Final = 256
"""Past events that a new follower may ask for."""
FOLLOWERS_MAX: Final = 8
"""Followers of a service. The other clients of its control socket can still ask."""
QUEUE_OCTETS_MAX: Final = 1 << 18
"""Octets that wait for a follower."""
HUNG_S: Final = 60.0
"""How long a follower may take nothing while octets wait for it."""
_LINKS_MAX: Final = 1024
LINE_MAX: Final = 1 << 15
"""Octets of the longest event that one process of a service tells another."""


def made(service: str, link: str, name: str, fields: Event) -> Event:
    """Return an event as it is told. link: the first of the service."""
    return {"schema": SCHEMA, "time": stamp(), "service": service, "link": link, "event": name, **fields}


class Events:
    """The events of one service. link: its first link. write: prints a line, if events are printed."""

    def __init__(self, service: str, link: str, write: Write | None = None) -> None:
        self.service, self.link = service, link
        self.followers: list[Follower] = []
        self.write = write
        self._unwritten = 0
        self._history: deque[bytes] = deque(maxlen=HISTORY_MAX)
        self._repeats: Repeats[tuple[str, Hashable]] = Repeats()
        self._up: dict[str, object] = {}
        self._together: Repeats[str] = Repeats()
        self._last: dict[tuple[str, Hashable], Event] = {}  # of the kinds that had repeats
        self._alarm: asyncio.TimerHandle | None = None

    def tell(self, name: str, /, *, cause: Hashable = None, **fields: object) -> None:
        """Tell an event.

        cause: of events that traffic can cause. The first of a cause is told at once; the others of a minute
        become one event of that name, with the fields of the last, `repeats` and `period_s`. If there are too
        many causes, those of the others become one event without fields.
        """
        if cause is not None and self._is_repeated((name, cause), fields):
            return
        self._emit(self._made(name, fields))

    def forward(self, line: bytes, worker: int) -> None:
        """Tell an event of a worker, but not what the service tells for all of them. Ignores other octets."""
        try:
            event = json.loads(line)
            name, time_of = event["event"], event["time"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if not isinstance(name, str) or not isinstance(time_of, str) or name in ("ready", "stats"):
            return
        if name == "link":  # each worker has all links
            link, up = str(event.get("changed")), event.get("up")
            if self._up.get(link, True) == up or len(self._up) >= _LINKS_MAX:
                return
            self._up[link] = up
        self._emit({**event, "service": self.service, "link": self.link, "worker": worker})

    def _made(self, name: str, fields: Event) -> Event:
        return made(self.service, self.link, name, fields)

    def _emit(self, event: Event) -> None:
        line = json.dumps(event, default=str)
        self._print(line)
        octets = line.encode() + b"\n"
        self._history.append(octets)
        for follower in tuple(self.followers):
            follower.put(octets)

    def _print(self, line: str) -> None:
        if self.write is None:
            return
        if self._unwritten and self.write(json.dumps(self.loss(self._unwritten))):
            self._unwritten = 0
        if self._unwritten or not self.write(line):
            self._unwritten += 1

    def loss(self, count: int) -> Event:
        """Return the event that tells a reader how many it lost."""
        return self._made("lost", {"count": count})

    # --- repeats

    def _is_repeated(self, kind: tuple[str, Hashable], fields: Event) -> bool:
        now, untold = time.monotonic(), self._repeats.untold
        if (due := self._repeats.deadline()) is not None and due <= now:
            self.tell_repeats(now)
        if self._repeats.admit(kind, now):
            return False
        if self._repeats.untold == untold:
            self._last[kind] = fields
        else:
            self._together.count(kind[0], now)
        self._rearm()
        return True

    def _rearm(self) -> None:
        if self._alarm is not None or (due := self._repeats.deadline()) is None:
            return
        with suppress(RuntimeError):  # no loop runs yet, or any more
            self._alarm = asyncio.get_running_loop().call_at(due, self._wake)

    def _wake(self) -> None:
        self._alarm = None
        self.tell_repeats(time.monotonic())
        self._rearm()

    def tell_repeats(self, now: float) -> None:
        """Tell the repeats of each cause whose minute is over at `now`."""
        for kind, count in self._repeats.due(now):
            self._tell_repeats(kind[0], self._last.pop(kind), count)
        for name, count in self._together.due(now):
            self._tell_repeats(name, {}, count)

    def _tell_repeats(self, name: str, fields: Event, count: int) -> None:
        told = {**fields, "repeats": count, "period_s": self._repeats.period_s}
        self._emit(self._made(name, told))

    def finish(self) -> None:
        """Tell the repeats that are not told yet: the service ends."""
        self.tell_repeats(time.monotonic() + self._repeats.period_s)

    # --- followers

    def asked(self, request: Event) -> "Follower":
        """Return a new follower, which starts with the `last` events: the verb `events`. Raises VTLError."""
        last = request.get("last", 0)
        if not isinstance(last, int):
            raise VTLError("events: last must be a number")
        if len(self.followers) >= FOLLOWERS_MAX:
            raise VTLError(f"events: {FOLLOWERS_MAX} clients follow already; end one of them")
        follower = Follower(self)
        for line in list(self._history)[-last:] if last > 0 else ():
            follower.put(line)
        self.followers.append(follower)
        return follower


class Follower:
    """One client that follows the events by a socket. Octets that it has not taken wait, up to a bound."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self.result = {"service": events.service, "link": events.link}
        self._waiting = bytearray()
        self.lost = 0
        self._sock: socket.socket | None = None
        self._is_stuck = False
        self._moved = 0.0
        self._alarm: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] | None = None

    def put(self, line: bytes) -> None:
        """Send an event, or keep it until there is room. Never blocks; a full queue loses it."""
        if self._waiting and len(self._waiting) + len(line) > QUEUE_OCTETS_MAX:
            self.lost += 1
            return
        self._tell_lost()
        self._waiting += line
        self._send()

    def _tell_lost(self) -> None:
        if self.lost:
            self._waiting += json.dumps(self._events.loss(self.lost)).encode() + b"\n"
            self.lost = 0

    def _send(self) -> None:
        if self._sock is None or self._is_stuck:
            return
        try:
            while self._waiting:
                del self._waiting[: self._sock.send(self._waiting, socket.MSG_DONTWAIT)]
                if not self._waiting:
                    self._tell_lost()
        except BlockingIOError:
            self._wait_for_room()
        except OSError:
            self._end()

    def _wait_for_room(self) -> None:
        assert self._sock is not None
        loop = asyncio.get_running_loop()
        self._is_stuck, self._moved = True, time.monotonic()
        loop.add_writer(self._sock, self._on_room)
        if self._alarm is None:
            self._alarm = loop.call_at(self._moved + HUNG_S, self._look)

    def _on_room(self) -> None:
        assert self._sock is not None
        asyncio.get_running_loop().remove_writer(self._sock)
        self._is_stuck = False
        self._send()

    def _look(self) -> None:
        """End a client that took nothing for HUNG_S; look again later at one that did."""
        self._alarm = None
        if not self._is_stuck:
            return
        if time.monotonic() - self._moved >= HUNG_S:
            self._end()
        else:
            self._alarm = asyncio.get_running_loop().call_at(self._moved + HUNG_S, self._look)

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    async def serve(self, sock: socket.socket) -> None:
        """Send events on a non-blocking socket until the client goes, or says anything, or hangs."""
        loop = asyncio.get_running_loop()
        self._sock, self._ended = sock, loop.create_future()
        loop.add_reader(sock, self._end)
        try:
            self._send()
            await self._ended
        finally:
            loop.remove_reader(sock)
            loop.remove_writer(sock)
            if self._alarm is not None:
                self._alarm.cancel()
            self.close()

    def close(self) -> None:
        """Follow no more. Idempotent."""
        self._sock = None
        with suppress(ValueError):
            self._events.followers.remove(self)
