"""No sequence of segments, calls and times breaks an endpoint (hypothesis looks for one)."""

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tcp_network import paths

from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State

ISS, IRS = 2**32 - 100, 2**31 - 100
NEAR = st.one_of(st.integers(-3, 40), st.integers(0, 5000), st.integers(-(2**31), 2**31 - 1))
OWES = {State.SYN_SENT, State.FIN_WAIT_1, State.CLOSING, State.LAST_ACK, State.TIME_WAIT}


class Hostile(RuleBasedStateMachine):
    """A peer that says anything; what the endpoint says is held against what it was told."""

    @initialize(active=st.booleans(), options=st.booleans(), buffer=st.sampled_from((1, 1000, 70_000)))
    def open(self, active, options, buffer):
        config = Config(timestamps=False, sack=options, window_scaling=False, receive_buffer=buffer)
        self.path = paths()[0]
        self.now = 5.0
        self.tcp = Endpoint(self.path, b"", self.now, config, iss=ISS)
        self.came = set()  # positions of octets that came, or of a FIN
        self.right = 0  # the right edge of the largest window that was offered
        self.active = active
        self.tcp.connect() if active else self.tcp.listen()
        self.listen_to_it()

    def listen_to_it(self):
        for frame in self.tcp.transmit(self.now):
            segment = Packet.at(frame).tcp
            flags, start = segment.flags, (segment.seq - ISS + 2**31) % 2**32 - 2**31
            if flags & tcp.RST:
                continue
            if flags & tcp.ACK and self.came:
                acked = (segment.ack - IRS + 2**31) % 2**32 - 2**31
                assert all(position in self.came for position in range(1, acked)), (
                    "an ACK of what did not come"
                )
            if length := len(segment.payload):
                # an octet may probe what is not offered
                assert start + length <= max(self.right, self.tcp.info().sent if length == 1 else 0)

    @rule(flags=st.sampled_from([".", ".", ".", "F.", "R", "R.", "S", "S.", "", "FS"]), seq=NEAR, ack=NEAR,
          length=st.sampled_from([0, 0, 1, 10, 1500]), win=st.sampled_from([0, 1, 500, 65535]),
          left=NEAR, size=st.integers(-5, 3000), exact=st.integers(0, 2))  # fmt: skip
    def hear(self, flags, seq, ack, length, win, left, size, exact):
        letters = {"S": tcp.SYN, ".": tcp.ACK, "F": tcp.FIN, "R": tcp.RST}
        bits = sum(letters[letter] for letter in flags)
        if bits & tcp.SYN:
            seq = 0
        elif exact:
            seq = self.tcp._tcb.rcv.nxt
        if exact == 2:
            ack = self.tcp._tcb.snd.nxt
        self.came.update(range(max(seq, 0), min(max(seq, 0) + length + 2, 10_000)))
        self.right = max(self.right, ack + win, win + 1)
        frame = build.tcp(
            src_mac=self.path.remote_mac, dst_mac=self.path.local_mac, src=self.path.remote,
            dst=self.path.local,
            sport=self.path.remote_port, dport=self.path.local_port, seq=(IRS + seq) % 2**32,
            ack=(ISS + ack) % 2**32, flags=bits, window=win, payload=bytes(length),
            options=tcp.encode_options(
                mss=500 if bits & tcp.SYN else None, sack_permitted=bool(bits & tcp.SYN),
                sack=[] if bits & tcp.SYN else [((ISS + left) % 2**32, (ISS + left + size) % 2**32)],
            ),
        )  # fmt: skip
        self.tcp.receive(frame, self.now)
        if self.tcp.asked:
            self.tcp.accept()
        self.listen_to_it()

    @rule(octets=st.sampled_from([1, 400, 5000]))
    def write(self, octets):
        if self.tcp.writable:
            self.tcp.write(bytes(octets))
            self.listen_to_it()

    @rule(octets=st.sampled_from([1, 100_000]))
    def read(self, octets):
        self.tcp.read(octets)
        self.listen_to_it()

    @rule()
    def close(self):
        self.tcp.close()
        self.listen_to_it()

    @rule(seconds=st.sampled_from([0.001, 0.3, 5.0, 100.0]))
    def pass_time(self, seconds):
        self.now += seconds
        self.tcp.wake(self.now)
        self.listen_to_it()

    @invariant()
    def what_is_owed_has_a_timer(self):
        if hasattr(self, "tcp"):
            info = self.tcp.info()
            owes = info.unacked or (info.unsent and info.state is State.ESTABLISHED)
            if info.state in OWES or (owes and info.state is not State.CLOSED):
                assert self.tcp.deadline() is not None, self.tcp

    @invariant()
    def memory_is_bounded(self):
        if hasattr(self, "tcp"):
            assert self.tcp.readable <= self.tcp.config.receive_buffer

    def teardown(self):
        """Left alone after the user has closed, it ends by itself, unless the peer alone may still speak."""
        if not hasattr(self, "tcp"):
            return
        self.tcp.close()
        for _ in range(500):
            self.listen_to_it()
            due = self.tcp.deadline()
            if due is None:
                break
            self.now = max(self.now, due)
            self.tcp.wake(self.now)
        assert self.tcp.state in (State.CLOSED, State.FIN_WAIT_2), self.tcp


TestHostile = Hostile.TestCase
TestHostile.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
