"""One direction of the wide area: frames go in, and come out later, or not at all."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from random import Random
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.supersegment import SuperSegment
from vtl_tools.common.packet.vnet import GSO_NONE, VNET
from vtl_tools.services.wan.bottleneck import Bottleneck
from vtl_tools.services.wan.loss import Loss
from vtl_tools.services.wan.settings import REORDER_S, PathSettings

OVERHEAD: Final = 128
"""Octets of memory that a waiting frame costs at most beside its content: 45 in a batch, 110 alone."""
POPPED: Final = 64
"""Frames that come out at once; a batch that went in together also comes out together."""
_CE: Final = 3  # congestion experienced (RFC 3168 section 5)


class Line:
    """Frames in the order in which they come out: alone, or those of one time together."""

    __slots__ = ("_last", "frames", "times")

    def __init__(self) -> None:
        self.times: deque[float] = deque()
        self.frames: deque[bytes | list[bytes]] = deque()
        self._last = 0.0

    def append(self, due: float, frames: bytes | list[bytes]) -> None:
        """Put frames at the end: none overtakes another, whatever the delay is now."""
        if due > self._last:
            self._last = due
        self.times.append(self._last)
        self.frames.append(frames)


class WanPath:
    """Sans-IO: `now` is in seconds, on a monotonic clock. memory: octets that may wait.

    drops: frames by reason; they are counted in `total`, too. passed, octets: that came out. cut:
    super-segments that were cut.
    """

    def __init__(
        self,
        settings: PathSettings,
        rng: Random,
        memory: int,
        now: float = 0.0,
        total: Counter[str] | None = None,
    ) -> None:
        self.settings = settings
        self.drops: Counter[str] = Counter()
        self._total = Counter() if total is None else total
        self.passed = self.octets = self.cut = self.marked = self.duplicated = self.reordered = (
            self.corrupted
        ) = 0
        self._rng, self._memory = rng, memory
        self._loss = Loss(settings, rng)
        self._bottleneck = Bottleneck(settings, now)
        self._line, self._late = Line(), Line()  # the second is for reordered frames
        self._held = 0
        self._out_until = 0.0

    def apply(self, settings: PathSettings, now: float) -> None:
        """Use other settings for frames that come from now on. Those that wait keep their times."""
        self.settings = settings
        self._loss.apply(settings)
        self._bottleneck.apply(settings, now)

    def fail(self, until: float) -> None:
        """Drop all frames that come before a time: an outage."""
        self._out_until = until

    def _drop(self, reason: str, count: int = 1) -> None:
        self.drops[reason] += count
        self._total[reason] += count

    # --- in

    def push(self, frames: Iterable[memoryview], count: int, octets: int, now: float) -> None:
        """Take frames, which are copied. count, octets: of all together."""
        if now < self._out_until:
            self._drop("outage", count)
        elif not self.settings.keeps_whole:
            for frame in frames:
                self._push_segments(frame, now)
        elif self._held + octets + count * OVERHEAD > self._memory:
            self._drop("memory", count)
        else:
            self._held += octets + count * OVERHEAD
            copies = [bytes(frame) for frame in frames]
            self._line.append(now + self.settings.delay_s, copies[0] if count == 1 else copies)

    def _push_segments(self, frame: memoryview, now: float) -> None:
        try:
            if self._stays_whole(frame):
                self._push_one(frame, now)
                return
            pieces = self._pieces(frame)
        except Malformed:
            self._drop("malformed")
            return
        for piece in pieces:
            if self._loss.takes():
                self._drop("lost")
                continue
            self._push_one(piece, now)
            if self.settings.duplicate and self._rng.random() < self.settings.duplicate:
                self.duplicated += 1
                self._push_one(piece, now)

    def _stays_whole(self, frame: memoryview) -> bool:
        """Return whether a super-segment has none but a lossy path before it, and loses no segment there."""
        if not self.settings.only_loses or len(frame) < VNET or frame[1] == GSO_NONE:
            return False
        whole = SuperSegment.at(frame)
        return self._loss.spares(max(1, -(-len(whole.data) // whole.size)))

    def _pieces(self, frame: memoryview) -> Sequence[bytearray | memoryview]:
        """Return the segments of a frame. Before damage a partial checksum is completed, so that it tells."""
        if len(frame) >= VNET and frame[1] == GSO_NONE and not self.settings.corrupt:
            return [frame]
        pieces = segment(frame)
        self.cut += len(pieces) > 1
        return pieces

    def _push_one(self, piece: bytearray | memoryview, now: float) -> None:
        settings, octets = self.settings, len(piece) - VNET
        if self._held + octets + OVERHEAD > self._memory:
            self._drop("memory")
            return
        is_capable = settings.ecn and ecn_of(piece) in (1, 2)
        at, reason, marked = self._bottleneck.depart(octets, now, is_capable=is_capable)
        if at is None:
            self._drop(reason)
            return
        frame = bytes(piece)
        if marked:
            self.marked += 1
            frame = with_ce(frame)
        if settings.corrupt and self._rng.random() < settings.corrupt:
            self.corrupted += 1
            frame = self._damage(frame)
        self._held += octets + OVERHEAD
        due = at + settings.delay_s + self._jitter()
        if settings.reorder and self._rng.random() < settings.reorder:
            self.reordered += 1
            self._late.append(due + REORDER_S, frame)
        else:
            self._line.append(due, frame)

    def _jitter(self) -> float:
        """Return a deviation from the delay, which never makes it negative."""
        settings, rng = self.settings, self._rng
        width = settings.jitter_s
        if not width:
            return 0.0
        if settings.distribution == "uniform":
            deviation = rng.uniform(-width, width)
        elif settings.distribution == "pareto":  # shape 3: mean 1.5, standard deviation 0.866
            deviation = width * (rng.paretovariate(3) - 1.5) / 0.866
        else:
            deviation = rng.gauss(0.0, width)
        return max(deviation, -settings.delay_s)

    def _damage(self, frame: bytes) -> bytes:
        """Flip one bit of the Ethernet frame."""
        if len(frame) <= VNET:
            return frame
        damaged = bytearray(frame)
        damaged[self._rng.randrange(VNET, len(frame))] ^= 1 << self._rng.randrange(8)
        return bytes(damaged)

    # --- out

    def due(self) -> float | None:
        """Return when the next frame comes out; None: none waits."""
        times = [line.times[0] for line in (self._line, self._late) if line.times]
        return min(times) if times else None

    def pop(self, now: float) -> list[bytes]:
        """Return frames that are due, in order: about POPPED, if there are so many. Empty: none is."""
        found: list[bytes] = []
        line, late = self._line, self._late.times
        while len(found) < POPPED:
            if late and (not self._line.times or late[0] < self._line.times[0]):
                line = self._late
            if not line.times or line.times[0] > now:
                break
            line.times.popleft()
            frames = line.frames.popleft()
            if isinstance(frames, bytes):
                found.append(frames)
            else:
                found += frames
            line = self._line
        octets = sum(map(len, found)) - VNET * len(found)
        self._held -= octets + OVERHEAD * len(found)
        self.passed += len(found)
        self.octets += octets
        return found

    def status(self, now: float) -> dict[str, object]:
        """Return settings and counters."""
        return {
            **self.settings.told(),
            "out": now < self._out_until,
            "passed": self.passed,
            "octets": self.octets,
            "waiting_octets": self._held,
            "queue_now_s": round(self._bottleneck.waits_s(now), 6),
            "cut": self.cut,
            "marked": self.marked,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "corrupted": self.corrupted,
            "drops": dict(self.drops),
        }


def ecn_of(frame: bytearray | memoryview | bytes) -> int:
    """Return the ECN field of a frame's IP header (RFC 3168); 0 for other frames, and for tagged ones."""
    kind = frame[VNET + 12 : VNET + 14]
    if kind == b"\x08\x00" and len(frame) >= VNET + 34:
        return frame[VNET + 15] & 3
    if kind == b"\x86\xdd" and len(frame) >= VNET + 54:
        return frame[VNET + 15] >> 4 & 3
    return 0


def with_ce(frame: bytes) -> bytes:
    """Return a frame with the ECN field set to CE, and the header checksum of IPv4 updated."""
    marked = bytearray(frame)
    try:
        pkt = Packet.at(marked)
    except Malformed:
        return frame
    if pkt.ip is not None:
        pkt.ip.ecn = _CE
    return bytes(marked)
