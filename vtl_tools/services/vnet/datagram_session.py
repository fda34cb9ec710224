"""The session of two daemons over datagrams: sealed records in fragments, and the path's size. Sans-IO.

    data     4 | last | receiver's id | number 8 | index | fragment

A record is sealed as a whole, and cut into fragments of the path's size, of which `last` is the index of
the last one. A record that lacks one is lost, so records are long only while the path loses nothing.
datagram_handshake.py has the other datagrams.
"""

import struct
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from vtl_tools.common.device.batch import FRAME_MAX
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.offload import cut
from vtl_tools.common.packet.vnet import GSO_NONE
from vtl_tools.common.session.items import BYE, FRAME, HEAD, Conversation, Hello, ping_pieces
from vtl_tools.common.session.noise import TAG
from vtl_tools.common.session.numbered import NumberedCipher, ReplayWindow
from vtl_tools.common.session.secure_channel import SecureConfig
from vtl_tools.services.vnet.datagram_handshake import DatagramHandshake

DATA_KIND: Final = 4
DATA: Final = struct.Struct("!BBIQ")
OVERHEAD: Final = DATA.size + 1
"""Octets before the fragment in a datagram of data."""
_PADDED: Final = OVERHEAD + HEAD.size + TAG
"""Octets of a datagram around an item."""

BASE: Final = 1232
"""Octets of a datagram that every path carries: 1280 without IPv6 and UDP (RFC 8200 section 5)."""
LADDER: Final = (1352, 1412, 1452, 1472, 8952)
"""Sizes that are probed (RFC 8899): those of usual MTUs, below the headers of tunnels, IPv4 and IPv6."""
_TRAIN: Final = 64
_TRAIN_OCTETS: Final = 65000
"""Datagrams of one system call, and their octets: UDP_MAX_SEGMENTS of all kernels, and a packet's size."""
_RECORD: Final = 60000
"""Octets of items after which a record is sealed."""
_RECORD_MAX: Final = _RECORD + HEAD.size + FRAME_MAX + TAG
_PARTIAL_MAX: Final = 32
"""Records that wait for fragments."""
_LATE: Final = 64
"""Numbers below the highest one at which a record still waits for fragments."""
_PROBE, _PROBED = 5, 6
_SIZE: Final = struct.Struct("!H")
_PROBES: Final = 3
"""Probes of one size without an answer, after which the path does not carry it."""
_CAUTIOUS_S: Final = 10.0
_BROKEN: Final = 0.01
"""Share of records that lost a part of their fragments, above which records are one datagram each."""
_FEW: Final = 20
_INDICES: Final = [bytes((i,)) for i in range(256)]


class Train(NamedTuple):
    """Datagrams for one system call. size: of each, but the last, which may be shorter."""

    octets: bytes
    size: int


class _Partial:
    """A record that waits for fragments. A super-segment's takes two trains, so this is common."""

    __slots__ = ("count", "last", "octets", "parts")

    def __init__(self, last: int) -> None:
        self.last, self.count, self.octets = last, 0, 0
        self.parts: list[bytes | None] = [None] * (last + 1)

    def put(self, index: int, bodies: Sequence[memoryview]) -> None:
        """Keep fragments that follow each other, the first of them at `index`: as one, if all are new."""
        parts, behind = self.parts, index + len(bodies)
        if parts[index:behind].count(None) == len(bodies):
            parts[index:behind] = [b"".join(bodies)] + [b""] * (len(bodies) - 1)
            self.count += len(bodies)
            return
        for at, body in enumerate(bodies, index):
            if parts[at] is None:
                parts[at] = bytes(body)
                self.count += 1


