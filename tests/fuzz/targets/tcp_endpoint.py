"""A TCP endpoint whose peer is hostile: segments near to and far from what it waits for, and broken frames.

Checked: nothing is raised; what read() gives is what the peer sent there; nothing is acknowledged that was
not sent; each frame is a sound segment to the peer, from the place that the stream says; what is held and
what one input makes the endpoint say stay bounded; deadlines pass.
"""

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

from tests.fuzz.octets import Octets, blob
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.wire import Path, is_intact, parse

PATH = Path(b"\2\0\0\0\0\1", b"\2\0\0\0\0\2", b"\x0a\0\0\1", b"\x0a\0\0\2", 80, 40000)
ISS, IRS = 2**32 - 300, 2**31 - 200
BUFFER, PIECES = 4096, 16
CONTROLS = ("newreno", "cubic", "bbr")
CONFIG = Config(receive_buffer=BUFFER, reassembly_segments=PIECES, send_buffer=4096, user_timeout_s=60.0,
                keep_alive_s=50.0, fin_wait_2_s=60.0)  # fmt: skip
UNSYNCHRONIZED = (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED)
STEPS_MAX = 64
STREAM = bytes(range(251)) * 40
"""What both sides write: the octet at each place tells where it is from."""
FLAGS = (tcp.ACK, tcp.ACK | tcp.PSH, tcp.ACK | tcp.FIN, tcp.SYN, tcp.SYN | tcp.ACK, tcp.RST,
         tcp.RST | tcp.ACK, tcp.ACK | tcp.URG, 0, 0xFF)  # fmt: skip


class Talk:
    """The endpoint, and what its peer has sent so far. Numbers are relative to each end's ISS."""

    def __init__(self, passive: bool, control: str) -> None:
        self.now = 100.0
        self.tcp = Endpoint(PATH, b"secret", self.now, replace(CONFIG, congestion=control), iss=ISS)
        self.sent_to = 0
        """Behind the last number that the peer has used, data, SYN and FIN alike."""
        self.acked = 0
        """The highest number that the endpoint has said it waits for."""
        self.got = 0
        self.tcp.listen() if passive else self.tcp.connect()

    def hear(self) -> None:
        """Look at what the endpoint says now."""
        said = self.tcp.transmit(self.now)
        assert len(said) < 64, "one step made it say so much"
        for frame in said:
            for piece in segment(frame):
                pkt = Packet.at(piece)
                assert pkt.verify()
                net, seen = pkt.ip, pkt.tcp
                assert (net.src, net.dst, seen.sport, seen.dport) == (PATH.local, PATH.remote, 80, 40000)
                if seen.flags & tcp.RST:
                    continue
                at = (seen.seq - ISS) % 2**32
                data = bytes(seen.payload)
                assert data == STREAM[at - 1 : at - 1 + len(data)] or not data, "sent what was not written"
                if seen.flags & tcp.ACK:
                    number = (seen.ack - IRS) % 2**32
                    assert number <= self.sent_to, "acknowledged what was not sent"
                    assert number >= self.acked or seen.flags & tcp.SYN, "took an acknowledgement back"
                    self.acked = max(self.acked, number)

    def check(self) -> None:
        """Look at the stream, and at what is held."""
        end = self.tcp
        assert end.readable <= BUFFER
        due = end.deadline()
        assert due is None or due > 0
        info = end.info()
        assert info.out_of_order <= PIECES
        assert info.rcv_wnd <= BUFFER + 1
        assert end.state is State.CLOSED or 0 <= info.unacked <= CONFIG.send_buffer + 2
        assert info.cwnd > 0
        self.check_flight()

    def check_flight(self) -> None:
        """Compare the octets in flight with their counts."""
        snd = self.tcp.snd
        flight, runs = snd.runs, snd.runs.runs
        assert all(one.end == two.start for one, two in pairwise(runs))
        assert all(run.start < run.end for run in runs)
        assert not runs or (runs[0].start, runs[-1].end) == (max(snd.una, 1), snd.nxt)  # the SYN is in none
        assert flight.sacked == sum(run.end - run.start for run in runs if run.sacked)
        assert flight.lost == sum(run.end - run.start for run in runs if run.lost)
        assert not any(run.sacked and run.lost for run in runs)

    def read(self, octets: int) -> None:
        """Take octets out of the stream."""
        data = bytes(self.tcp.read(octets))
        assert data == STREAM[self.got : self.got + len(data)], "the stream is not what was sent"
        self.got += len(data)

    def say(self, take: Octets) -> None:
        """Let the peer send a segment; its numbers are near to what is next, or anything."""
        flags, how = take.pick(FLAGS), take.number()
        seq = (self.acked + take.number() - 128 if how & 1 else take.number(4)) % 2**32
        has_blocks = how & 64 and not flags & tcp.SYN
        near = self.tcp.snd.una + 128 if has_blocks else self.tcp.snd.max
        ack = (near + take.number() - 128 if how & 2 else take.number(4)) % 2**32
        if flags & tcp.SYN and self.tcp.state in UNSYNCHRONIZED:
            seq = 0  # else the numbers would be of another stream
        start = seq + (flags & tcp.SYN > 0)
        length = take.number(2) % 2000 if how & 8 and 1 <= start < len(STREAM) - 2000 else 0
        options = tcp.encode_options(
            mss=take.number(2) if how & 16 else None,
            window_scale=take.number() if how & 32 else None,
            sack_permitted=bool(how & 64) and not has_blocks,
            sack=self.blocks(take) if has_blocks else (),
            timestamps=(take.number(4), take.number(4)) if how & 128 else None,
        )
        if how & 16 and not flags & tcp.SYN:  # any octets at all
            options = take.take(take.number() % 41)
            options += bytes(-len(options) % 4)
        used = length + (flags & tcp.SYN > 0) + (flags & tcp.FIN > 0)
        if used and seq < self.acked + 2**16:  # further on is in no window
            self.sent_to = max(self.sent_to, seq + used)
        self.put(build.tcp(
            src_mac=PATH.remote_mac, dst_mac=PATH.local_mac, src=PATH.remote, dst=PATH.local, sport=40000,
            dport=80, seq=(IRS + seq) % 2**32, ack=(ISS + ack) % 2**32 if flags & tcp.ACK else 0, flags=flags,
            window=take.number(2), options=options, payload=STREAM[start - 1 : start - 1 + length],
            urgent=take.number(2) if flags & tcp.URG else 0,
        ))  # fmt: skip

    def blocks(self, take: Octets) -> list[tuple[int, int]]:
        """Ranges near to what is in flight."""
        starts = [ISS + self.tcp.snd.una + 8 * take.number() - 64 for _ in range(2)]
        return [(start % 2**32, (start + 8 * (take.number() - 16)) % 2**32) for start in starts]

    def break_in(self, frame: bytearray) -> None:
        """Put a frame that is no segment of the peer's, or not a whole one."""
        with suppress(Malformed):
            found = parse(frame)
            if found is not None and found.flow == self.tcp.framer.expected and is_intact(frame):
                return
        self.put(frame)

    def put(self, frame: bytearray) -> None:
        self.tcp.receive(frame, self.now)
        self.tcp.own()

    def shake(self) -> None:
        """Open the connection, from whichever side."""
        passive = self.tcp.state is State.LISTEN
        self.sent_to = 1
        flags = tcp.SYN if passive else tcp.SYN | tcp.ACK
        options = tcp.encode_options(mss=1000, window_scale=2, sack_permitted=True)
        ends = {"src_mac": PATH.remote_mac, "dst_mac": PATH.local_mac, "src": PATH.remote, "dst": PATH.local}
        ports = {"sport": 40000, "dport": 80, "window": 5000}
        ack = 0 if passive else (ISS + 1) % 2**32
        self.put(build.tcp(**ends, **ports, seq=IRS, ack=ack, flags=flags, options=options))
        if passive and self.tcp.asked:
            self.tcp.accept()
            self.hear()
            self.put(build.tcp(**ends, **ports, seq=IRS + 1, ack=(ISS + 1) % 2**32, flags=tcp.ACK))


