"""Items that two daemons send each other: frames, heartbeats, their names. Sans-IO.

A record is items, each with a head: kind, hops, length. A frame is sent with its virtio_net_hdr, so that
super-segments stay whole. Numbers in that header are little-endian, as they are on all machines that VTL
runs on.
"""

import json
import re
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.device.batch import FRAME_MAX
from vtl_tools.common.device.channel import is_sane
from vtl_tools.common.device.plain import ETHERNET
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.session.secure_channel import SecureConfig

LINK_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,31}")
"""Of a link, and of a daemon; a part of the names of files."""
FRAME_MIN: Final = VNET + ETHERNET
"""Octets that every frame has."""
HOPS_MAX: Final = 8
"""VNET links that a frame passes at most."""
HEAD: Final = struct.Struct("!BBI")
STAMP: Final = struct.Struct("!Q")
_REPORT: Final = struct.Struct("!QQQ")
FRAME, PING, _PONG, BYE, HELLO = 0, 1, 2, 3, 4
INTRODUCE, STATIONS, CARRY = 7, 8, 9
DOOR: Final = re.compile(r"(?P<kind>tcp|udp):(?P<host>\[[0-9A-Fa-f:.]+\]|[0-9.]+):(?P<port>\d{1,5})")
"""Where a daemon can be called: the spec of a link."""
_DOORS_MAX: Final = 8
_MESSAGES_MAX: Final = 16
_MESSAGE: Final = 1 << 14
_HELLO_MAX: Final = 1024
_ANSWERS_MAX: Final = 16
"""Answers to one record: the other end may be one that was taken over, and another host where they go."""
_WAITING_MAX: Final = 1 << 14
"""Frames that wait to be read: more than one reading of a connection brings."""