class DatagramSession(Conversation):
    """One side.

    outbox: what is to be sent. dropped: records and fragments that were not authentic, or came twice.
    size: octets of the datagrams.
    """

    def __init__(
        self, config: SecureConfig, handshake: DatagramHandshake, *, now: float, hello: Hello
    ) -> None:
        super().__init__(hello, now)
        self.config, self.now, self.heard_at = config, now, now
        self.handshake, self.own_id = handshake, handshake.own_id
        self.is_over, self.why = False, ""
        self.outbox: deque[Train] = deque()
        self.dropped = self.sent_records = self.lost_records = self.reported = self.broken = 0
        self.size = BASE
        self.is_cautious = False
        self._is_confirmed = self._was_heard = False
        self._seal: NumberedCipher | None = None
        self._open: NumberedCipher | None = None
        self._window = ReplayWindow()
        self._partial: dict[int, _Partial] = {}
        self._last_report = (0, 0, 0)
        self._lost_at = now
        self._probed: dict[int, int] = {}
        self._ask()

    @property
    def is_up(self) -> bool:
        """Whether records can be sent."""
        return self._is_confirmed and not self.is_over

    @property
    def is_ready(self) -> bool:
        """Whether the other end has the key and has told its name."""
        return self.is_up and self.remote is not None

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session."""
        if self.is_over:
            return
        if say and self.is_up:
            self.emit([HEAD.pack(BYE, 0, 0)])
        self.is_over, self.why = True, why
        self.frames.clear()
        self._partial.clear()

    # --- handshake

    def _ask(self) -> None:
        if first := self.handshake.first(self.now):
            self.outbox.append(Train(first, len(first)))

    def take_cookie(self, cookie: bytes, now: float) -> None:
        """Repeat the first message with a cookie."""
        self.now = now
        self.handshake.take_cookie(cookie)
        self._ask()

    def take_first(self, peer_id: int, message: bytes) -> bytes:
        """Answer a first message; return the ephemeral key in it. Raises Malformed: it has another key."""
        ephemeral = self.handshake.take_first(peer_id, message)
        self._use_keys()
        second = self.handshake.second
        self.outbox.append(Train(second, len(second)))
        return ephemeral

    def take_second(self, peer_id: int, message: bytes, now: float) -> None:
        """Take the answer to the first message. One that is not authentic is counted."""
        if not self.handshake.is_asking:
            return
        if not self.handshake.take_second(peer_id, message):
            self.dropped += 1
            return
        self.now = self.heard_at = now
        self._use_keys()
        self._confirm()

    def _use_keys(self) -> None:
        assert self.handshake.keys is not None
        seal, unseal = self.handshake.keys
        self._seal, self._open = NumberedCipher(seal), NumberedCipher(unseal)

    def _confirm(self) -> None:
        self._is_confirmed = True
        self.on_up()
        for size in LADDER:
            self._probe(size)

    # --- records in

    def receive(self, octets: memoryview, size: int, now: float) -> bool:
        """Take datagrams of data, each of `size` octets but the last. They may be reused afterwards.

        Return whether the newest authentic record so far was among them: the other end is where it came from.
        """
        self.now = now
        before = self._window.top
        if self._take_run(octets, size):
            return self._window.top > before
        for at in range(0, len(octets), size):
            self._take_fragment(octets[at : at + size])
        return self._window.top > before

    def _take_run(self, octets: memoryview, size: int) -> bool:
        """Take fragments of one record that follow each other, in one go. Return whether it were these."""
        count = -(-len(octets) // size)
        last_at = (count - 1) * size
        if size <= OVERHEAD or len(octets) - last_at <= OVERHEAD or octets[0] != DATA_KIND:
            return False
        index = octets[OVERHEAD - 1]
        common = octets[: DATA.size]
        if octets[last_at : last_at + DATA.size] != common:
            return False
        if octets[last_at + DATA.size] != index + count - 1:
            return False
        _, last, receiver, number = DATA.unpack(common)
        if receiver != self.own_id or index + count - 1 > last:
            return True
        bodies = [octets[at + OVERHEAD : at + size] for at in range(0, len(octets), size)]
        self._take(number, last, index, count, bodies)
        return True

    def _take_fragment(self, datagram: memoryview) -> None:
        if len(datagram) <= OVERHEAD:
            return
        kind, last, receiver, number = DATA.unpack_from(datagram)
        index = datagram[DATA.size]
        if kind == DATA_KIND and receiver == self.own_id and index <= last:
            self._take(number, last, index, 1, [datagram[OVERHEAD:]])

    def _take(self, number: int, last: int, index: int, count: int, bodies: Sequence[memoryview]) -> None:
        if self.is_over or self._open is None or not self._window.is_new(number):
            self.dropped += 1
            return
        if count == last + 1:
            self._take_record(number, last, bodies[0] if not last else b"".join(bodies))
            return
        partial = self._partial.get(number)
        if partial is None:
            if len(self._partial) >= _PARTIAL_MAX:
                self._break(next(iter(self._partial)))
            partial = self._partial[number] = _Partial(last)
        octets = sum(map(len, bodies))
        if partial.last != last or partial.octets + octets > _RECORD_MAX:
            self.dropped += 1
            return
        partial.put(index, bodies)
        partial.octets += octets
        if partial.count > last:
            del self._partial[number]
            self._take_record(number, last, b"".join(filter(None, partial.parts)))

    def _break(self, number: int) -> None:
        """Give up a record of which fragments are lost."""
        del self._partial[number]
        self.broken += 1

    def _take_record(self, number: int, last: int, sealed: bytes | memoryview) -> None:
        assert self._open is not None
        header = DATA.pack(DATA_KIND, last, self.own_id, number)
        try:
            body = self._open.open(number, sealed, header)
        except Malformed:
            self.dropped += 1
            return
        self._window.take(number)
        self.heard_at = self.now
        while self._partial and (oldest := next(iter(self._partial))) < number - _LATE:
            self._break(oldest)
        if not self._is_confirmed:
            self._confirm()
        try:
            self.on_record(memoryview(body))
        except Malformed as e:  # it has the key, and does not speak the protocol
            self.end(f"broke the protocol: {e.what}", say=True)

    def on_item(self, kind: int, item: memoryview) -> bool:
        """Take an item that is no frame."""
        if kind == _PROBE:
            self.answer([HEAD.pack(_PROBED, 0, _SIZE.size), _SIZE.pack(len(item) + _PADDED)])
        elif kind == _PROBED:
            if len(item) != _SIZE.size:
                raise Malformed("item.probed")
            (size,) = _SIZE.unpack(item)
            self._probed.pop(size, None)
            if size in LADDER:
                self.size = max(self.size, size)
        else:
            return super().on_item(kind, item)
        return True

    # --- records out

    def emit(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Send a record of items."""
        self.outbox += self._cut(b"".join(pieces), self.size)

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames; return how many of them could not be cut."""
        bad, limit = 0, _RECORD
        if self.is_cautious:
            limit = self.size - OVERHEAD - TAG
            frames, bad = _cut_all(frames)
        trains: list[Train] = []
        pieces: list[bytes | memoryview] = []
        size = 0
        for frame in frames:
            octets = HEAD.size + len(frame)
            if pieces and size + octets > limit:
                trains += self._cut(b"".join(pieces), self.size)
                pieces, size = [], 0
            pieces += (HEAD.pack(FRAME, hops, len(frame)), frame)
            size += octets
        if pieces:
            trains += self._cut(b"".join(pieces), self.size)
        self.outbox += _joined(trains) if self.is_cautious else trains
        return bad

    def _cut(self, body: bytes, size: int) -> Iterator[Train]:
        """Seal a record and cut it into datagrams."""
        assert self._seal is not None
        step = size - OVERHEAD
        last = (len(body) + TAG - 1) // step
        number = self.sent_records
        self.sent_records += 1
        header = DATA.pack(DATA_KIND, last, self.handshake.peer_id, number)
        sealed = self._seal.seal(number, body, header)
        if not last:
            yield Train(b"".join((header, _INDICES[0], sealed)), OVERHEAD + len(sealed))
            return
        view, of_train = memoryview(sealed), min(_TRAIN, _TRAIN_OCTETS // size)
        for first in range(0, last + 1, of_train):
            behind = min(first + of_train, last + 1)
            pieces: list[bytes | memoryview] = [b""] * (2 * (behind - first))
            pieces[::2] = [header + index for index in _INDICES[first:behind]]
            pieces[1::2] = [view[at : at + step] for at in range(first * step, behind * step, step)]
            yield Train(b"".join(pieces), size)

    # --- the path

    def report(self) -> tuple[int, int, int]:
        """Return the records that came, those that were sent as far as is known, those that lost a part."""
        return self._window.taken, self._window.top + 1, self.broken

    def on_report(self, came: int, sent: int, broken: int) -> None:
        """Note which share of the records is lost, and whether records are to be short."""
        self._was_heard = True
        before, self._last_report = self._last_report, (came, sent, broken)
        records = sent - before[1]
        lost = max(0, records - (came - before[0]))
        if records <= 0:
            return
        self.reported += records
        self.lost_records += min(lost, records)
        if lost:
            self._lost_at = self.now
        if records >= _FEW and broken - before[2] > _BROKEN * records:
            self.is_cautious = True
        elif self.now > self._lost_at + _CAUTIOUS_S:
            self.is_cautious = False

    def wake(self, now: float) -> None:
        """Repeat the first message, send a heartbeat, or find that the other end is gone."""
        super().wake(now)
        if not self.is_over:
            self._ask()

    def say_hello(self) -> None:
        """Tell of this daemon, again with heartbeats until one was answered."""
        self._was_heard = False
        super().say_hello()

    def beat(self, now: float) -> None:
        """Send a heartbeat, with the name until one was answered; find out whether the size still fits."""
        pieces = ping_pieces(now) if self._was_heard else [*self.hello_pieces(), *ping_pieces(now)]
        self.outbox += self._cut(b"".join(pieces), BASE)
        for size, tries in list(self._probed.items()):
            if tries < _PROBES:
                self._probe(size)
            elif size == self.size:
                self.shrink()
        if self.size > BASE and self.size not in self._probed:
            self._probe(self.size)

    def shrink(self) -> None:
        """Go back to the size that every path carries, and look for greater ones: the path has changed."""
        self.size, self._probed = BASE, dict.fromkeys(LADDER, 0)

    def _probe(self, size: int) -> None:
        self._probed[size] = self._probed.get(size, 0) + 1
        padding = size - _PADDED
        self.outbox += self._cut(HEAD.pack(_PROBE, 0, padding) + bytes(padding), size)


def _cut_all(frames: Sequence[memoryview]) -> tuple[list[memoryview], int]:
    """Return frames with all super-segments cut, and how many could not be cut."""
    found: list[memoryview] = []
    bad = 0
    for frame in frames:
        if frame[1] == GSO_NONE:
            found.append(frame)
            continue
        try:
            found += map(memoryview, cut(frame))
        except Malformed:
            bad += 1
    return found, bad


def _joined(trains: Sequence[Train]) -> Iterator[Train]:
    """Return datagrams, as many in a train as can be."""
    run: list[bytes] = []
    size = octets = 0
    for train in trains:
        length = len(train.octets)
        is_alone = length == train.size
        if run and (not is_alone or length > size or len(run) >= _TRAIN or octets + length > _TRAIN_OCTETS):
            yield Train(b"".join(run), size)
            run, octets = [], 0
        if not is_alone:
            yield train
            continue
        size = size if run else length
        run.append(train.octets)
        octets += length
        if length < size:  # only the last one may be shorter
            yield Train(b"".join(run), size)
            run, octets = [], 0
    if run:
        yield Train(b"".join(run), size)
