"""A peer that says anything, and what an endpoint may make of it: told from the wire and by the RFCs only.

What the endpoint makes of a segment is known for sure of some segments only. So the model keeps bounds: what
may have been taken, from segments that no rule forbids to take, and what must have been, from segments that
no rule allows to refuse. Numbers are positions: octets from the ISS or IRS.
"""

from random import Random

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tcp_network import paths

from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State

LETTERS = {"S": tcp.SYN, ".": tcp.ACK, "F": tcp.FIN, "R": tcp.RST, "P": tcp.PSH, "U": tcp.URG}
PATTERN = Random(1).randbytes(1 << 20)
OURS = Random(2).randbytes(1 << 20)
NEAR = st.one_of(st.integers(-2, 2), st.integers(-3, 3000), st.integers(-(2**31), 2**31 - 1))
ANCHORS = st.sampled_from(("next", "next", "next", "edge", "start", "sent"))
ACKS = st.sampled_from(("all", "all", "all", "una", "old", "start"))
FLAGS = [".", ".", ".", ".", ".", "P.", "U.", "F.", "R", "S", "S.", "", "FS", "FSRP.U"]
UNSYNCHRONIZED = (State.CLOSED, State.LISTEN, State.SYN_SENT)
PEER_CLOSED = (State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)
OWES = (State.SYN_SENT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK, State.TIME_WAIT)
SENDS = (State.ESTABLISHED, State.FIN_WAIT_1, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)
LATEST_RTO_S = 130.0  # a timer that was armed before everybody fell silent


def signed(number):
    return (number + 2**31) % 2**32 - 2**31


def octets(source, start, end):
    """What stands at these positions of a stream."""
    out = bytearray()
    while start < end:
        piece = source[start % len(source) :][: end - start]
        out += piece
        start += len(piece)
    return bytes(out)


class Ranges:
    """Positions that came, as ranges that do not touch."""

    def __init__(self):
        self.ranges = []

    def add(self, start, end):
        if start >= end:
            return
        apart = [(a, b) for a, b in self.ranges if b < start or a > end]
        joined = [(a, b) for a, b in self.ranges if not (b < start or a > end)]
        apart.append((min([start, *(a for a, _ in joined)]), max([end, *(b for _, b in joined)])))
        self.ranges = sorted(apart)

    def prefix(self):
        """The first position from 1 on that is missing."""
        return next((b for a, b in self.ranges if a <= 1 < b), 1)


