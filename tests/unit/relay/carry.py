"""Conversations with the relay: a guest at one side, a scripted stream at the other, on a manual clock."""

import errno
import select
from collections import deque
from dataclasses import replace

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.relay.flow import RELAYED
from vtl_tools.common.relay.relay import Relay

LETTERS = {"S": tcp.SYN, ".": tcp.ACK, "P": tcp.PSH, "F": tcp.FIN, "R": tcp.RST}
MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
HOSTS = {4: ("192.0.2.1", "10.0.0.2"), 6: ("2001:db8::1", "fd00::2")}
IRS = 2**31 - 2
PROMPT = replace(RELAYED, delayed_ack_s=0.0, delayed_fin_ack=False)
"""So that what is acknowledged can be expected at once."""

IN, OUT, HANGUP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLIN | select.EPOLLRDHUP
BROKEN = HANGUP | select.EPOLLERR | select.EPOLLHUP


def batch_of(*frames):
    return Batch.of(frames)


def brief(pkt):
    """A packet in a line."""
    seg = pkt.tcp
    if seg is None:
        return repr(pkt.icmp)
    flags = "".join(letter for letter, bit in LETTERS.items() if seg.flags & bit)
    return f"{seg.sport}>{seg.dport} {flags} {seg.seq}:{len(seg.payload)} ack {seg.ack} win {seg.window}"


class Stream:
    """What a socket is to the relay, with the test at its other end. Tells of edges, as a poller does.

    got: what the relay sent. room: octets that it still takes. ended: how the relay left it.
    """

    def __init__(self):
        self.on_event = None
        self.got, self.room = bytearray(), 1 << 30
        self.pending = deque()
        self.error = None
        self.edges = 0
        self.was_full = self.finished = self.closed = self.linger = False
        self.reads = 0

    # --- the test's side

    def bring(self, *pieces):
        """Let octets come."""
        self.pending.extend(pieces)
        self.edges |= IN

    def finish(self):
        """Let the other side close."""
        self.pending.append(None)
        self.edges |= HANGUP

    def fail(self, code=errno.ECONNRESET):
        """Break."""
        self.error = OSError(code, "broken")
        self.edges |= BROKEN | OUT

    def drain(self, octets=1 << 30):
        """Have room again."""
        self.room = octets
        if self.was_full:
            self.was_full = False
            self.edges |= OUT

    def tell(self, now):
        """Tell of the edges since the last time, as a poller would; return whether there were any."""
        edges, self.edges = self.edges, 0
        if not edges or self.closed or self.on_event is None:
            return False
        self.on_event(edges, now)
        return True

    # --- the relay's side

    def fileno(self):
        return -1

    def send(self, octets):
        assert not self.closed
        assert not self.finished, "nothing follows the end"
        if self.error is not None:
            raise self.error
        taken = bytes(octets[: self.room])
        self.room -= len(taken)
        if len(taken) < len(octets):
            self.was_full = True
        if not taken:
            raise BlockingIOError
        self.got += taken
        return len(taken)

    def sendmsg(self, pieces):
        return self.send(b"".join(pieces))

    def recv_into(self, room, octets):
        room = room[:octets]
        assert not self.closed
        self.reads += 1
        size = 0
        while self.pending and self.pending[0] is not None and size < len(room):
            data = self.pending.popleft()
            part = min(len(data), len(room) - size)
            room[size : size + part] = data[:part]
            size += part
            if part < len(data):
                self.pending.appendleft(data[part:])
        if size:
            return size
        if self.error is not None:
            raise self.error
        if not self.pending:
            raise BlockingIOError
        return 0

    def shutdown(self, how):
        if self.error is not None:
            raise self.error
        self.finished = True

    def setsockopt(self, level, option, value):
        self.linger = True

    def close(self):
        assert not self.closed, "closed once"
        self.closed = True

    @property
    def was_reset(self):
        return self.closed and self.linger


