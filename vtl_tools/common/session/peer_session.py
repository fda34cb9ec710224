"""The session of two daemons over one connection: frames in sealed records. Sans-IO.

A record (common/session/secure_channel.py) is items, each with a head: kind, hops, length. A frame is sent
with its virtio_net_hdr, so that super-segments stay whole. Numbers in that header are little-endian, as they
are on all machines that VTL runs on.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.batch import FRAME_MAX
from vtl_tools.common.device.channel import is_sane
from vtl_tools.common.device.plain import ETHERNET
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.session.secure_channel import Role, SecureChannel, SecureConfig, SessionState

HOPS_MAX: Final = 8
"""VNET links that a frame passes at most."""
FRAME_MIN: Final = VNET + ETHERNET
"""Octets that every frame has."""
HEAD: Final = struct.Struct("!BBI")
STAMP: Final = struct.Struct("!Q")
_FRAME, _PING, _PONG, _BYE = 0, 1, 2, 3
_RECORD: Final = 1 << 16
"""Octets of items after which a record is sealed."""
_WAITING_MAX: Final = 1 << 14
"""Frames that wait to be read: more than one reading of a connection brings."""


class PeerSession(SecureChannel):
    """One side of a connection between daemons. frames: those that came, with their hops; to be taken out.

    rtt_s: of heartbeats, smoothed.
    """

    prologue = b"vtl-vnet 1"
    sizes = range(HEAD.size, _RECORD + HEAD.size + FRAME_MAX + 1)

    def __init__(
        self,
        role: Role,
        config: SecureConfig,
        *,
        psk: bytes,
        ephemeral: bytes,
        now: float,
        is_fresh: Callable[[bytes], bool] = lambda key: True,
    ) -> None:
        self.frames: deque[tuple[int, memoryview]] = deque()
        self.malformed = 0
        self.rtt_s: float | None = None
        self._began_at = self._beat_at = now
        super().__init__(role, config, psk=psk, ephemeral=ephemeral, now=now, is_fresh=is_fresh)

    def on_up(self) -> None:
        """Measure the round trip at once."""
        self._beat_at = self.now

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session."""
        if self.is_over:
            return
        if say and self.is_up:
            self._emit_record([HEAD.pack(_BYE, 0, 0)])
        self.state, self.why = SessionState.OVER, why
        self.frames.clear()

    def on_record(self, body: memoryview) -> None:
        """Take the items of a record. A frame that is none is counted and dropped. Raises Malformed."""
        at, end = 0, len(body)
        while at < end:
            if end - at < HEAD.size:
                raise Malformed("item", at)
            kind, hops, size = HEAD.unpack_from(body, at)
            at += HEAD.size
            if size > end - at:
                raise Malformed("item.length", at)
            item = body[at : at + size]
            at += size
            if kind == _FRAME:
                self._take_frame(hops, item)
            elif kind in (_PING, _PONG):
                self._take_stamp(kind, item)
            elif kind == _BYE:
                self.end("ended")
                return
            else:
                raise Malformed("item.kind", at)

    def _take_frame(self, hops: int, frame: memoryview) -> None:
        is_frame = FRAME_MIN <= len(frame) <= FRAME_MAX and is_sane(frame)
        if not is_frame or len(self.frames) >= _WAITING_MAX:
            self.malformed += 1
            return
        self.frames.append((min(hops, HOPS_MAX), frame))

    def _take_stamp(self, kind: int, item: memoryview) -> None:
        if len(item) != STAMP.size:
            raise Malformed("item.stamp")
        if kind == _PING:
            self._emit_record([HEAD.pack(_PONG, 0, STAMP.size), bytes(item)])
            return
        sent_at = STAMP.unpack(item)[0] / 1e6
        rtt_s = self.now - sent_at
        if 0 <= rtt_s < self.config.dead_after_s:  # else the other end invents stamps
            self.rtt_s = rtt_s if self.rtt_s is None else self.rtt_s + (rtt_s - self.rtt_s) / 8

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Make records of frames, one at least; return how many frames are in the outbox now."""
        pieces: list[bytes | memoryview] = []
        size = 0
        for taken, frame in enumerate(frames, 1):
            pieces += (HEAD.pack(_FRAME, hops, len(frame)), frame)
            size += HEAD.size + len(frame)
            if size >= _RECORD or taken == len(frames):
                self._emit_record(pieces)
                return taken
        return 0

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
            self._emit_record([HEAD.pack(_PING, 0, STAMP.size), STAMP.pack(int(now * 1e6))])