@dataclass(frozen=True, slots=True)
class Hello:
    """Tells of a daemon. name: the link to it, where it is not chosen.

    doors: specs by which it can be called; those of this daemon are a list that may change. over: the session
    is a shortcut beside the path through the daemon of this name.
    """

    name: str
    doors: Sequence[str] = ()
    over: str = ""

    def to_octets(self) -> bytes:
        """Return the item."""
        return json.dumps(
            {"name": self.name, "doors": list(self.doors[:_DOORS_MAX]), "over": self.over}
        ).encode()

    @classmethod
    def of(cls, item: memoryview) -> "Hello":
        """Return what the item says. Raises Malformed."""
        if len(item) > _HELLO_MAX:
            raise Malformed("hello.length")
        try:
            told = json.loads(bytes(item))
            name, doors, over = told["name"], told["doors"], told["over"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Malformed("hello") from None
        if not isinstance(name, str) or not LINK_NAME.fullmatch(name):
            raise Malformed("hello.name")
        if not isinstance(over, str) or (over and not LINK_NAME.fullmatch(over)):
            raise Malformed("hello.over")
        if not isinstance(doors, list) or len(doors) > _DOORS_MAX:
            raise Malformed("hello.doors")
        if not all(isinstance(door, str) and DOOR.fullmatch(door) for door in doors):
            raise Malformed("hello.doors")
        return cls(name, tuple(doors), over)


class Conversation:
    """Base of the sessions of two daemons. frames: those that came, with their hops; to be taken out.

    hello: of this daemon; remote: of the other one, once it has come. rtt_s: of heartbeats, smoothed.
    messages: items for adaptation, with their kinds; to be taken out.
    """

    config: SecureConfig
    now: float
    heard_at: float

    def __init__(self, hello: Hello, now: float) -> None:
        self.frames: deque[tuple[int, memoryview]] = deque()
        self.messages: deque[tuple[int, bytes]] = deque(maxlen=_MESSAGES_MAX)
        self.malformed = 0
        self.rtt_s: float | None = None
        self.hello = hello
        self.remote: Hello | None = None
        self._began_at = self._beat_at = now
        self._answers = 0

    @property
    def is_up(self) -> bool:
        """Whether records can be sent."""
        raise NotImplementedError

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session. say: tell the other end."""
        raise NotImplementedError

    def emit(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send a record of items."""
        raise NotImplementedError

    def on_up(self) -> None:
        """Tell the name, and measure the round trip at once."""
        self._beat_at = self.now
        self.say_hello()

    def say_hello(self) -> None:
        """Tell of this daemon, once the session is up: at first, and when its doors have changed."""
        self.emit(self.hello_pieces())

    def hello_pieces(self) -> list[bytes | memoryview]:
        """Return the item that tells of this daemon."""
        item = self.hello.to_octets()
        return [HEAD.pack(HELLO, 0, len(item)), item]

    def report(self) -> tuple[int, int, int]:
        """Return, for the other end: the records that came, that it has sent, and that came in part."""
        return 0, 0, 0

    def on_report(self, came: int, sent: int, broken: int) -> None:
        """Take the other end's report, in answer to a heartbeat."""

    def on_record(self, body: memoryview) -> None:
        """Take the items of a record. A frame that is none is counted and dropped. Raises Malformed."""
        at, end = 0, len(body)
        self._answers = 0
        while at < end:
            if end - at < HEAD.size:
                raise Malformed("item", at)
            kind, hops, size = HEAD.unpack_from(body, at)
            at += HEAD.size
            if size > end - at:
                raise Malformed("item.length", at)
            item = body[at : at + size]
            at += size
            if kind == FRAME:
                self._take_frame(hops, item)
            elif kind == BYE:
                self.end("ended")
                return
            elif not self.on_item(kind, item):
                raise Malformed("item.kind", at)

    def on_item(self, kind: int, item: memoryview) -> bool:
        """Take an item that is no frame. Return whether the kind is known. Raises Malformed."""
        if kind in (PING, _PONG):
            self._take_stamp(kind, item)
        elif kind == HELLO:
            self.remote = Hello.of(item)
        elif kind in (INTRODUCE, STATIONS, CARRY):
            if len(item) > _MESSAGE:
                raise Malformed("item.message")
            self.messages.append((kind, bytes(item)))
        else:
            return False
        return True

    def _take_frame(self, hops: int, frame: memoryview) -> None:
        is_frame = FRAME_MIN <= len(frame) <= FRAME_MAX and is_sane(frame)
        if not is_frame or len(self.frames) >= _WAITING_MAX:
            self.malformed += 1
            return
        self.frames.append((min(hops, HOPS_MAX), frame))

    def _take_stamp(self, kind: int, item: memoryview) -> None:
        if len(item) != STAMP.size + (0 if kind == PING else _REPORT.size):
            raise Malformed("item.stamp")
        if kind == PING:
            report = _REPORT.pack(*self.report())
            self.answer([HEAD.pack(_PONG, 0, STAMP.size + _REPORT.size), bytes(item), report])
            return
        self.on_report(*_REPORT.unpack_from(item, STAMP.size))
        sent_at = STAMP.unpack_from(item)[0] / 1e6
        rtt_s = self.now - sent_at
        if 0 <= rtt_s < self.config.dead_after_s:  # else the other end invents stamps
            self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) / 8

    def answer(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send an item that the other end asks for. Raises Malformed if a record asks for too many."""
        self._answers += 1
        if self._answers > _ANSWERS_MAX:
            raise Malformed("item.answers")
        self.emit(pieces)

    def wake(self, now: float) -> None:
        """Send a heartbeat, or find that the other end is gone."""
        self.now = now
        config = self.config
        if not self.is_up:
            if now >= self._began_at + config.handshake_s:
                self.end("does not answer")
            return
        if now >= self.heard_at + config.dead_after_s:
            self.end("is silent")
        elif now >= self._beat_at:
            self._beat_at = now + config.heartbeat_s
            self.beat(now)

    def beat(self, now: float) -> None:
        """Send a heartbeat."""
        self.emit(ping_pieces(now))


def ping_pieces(now: float) -> list[bytes | memoryview]:
    """Return a heartbeat."""
    return [HEAD.pack(PING, 0, STAMP.size), STAMP.pack(int(now * 1e6))]