class Call:
    """A call that comes to what the test says. outcomes: of step(), in turn; the last one stays."""

    def __init__(self, *outcomes):
        self.stream = Stream()
        self.outcomes = deque(outcomes)
        self.tries = 0

    def step(self, events):
        self.tries += 1
        outcome = self.outcomes.popleft() if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, type):
            raise outcome
        return outcome

    def comes_to(self, outcome):
        """Let it come to this, and the relay hear of it."""
        self.outcomes = deque([outcome])
        self.stream.edges |= OUT


class Scene:
    """The relay, its guest's link, and the calls that it makes. Each dial takes the next of `calls`."""

    def __init__(self, version=4, config=PROMPT, early_ack=False, **limits):
        self.now, self.version = 100.0, version
        self.calls, self.made, self.others, self.ended, self.dropped = deque(), [], [], [], []
        self.relay = Relay(
            self.dial,
            b"secret",
            config=config,
            limits=RelayLimits(**limits),
            on_drop=lambda frame, now: self.dropped.append(bytes(frame)),
            on_non_tcp=lambda frame, now: self.others.append(bytes(frame)),
            on_end=lambda flow, now: self.ended.append(flow),
            early_ack=early_ack,
        )
        self.relay.out[0] = self.hear
        self.said, self.lines = [], []

    def dial(self, path):
        call = self.calls.popleft() if self.calls else Call(b"")
        if isinstance(call, type):
            raise call
        self.made.append(call)
        return call

    @property
    def stream(self):
        """The stream of the latest call."""
        return self.made[-1].stream

    def hear(self, batch, now):
        for frame in batch:
            for piece in segment(bytearray(frame)):
                pkt = Packet.at(bytearray(piece))
                assert pkt.verify(), "a right checksum"
                self.said.append(pkt)
                self.lines.append(f"{now:9.3f} < {brief(pkt)}")

    def push(self, *frames):
        """Hand frames over, as a link does: the octets are gone after settling."""
        for i in range(0, len(frames), SLOTS):
            batch = Batch.of(frames[i : i + SLOTS])
            self.relay.on_batch(0, batch, self.now)
            self.relay.settle(self.now)
            for frame in batch:
                frame[:] = b"\xee" * len(frame)

    def end(self, stream):
        """Let a stream come to its end, and settle once, which may put its FIN off."""
        stream.finish()
        stream.tell(self.now)
        self.relay.settle(self.now)

    def turn(self):
        """Take what streams tell, until nothing moves."""
        for _ in range(10_000):
            moved = self.relay.poll(self.now)
            for call in list(self.made):
                moved |= call.stream.tell(self.now)
            self.relay.settle(self.now)
            if not moved:
                assert not self.relay.poll(self.now)
                return
        raise AssertionError(self.tell("it goes round and round"))

    def pass_(self, seconds):
        """Let time pass, waking the relay when it wants to be woken."""
        self.turn()
        end = self.now + seconds
        for _ in range(100_000):
            due = self.relay.deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self.relay.wake(self.now)
            self.turn()
        else:
            raise AssertionError(self.tell("it wakes and wakes"))
        self.now = end

    def guest(self, port=40000, **more):
        """Return a guest's end of a connection that is not begun yet."""
        return Guest(self, port, **more)

    def expect_nothing(self):
        self.turn()
        assert not self.said, self.tell("nothing was expected")

    def tell(self, what):
        return "\n".join([what, *self.lines[-30:], f"left: {[brief(pkt) for pkt in self.said]}"])