def step(talk: Talk, what: int, take: Octets) -> None:
    end = talk.tcp
    if what < 8:
        talk.say(take)
    elif what == 8:
        talk.now += take.number(2) / 100
        if (due := end.deadline()) is not None and due <= talk.now:
            end.wake(talk.now)
    elif what == 9:
        talk.read(take.number(2))
    elif what == 10 and end.writable:
        at = end.acknowledged + end.snd.queue.tail - end.snd.queue.head
        end.write(STREAM[at : at + take.number(2) % 2000], urgent=take.flag())
    elif what == 11:
        with suppress(ValueError):  # connection closing
            end.close()
    elif what == 12:
        end.abort()
    elif what == 13 and end.asked:
        end.accept() if take.flag() else end.refuse()
    elif what == 14:
        end.path_mtu(take.number(2))
    elif what == 15:
        talk.break_in(bytearray(take.blob()))


def one(data: bytes) -> None:
    take = Octets(data)
    how = take.number()
    talk = Talk(passive=bool(how & 1), control=CONTROLS[(how >> 2) % 3])
    talk.hear()
    if how & 2:
        talk.shake()
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        step(talk, take.number() % 16, take)
        talk.hear()
        talk.check()
    for _ in range(100):  # until there is nothing more to wait for: every deadline brings something about
        due = talk.tcp.deadline()
        if due is None:
            break
        talk.now = max(talk.now, due)
        talk.tcp.wake(talk.now)
        talk.hear()
    talk.read(1 << 20)


def seeds() -> list[bytes]:
    data = bytes((0, 1, 9 | 4, 128, 0, 100)) + bytes((16, 0))
    frame = build.tcp(src_mac=PATH.remote_mac, dst_mac=PATH.local_mac, src=PATH.remote, dst=PATH.local,
                      sport=40000, dport=80, seq=IRS + 1, ack=ISS + 1, flags=tcp.ACK,
                      payload=b"\0\1\2")  # fmt: skip
    write = bytes((10, 3, 232, 0))
    return [
        bytes((how,)) + body
        for how in range(12)
        for body in (
            data * 3 + bytes((9, 255, 255)) + write + data,
            write + bytes((0, 0, 13, 128, 0, 10, 16, 0)) + bytes((11,)) + bytes((0, 2, 13, 128, 0, 0, 16, 0)),
            bytes((15,)) + blob(bytes(frame)) + bytes((8, 3, 0)) * 4,
            bytes((13, 1)) + data + bytes((14, 2, 0)) + write + bytes((8, 255, 255)) * 3,
        )
    ]