class Hostile(RuleBasedStateMachine):
    """One endpoint, and a peer without scruples."""

    # --- the beginning

    @initialize(data=st.data())
    def open(self, data):
        pick = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731 - a word for what it is
        self.config = Config(
            timestamps=pick(True, False), sack=pick(True, False), window_scaling=pick(True, False),
            receive_buffer=pick(1, 1000, 70_000, 300_000), send_buffer=pick(1, 3000, 100_000),
            reassembly_segments=pick(1, 3, 1024), mss=pick(None, 100), no_delay=pick(True, False),
            delayed_ack_s=pick(0.0, 0.04, 0.4), user_timeout_s=pick(30.0, 30.0, None),
            fin_wait_2_s=pick(20.0, None), keep_alive_s=pick(50.0, None), super_segment=pick(0, 65_000),
            tail_loss_probe=pick(True, False),
        )  # fmt: skip
        self.iss, self.irs = pick(2**32 - 100, 2**31 - 100, 5), pick(2**32 - 100, 2**31 - 100, 5)
        self.path = paths(pick(4, 6))[0]
        self.now = pick(5.0, 1e6)
        self.tcp = Endpoint(self.path, b"", self.now, self.config, iss=self.iss)
        # what the peer offers in its SYN
        self.offers = {
            "mss": pick(None, 0, 1, 88, 536, 1460, 65535), "window_scale": pick(None, 0, 3, 14, 15, 255),
            "sack_permitted": pick(True, False),
        }  # fmt: skip
        self.stamps = pick(True, True, False)
        self.tsval = pick(0, 2**31 - 5, 2**32 - 5)
        self.reset_model()
        self.calm = pick(True, True, False)  # no end by a reset, nor by our user, before much was said
        self.said = 0
        self.farewell = pick(0, tcp.ACK, tcp.ACK | tcp.FIN)
        self.active, self.first_window = pick(True, False), pick(65535, 3000, 10, 0)
        self.start(handshake=pick(True, True, True, False))

    def reset_model(self):
        self.came, self.fins = Ranges(), set()
        self.up = 0  # behind what our user called urgent
        self.up_may = self.up_must = 0  # the furthest that RCV.UP may be, and the least
        self.must_nxt = 1  # what must have been taken, in order
        self.took_at = self.now  # when that grew last
        self.read_octets = self.written = 0
        self.records = set()  # ends of records
        self.acked = 0  # the highest ACK that the endpoint sent; 0: none
        self.edge = 0  # the right edge of the window that it offered
        self.sent = 0  # behind the highest that it sent
        self.syn_shift = None  # what its SYN offers
        self.una_may = self.una_must = 0
        self.right_may = 0  # the furthest right edge that it may have been offered by us
        self.right_now = None  # the right edge that it knows of; None: not known for sure
        self.wl1_may = 0
        self.max_wnd = 0
        self.echoed = None  # the latest TSecr of the endpoint's
        self.newest = None  # the newest TSval of ours that may have been taken
        self.tsvals = set()
        self.closed = self.peer_has_closed = False
        self.peer_sent = 1

    def start(self, handshake):
        self.tcp.connect() if self.active else self.tcp.listen()
        self.hear()
        if handshake:
            self.say_one(tcp.SYN | (tcp.ACK if self.active else 0), 0, 1, 0, self.first_window, 0)
            self.say_one(tcp.ACK, 1, 1, 0, self.first_window, 1)

    # --- what the endpoint says

    @property
    def in_shift(self):
        """The shift of windows that the endpoint offers."""
        both = self.syn_shift is not None and self.offers["window_scale"] is not None
        return self.syn_shift if both else 0

    @property
    def out_shift(self):
        """The shift of windows that we offer."""
        both = self.config.window_scaling and self.offers["window_scale"] is not None
        return min(self.offers["window_scale"], 14) if both else 0

    @property
    def stamped(self):
        return self.config.timestamps and self.stamps

    @property
    def may_nxt(self):
        """The highest ACK that what came can justify."""
        prefix = self.came.prefix()
        return max([prefix, *(fin + 1 for fin in self.fins if fin <= prefix)])

    @property
    def nxt(self):
        """RCV.NXT, if the peer has not closed: what was read, and what can be."""
        return 1 + self.read_octets + self.tcp.readable

    @property
    def mss(self):
        """The largest segment that it may send."""
        header, default = (40, 536) if len(self.path.local) == 4 else (60, 1220)
        offered = max(self.offers["mss"] or default, 48)
        ours = min(self.config.mss or 65535, self.config.mtu - header)
        return max(min(offered, ours) - 12 * self.stamped, 32)

    def hear(self, answer_to=None):
        frames = self.tcp.transmit(self.now)
        if answer_to is not None and not self.written and not self.closed:
            assert len(frames) <= 2, "one segment does not bring many"
        for frame in frames:
            size = Packet.at(frame).tcp_payload_len
            pieces = segment(frame)
            for piece in pieces:
                pkt = Packet.at(bytearray(piece))
                assert pkt.verify(), "a wrong checksum"
                self.hear_one(pkt.tcp, answer_to)
            assert len(pieces) == 1 or size > self.mss
        assert self.tcp.transmit(self.now) == [], "all that may be sent is sent at once"

    def hear_one(self, said, answer_to):
        flags, start, length = said.flags, signed(said.seq - self.iss), len(said.payload)
        if flags & tcp.RST:
            assert answer_to is None or not answer_to & tcp.RST, "a reset answered by a reset"
            assert not length
            assert not flags & tcp.URG
            return
        if flags & tcp.SYN:
            assert not flags & tcp.URG
            assert start == 0, "our SYN is at the ISS"
            self.syn_shift = said.window_scale
            assert length == 0
            self.sent = max(self.sent, 1)
            if not flags & tcp.ACK:
                self.edge = 1 + said.window
            else:
                assert said.ack == (self.irs + 1) % 2**32
                self.acked, self.edge = 1, max(self.edge, 1 + said.window)
                assert said.window <= self.config.receive_buffer
                assert (said.timestamps is not None) == self.stamped
            return
        assert flags & tcp.ACK, "all but a first SYN acknowledge"
        self.hear_urgent(start, flags & tcp.URG, said.urgent)
        self.hear_ack(said)
        options = said.header_length - tcp.TCP.SIZE - 12 * self.stamped
        assert length + options <= self.mss or not length, "options that make a segment too long"
        self.hear_data(start, bytes(said.payload), flags & tcp.FIN)

    def hear_urgent(self, start, flag, pointer):
        """Whatever starts before SND.UP says so, until that is acknowledged; a keep-alive comes later."""
        assert flag or not pointer
        if flag:
            assert self.una_must < self.up, "urgent again"
            assert pointer == min(self.up - start, 65535) > 0
        else:
            assert start >= self.up or self.una_may >= self.up, "the urgent pointer was left out"

    def hear_ack(self, said):
        ack = signed(said.ack - self.irs)
        assert ack <= self.may_nxt, "an ACK of what did not come"
        assert ack >= self.acked, "an ACK that goes back"
        assert ack == self.acked or not self.peer_has_closed, "an ACK of what is behind the FIN"
        self.acked = ack
        window = said.window << self.in_shift
        fin = any(ack == fin + 1 for fin in self.fins)
        assert ack + window <= 1 + self.read_octets + self.config.receive_buffer + fin, (
            "a window without room"
        )
        assert ack + window > self.edge - (1 << self.in_shift), "a window that shrinks"
        self.edge = max(self.edge, ack + window)
        self.peer_has_closed = self.tcp.state in PEER_CLOSED
        for left, right in said.sack:
            left, right = signed(left - self.irs), signed(right - self.irs)
            assert self.config.sack
            assert self.offers["sack_permitted"]
            assert left < right
            data = right - (right - 1 in self.fins)  # a FIN that waits for data before it is told, too
            assert (
                data == left
                or data <= self.acked
                or any(a <= left and data <= b for a, b in self.came.ranges)
            ), "a SACK of what did not come"
        assert (said.timestamps is not None) == self.stamped, "timestamps on all segments or none"
        if self.stamped:
            echo = said.timestamps[1]
            assert echo in self.tsvals, "an echo of what was not taken"
            assert self.echoed is None or not (echo - self.echoed) & 2**31, "an echo that goes back"
            self.echoed = echo

    def hear_data(self, start, data, fin):
        end = start + len(data)
        keep_alive = not data and not fin and start == self.tcp.info().sent - 1
        assert start >= self.una_must or keep_alive, "what was acknowledged is sent again"
        assert start <= max(self.sent, self.una_may), "octets left out"
        assert data == octets(OURS, start, end), "other octets than were written"
        assert not any(start < each < end for each in self.records), "data of two records"
        assert end - 1 <= self.written + (self.closed and not data), "octets that nobody wrote"
        if fin:
            assert self.closed
            assert end == self.written + 1, "a FIN that is not at the end"
        end += bool(fin)
        if end > start:
            new = end > self.sent
            right = self.right_now if new and self.right_now is not None else self.right_may
            probe = end - start == 1 and start <= max(self.una_may, self.una_must)
            assert end <= right or probe, "data beyond the window"
        self.sent = max(self.sent, end)

    # --- what the peer says

    @rule(flags=st.sampled_from(FLAGS),
          anchor=ANCHORS, seq=NEAR, ack_anchor=ACKS, ack=NEAR, exact=st.integers(0, 3),
          length=st.sampled_from([0, 0, 1, 10, 100, 1500, 40_000]),
          win=st.sampled_from([0, 1, 500, 5000, 65535]), left=NEAR, size=st.integers(-5, 3000),
          blocks=st.integers(0, 3), urgent=st.sampled_from([0, 1, 20, 3000, 65535]),
          stamp=st.sampled_from([0, 0, 0, 1, 10, -1, -1000, -(2**30), None]))  # fmt: skip
    def say(self, flags, anchor, seq, ack_anchor, ack, exact, length, win, left, size, blocks, urgent, stamp):
        bits = sum(LETTERS[letter] for letter in flags)
        places = {"next": self.acked, "edge": self.edge, "start": 0, "sent": self.peer_sent}
        old = self.una_may - self.max_wnd
        acks = {"all": self.sent, "una": self.una_may, "old": old, "start": 0}
        if self.is_calm:
            bits &= ~tcp.RST
        if exact & 1:
            seq, anchor = 0, "start" if bits & tcp.SYN else anchor
        if exact & 2:
            ack = 0
        if length == 40_000:
            blocks = 0
        self.say_one(
            bits,
            places[anchor] + seq,
            acks[ack_anchor] + ack,
            length,
            win,
            stamp,
            [(ack + left + i * size * 2, ack + left + i * size * 2 + size) for i in range(blocks)],
            urgent=urgent,
        )

    def say_one(self, bits, seq, ack, length, win, stamp, sack=(), damage=None, urgent=0):
        self.said += 1
        syn, options = bits & tcp.SYN, {}
        if syn:
            options = dict(self.offers)
        elif sack:
            options["sack"] = [tuple((self.iss + edge) % 2**32 for edge in block) for block in sack]
        tsval = None
        if self.stamps and stamp is not None and (self.config.timestamps or syn):
            tsval = (self.tsval + stamp) % 2**32
            if 0 <= stamp < 2**30:
                self.tsval = tsval
            options["timestamps"] = (tsval, 0)
        elif self.stamps and syn:
            options["timestamps"] = (tsval := self.tsval, 0)
        encoded = tcp.encode_options(**options)
        if len(encoded) > 40:
            options.pop("sack", None)
            encoded = tcp.encode_options(**options)
        path, first = self.path, 1 if syn else seq
        frame = build.tcp(
            src_mac=path.remote_mac, dst_mac=path.local_mac, src=path.remote, dst=path.local,
            sport=path.remote_port, dport=path.local_port, seq=(self.irs + seq) % 2**32,
            ack=(self.iss + ack) % 2**32, flags=bits, window=win, options=encoded, urgent=urgent,
            payload=octets(PATTERN, first, first + length),
        )  # fmt: skip
        if damage is not None:
            frame = damage(frame)
        else:
            self.reckon(bits, signed(seq), signed(ack), length, win, tsval, urgent)
        before = self.tcp.state
        self.tcp.receive(frame, self.now)
        frame[:] = bytes(len(frame))  # it was borrowed
        if before is State.SYN_RECEIVED and self.tcp.state is State.LISTEN:
            self.reset_model()
        if self.tcp.asked:
            self.tcp.accept()
        self.hear(bits)

    def reckon(self, bits, seq, ack, length, win, tsval, urgent):
        """Move the bounds by a segment that is about to arrive."""
        state = self.tcp.state
        if state in UNSYNCHRONIZED:
            self.reckon_opening(state, bits, seq, ack, length, win, tsval)
            if bits & tcp.SYN and bits & tcp.ACK and state is State.SYN_SENT and ack == 1:
                self.may_take(bits, 1, ack, length, win, tsval)
                if bits & tcp.URG:
                    self.up_may = max(self.up_may, 1 + urgent)
            return
        if bits & (tcp.SYN | tcp.RST) or not bits & tcp.ACK:
            if bits & tcp.SYN and bits & tcp.ACK and state is State.SYN_RECEIVED and seq == 0 and ack == 1:
                self.una_may = 1  # both ends open at once
                self.right_may = max(self.right_may, 1 + win)
                self.right_now = None
                self.may_take(bits, 1, ack, length, win, tsval)
                if bits & tcp.URG:
                    self.up_may = max(self.up_may, 1 + urgent)
            return
        end = seq + length + bool(bits & tcp.FIN)
        stamped = self.stamped and tsval is not None
        stale = stamped and self.echoed is not None and (tsval - self.echoed) & 2**31
        if stale or end < self.acked or seq > self.edge:
            return
        if not (self.una_must - max(self.max_wnd, 65535) <= ack <= self.sent):
            return
        if state is State.SYN_RECEIVED and ack != 1:
            return
        self.may_take(bits, seq, ack, length, win << self.out_shift, tsval)
        if bits & tcp.URG:
            self.up_may = max(self.up_may, seq + urgent)
        exact = seq == self.nxt and ack >= self.una_may
        newest = not stamped or self.newest is None or (tsval - self.newest) % 2**32 < 2**31
        if exact and newest and state is not State.SYN_RECEIVED:
            if bits & tcp.URG and state not in PEER_CLOSED:
                self.up_must = max(self.up_must, seq + urgent)
            self.must_take(bits, seq, ack, length, win << self.out_shift)
        else:
            self.right_now = None
        if stamped and newest:
            self.newest = tsval

    def reckon_opening(self, state, bits, seq, ack, length, win, tsval):
        if state is State.CLOSED or not bits & tcp.SYN or bits & tcp.RST:
            return
        if bits & tcp.ACK and (state is State.LISTEN or ack != 1):
            return
        self.irs = (self.irs + seq) % 2**32
        self.right_may = 1 + win
        self.max_wnd = win
        self.una_may = 1 if bits & tcp.ACK else 0
        if self.stamped and tsval is not None:
            self.newest = tsval
            self.tsvals.add(tsval)
        self.peer_sent = 1
        if not bits & tcp.ACK:  # what it carries is kept until the handshake is complete
            self.came.add(1, 1 + length)
            if bits & tcp.FIN:
                self.fins.add(1 + length)

    def may_take(self, bits, seq, ack, length, window, tsval):
        fin = seq + length
        self.came.add(max(seq, 1), min(fin, self.edge))
        if bits & tcp.FIN and fin >= 1:
            self.fins.add(fin)
        self.wl1_may = max(self.wl1_may, seq)  # SND.WL1
        self.una_may = max(self.una_may, ack)
        self.right_may = max(self.right_may, ack + window)
        self.max_wnd = max(self.max_wnd, window)
        self.peer_sent = max(self.peer_sent, fin)
        if tsval is not None and seq <= max(self.acked, 1):
            self.tsvals.add(tsval)

    def must_take(self, bits, seq, ack, length, window):
        taken = min(seq + length, self.edge)
        open_yet = self.tcp.state not in PEER_CLOSED and not any(fin < taken for fin in self.fins)
        if open_yet and taken > self.must_nxt:
            self.must_nxt, self.took_at = taken, self.now
        self.una_must = max(self.una_must, ack)
        self.right_now = ack + window if seq == self.wl1_may else None

    @rule(where=st.integers(0, 10**6), bit=st.integers(0, 7), cut=st.booleans(),
          flags=st.sampled_from([".", "S", "R", "F."]))  # fmt: skip
    def say_damaged(self, where, bit, cut, flags):
        before = self.tcp.info()
        first = 24 + 20 if len(self.path.local) == 4 else 24 + 40  # where every octet is summed

        def damage(frame):
            if cut:
                return frame[: where % len(frame)]
            frame[first + where % (len(frame) - first)] ^= 1 << bit
            return frame

        self.say_one(sum(LETTERS[letter] for letter in flags), self.acked, self.sent, 20, 9, 0, damage=damage)
        after = self.tcp.info()
        assert (before.state, before.received, before.segments_in) == (
            after.state, after.received, after.segments_in,
        )  # fmt: skip

    @rule(junk=st.binary(max_size=120))
    def say_junk(self, junk):
        self.tcp.receive(bytearray(10) + junk, self.now)
        self.hear(0)

    # --- what the user does

    @rule(size=st.sampled_from([0, 1, 400, 5000, 120_000]), urgent=st.sampled_from([False, False, True]),
          more=st.sampled_from([False, False, True]), eor=st.sampled_from([False, False, True]))  # fmt: skip
    def write(self, size, urgent, more, eor):
        room = self.tcp.writable
        data = octets(OURS, 1 + self.written, 1 + self.written + size)
        try:
            took = self.tcp.write(data, urgent=urgent, more=more, eor=eor)
        except ValueError:
            assert room == 0
            return
        assert took == min(size, room)
        self.written += took
        if eor and took == size:
            self.records.add(1 + self.written)
        if urgent and took:
            self.up = 1 + self.written
        self.hear()

    @rule(size=st.sampled_from([1, 50, 1 << 20]), often=st.sampled_from([1, 1000]))
    def read(self, size, often):
        for _ in range(often):
            waits = self.tcp.readable
            piece = bytes(self.tcp.read(size))
            assert self.tcp.readable == waits - len(piece)
            assert bool(piece) == bool(waits)
            assert len(piece) <= size
            start = 1 + self.read_octets
            assert piece == octets(PATTERN, start, start + len(piece)), "other octets than were sent"
            self.read_octets += len(piece)
            assert 1 + self.read_octets <= self.came.prefix(), "octets that did not come"
            if not piece:
                break
        self.hear()

    @precondition(lambda self: not (self.is_calm or self.closed))
    @rule()
    def close(self):
        self.tcp.close()
        self.closed = True
        self.hear()

    @precondition(lambda self: not self.is_calm and self.said % 4 == 3)
    @rule()
    def abort(self):
        self.tcp.abort()
        self.closed = True
        assert self.tcp.state is State.CLOSED
        self.hear()

    @property
    def is_calm(self):
        return self.calm and self.said < 20

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.02, 0.05, 0.3, 1.0, 5.0, 100.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.tcp.wake(self.now)
        self.hear()

    @rule(often=st.integers(1, 5))
    def pass_deadlines(self, often):
        for _ in range(often):
            if not self.next_deadline():
                break

    def next_deadline(self):
        """Go to the next deadline and wake the endpoint, as a driver does. False: there is none."""
        stuck = 0
        while (due := self.tcp.deadline()) is not None:
            late, self.now = due <= self.now, max(self.now, due)
            self.tcp.wake(self.now)
            self.hear()
            if not late:
                return True
            stuck += 1
            assert stuck < 5, "a deadline that waking does not move"
        return False

    @rule(size=st.sampled_from([0, 0, 1, 50, 1500, 60_000]), win=st.sampled_from([0, 1, 700, 20_000, 65535]),
          part=st.sampled_from([0, 1, 1, 2]), fin=st.sampled_from([0] * 9 + [tcp.FIN]))  # fmt: skip
    def obey(self, size, win, part, fin):
        """The peer acknowledges none, all or half, and sends what is next, within the window."""
        size = max(min(size, self.edge - self.acked), 0)
        ack = self.una_may + (self.sent - self.una_may) * part // 2 if part else self.una_may
        self.say_one(tcp.ACK | fin, self.acked, max(ack, 1), size, win, 1)

    @rule(gap=st.integers(1, 30), size=st.sampled_from([1, 10, 700]), often=st.integers(1, 4),
          fin=st.sampled_from([0] * 9 + [tcp.FIN]))  # fmt: skip
    def leave_a_gap(self, gap, size, often, fin):
        """The peer's segments get lost, all but a few."""
        for i in range(1, often + 1):
            self.say_one(tcp.ACK | fin, self.acked + i * (gap + size), max(self.una_may, 1), size, 9000, 1)

    # --- what holds at any time

    @invariant()
    def what_is_owed_has_a_timer(self):
        if not hasattr(self, "tcp"):
            return
        state = self.tcp.state
        owes = state in OWES or (state is State.SYN_RECEIVED and not self.tcp.asked)
        if state in SENDS and self.written + 1 + self.closed > max(self.una_may, 1):
            owes = True
        if owes:
            assert self.tcp.deadline() is not None, self.tcp
        if self.acked < self.must_nxt and state not in UNSYNCHRONIZED:
            assert self.tcp.deadline() <= max(self.took_at + 0.5, self.now), "an ACK that comes too late"
        if state is State.CLOSED:
            assert self.tcp.deadline() is None
            assert self.tcp.ended is not None

    @invariant()
    def its_bounds_hold(self):
        if not hasattr(self, "tcp"):
            return
        info, config = self.tcp.info(), self.config
        assert self.tcp.readable <= config.receive_buffer
        assert info.readable == self.tcp.readable
        assert info.out_of_order <= config.reassembly_segments, "more pieces than were allowed"
        assert info.unacked >= 0
        assert 0 <= info.sacked <= info.unacked
        assert self.tcp.writable <= config.send_buffer
        if info.state in SENDS:
            assert self.written + 1 - max(self.una_may, 1) <= config.send_buffer
        assert info.cwnd >= 1
        got = self.read_octets + self.tcp.readable
        assert got + 1 >= self.must_nxt or info.state is State.CLOSED, "octets that were to be taken"
        assert got + 1 <= self.came.prefix(), "octets that did not come"
        up, next_ = self.tcp.urgent + 1 + self.read_octets, 1 + self.read_octets
        assert min([self.up_must, *self.fins]) <= up, (
            "an urgent pointer that was not taken"
        )  # nor behind a FIN
        assert up <= max(self.up_may, next_), "an urgent pointer that did not come"
        if self.tcp.at_eof and info.state is not State.CLOSED:
            assert self.may_nxt > self.came.prefix() or self.fins

    def teardown(self):
        """From now on the peer is silent; time alone ends what is outstanding."""
        if not hasattr(self, "tcp"):
            return
        if self.tcp.asked:
            self.tcp.refuse()
        self.hear()
        if self.farewell and self.tcp.state is State.ESTABLISHED:
            self.close()
            for _ in range(3):  # as the window lets the data before the FIN out
                self.say_one(self.farewell, self.acked, self.sent, 0, 65535, 1)
        end, config, state = self.tcp, self.config, self.tcp.state
        begun, owed = self.now, self.what_time_ends()
        for _ in range(5000):
            if not self.next_deadline():
                break
            if config.user_timeout_s is None and self.now - begun > 10_000:
                break
        if owed is not None:
            assert end.state is State.CLOSED, f"{state}: {end}"
            assert self.now - begun <= owed, f"{state}: late by {self.now - begun - owed}"
        elif end.state is State.CLOSED:
            assert state is State.CLOSED or config.keep_alive_s is not None or config.user_timeout_s is None

    def what_time_ends(self):
        """In how many seconds the connection must have ended; None: it need not."""
        state, config = self.tcp.state, self.config
        user_s = config.user_timeout_s
        if state in (State.SYN_SENT, State.SYN_RECEIVED):
            return config.syn_timeout_s + 1e-3
        if state is State.TIME_WAIT:
            return config.time_wait_s + 1e-3
        if state in SENDS and self.written + 1 + self.closed > max(self.una_may, 1):
            return None if user_s is None else user_s + config.time_wait_s
        if state is State.FIN_WAIT_2 and config.fin_wait_2_s is not None:
            return config.fin_wait_2_s + 1e-3
        if state in (State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_2) and config.keep_alive_s:
            return config.keep_alive_s + config.keep_alive_probes * config.keep_alive_interval_s + 1e-3
        return None