class Guest:
    """The guest's end of one connection, in the manner of packetdrill: numbers count from each end's ISS."""

    def __init__(self, scene, port=40000, dport=80, version=None):
        self.scene = scene
        theirs, ours = (address.ip(text) for text in HOSTS[version or scene.version])
        self.where = {
            "src_mac": MACS[1], "dst_mac": MACS[0], "src": ours, "dst": theirs, "sport": port, "dport": dport,
        }  # fmt: skip
        self.irs, self.iss = IRS, 0

    def frame(self, flags, seq=0, data=b"", ack=0, win=10_000, options=None, **where):
        bits = sum(LETTERS[letter] for letter in flags)
        return build.tcp(
            **{**self.where, **where}, seq=(self.irs + seq) % 2**32,
            ack=(self.iss + ack) % 2**32 if bits & tcp.ACK else 0, flags=bits, window=win, payload=data,
            options=tcp.encode_options(**(options or {})),
        )  # fmt: skip

    def inject(self, flags, seq=0, data=b"", **more):
        """Say something; data may be a number of octets."""
        data = bytes(data) if isinstance(data, int) else data
        frame = self.frame(flags, seq, data, **more)
        self.scene.lines.append(f"{self.scene.now:9.3f} > {brief(Packet.at(frame))}")
        self.scene.push(frame)

    def hear(self):
        scene = self.scene
        scene.turn()
        assert scene.said, scene.tell("something was expected, and nothing came")
        pkt = scene.said.pop(0)
        assert (pkt.ip.dst, pkt.ip.src) == (self.where["src"], self.where["dst"])
        assert (pkt.eth.dst, pkt.eth.src) == MACS[::-1]
        return pkt

    def expect(self, flags, seq=None, data=None, ack=None, win=None):
        """Hear the next segment; what is given must be so. data: octets, or how many. Returns its view."""
        scene, heard = self.scene, self.hear().tcp
        assert heard is not None, scene.tell(f"{flags!r} was expected, and no segment")
        bits = sum(LETTERS[letter] for letter in flags)
        assert heard.flags & ~tcp.PSH == bits & ~tcp.PSH, scene.tell(f"{flags!r} was expected: {heard!r}")
        assert (heard.dport, heard.sport) == (self.where["sport"], self.where["dport"])
        if "S" in flags:
            self.iss = heard.seq
        if seq is not None:
            at = (heard.seq - self.iss) % 2**32
            assert at == seq, scene.tell(f"seq {seq} was expected, not {at}")
        if ack is not None:
            at = (heard.ack - self.irs) % 2**32
            assert at == ack, scene.tell(f"ack {ack} was expected, not {at}")
        length = len(heard.payload)
        if isinstance(data, int) or data is None:
            assert length == (data or 0), scene.tell(f"{data} octets were expected, not {length}")
        else:
            assert bytes(heard.payload) == data, scene.tell("other octets were expected")
        assert win is None or heard.window == win, scene.tell(f"win {win} was expected, not {heard.window}")
        return heard

    def expect_icmp(self, kind, code):
        """Hear an ICMP error that quotes our SYN, whole."""
        pkt = self.hear()
        assert pkt.icmp is not None, self.scene.tell("an ICMP error was expected")
        assert (pkt.icmp.type, pkt.icmp.code) == (kind, code)
        syn = Packet.at(self.syn_frame)
        assert bytes(pkt.icmp.payload) == bytes(syn.buf[syn.ip.off : syn.ip.end])

    def expect_nothing(self):
        self.scene.expect_nothing()

    # --- states, reached by speaking

    def syn(self, win=10_000, **more):
        """Call, and return the call that the relay makes of it."""
        self.syn_frame = self.frame("S", 0, win=win, options={"mss": 1000}, **more)
        self.scene.push(self.syn_frame)
        return self.scene.made[-1] if self.scene.made else None

    def establish(self, win=10_000):
        """Call, and finish the handshake; return the stream."""
        self.syn(win)
        self.expect("S.", seq=0, ack=1)
        self.inject(".", 1, ack=1, win=win)
        self.expect_nothing()
        return self.scene.stream

    @property
    def flow(self):
        """The relay's part in it; None if it has none."""
        where = self.where
        key = (
            where["src"]
            + where["dst"]
            + where["sport"].to_bytes(2, "big")
            + where["dport"].to_bytes(2, "big")
        )
        return self.scene.relay.flows.get(key)
