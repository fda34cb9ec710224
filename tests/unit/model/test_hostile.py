"""Whatever is sent past a model, it raises Malformed or nothing, and its numbers stay numbers."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tcp_conversation import Conversation, variables

from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.udp import UdpModel
from vtl_tools.common.packet.packet import Packet

ENDS = st.sampled_from([LOCAL, REMOTE])
NUMBERS = st.one_of(st.integers(-3, 3), st.integers(-(2**31), 2**31))
STAMPS = st.none() | st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
FLAGS = st.sets(st.sampled_from("S.PFR"), min_size=0).map("".join)
SEGMENT = {
    "flags": st.one_of(st.sampled_from([".", "P.", "F.", "S", "S.", "R"]), FLAGS),
    "length": st.sampled_from([0, 0, 1, 100, 1460]),
    "win": st.sampled_from([0, 1, 1000, 65535]),
    "stamps": STAMPS,
}
WIDTH = {"ttl": 8, "dscp": 6, "identification": 16, "flow_label": 20, "port": 16, "wscale": 4, "mss": 16}


class Hostile(RuleBasedStateMachine):
    """Segments near to and far from what is expected, broken frames, and packets of our own in between."""

    @initialize(
        version=st.sampled_from([4, 6]), iss=st.tuples(*[st.integers(0, 2**32 - 1)] * 2), joined=st.booleans()
    )
    def begin(self, version, iss, joined):
        self.talk = Conversation(version, iss)
        if joined:
            self.talk.local("P.", 1, 10, ack=1)
        else:
            self.talk.local("S", 0, window_scale=7)

    @rule(end=ENDS, seq=NUMBERS, ack=NUMBERS, scale=st.none() | st.integers(0, 255), **SEGMENT)
    def segment(self, end, flags, seq, length, ack, win, stamps, scale):
        """Numbers are relative to what is next, so that many are taken."""
        one, other = self.talk.model[end], self.talk.model[end.other]
        seq += one.snd_nxt - self.talk.iss[end]
        ack += other.snd_nxt - self.talk.iss[end.other]
        self.talk.say(end, flags, seq, length, ack=ack, win=win, timestamps=stamps, window_scale=scale)

    @rule(end=ENDS, data=st.data(), flips=st.lists(st.integers(0, 255), min_size=1, max_size=4))
    def broken(self, end, data, flips):
        frame = self.talk.frame(end, "P.", 1, 20, ack=1, timestamps=(1, 1))
        for value in flips:
            frame[data.draw(st.integers(10, len(frame) - 1))] = value
        cut = data.draw(st.integers(0, len(frame)))
        del frame[cut if cut % 2 else len(frame) :]
        for model, sync in (self.talk.model, TcpModel.sync), (self.talk.quick, None):
            with suppress(Malformed):
                model.sync_frame(frame) if sync is None else sync(model, Packet.at(frame))

    @rule(end=ENDS, size=st.integers(0, 5000), flags=st.none() | st.integers(0, 255))
    def create(self, end, size, flags):
        frame = self.talk.model.create(bytes(size), from_=end, flags=flags, offload=True)
        assert self.talk.model.matches(Packet.at(frame)) is end
        self.talk.quick.sync_frame(frame)

    @invariant()
    def numbers_stay_in_their_fields(self):
        if not hasattr(self, "talk"):
            return
        known = variables(self.talk.model)
        assert variables(self.talk.quick) == known
        for part in known:
            for name, value in part.items():
                if isinstance(value, int):
                    assert 0 <= value < 2 ** WIDTH.get(name, 32), name


Hostile.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHostile = pytest.mark.slow(Hostile.TestCase)


@given(st.binary(max_size=120))
@settings(max_examples=200, deadline=None)
def test_foreign_octets_make_a_model_or_are_refused(data):
    frame = bytearray(data)
    for kind in TcpModel, UdpModel:
        with suppress(ValueError):  # Malformed is one
            kind.from_packet(Packet.at(frame))


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_broken_segments_make_a_model_or_are_refused(data):
    talk = Conversation(data.draw(st.sampled_from([4, 6])))
    frame = talk.frame(LOCAL, data.draw(FLAGS), 1, 20, timestamps=data.draw(STAMPS))
    for _ in range(3):
        frame[data.draw(st.integers(10, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):
        TcpModel.from_packet(Packet.at(frame)).create(from_=REMOTE)
