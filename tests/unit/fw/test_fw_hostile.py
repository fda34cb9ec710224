"""What anybody may send, and what must hold for the table whatever happens."""

from fw import IN, OUT, PEER, VM, Malformed, Wire, ends, segment
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vtl_tools.common.model.source_shares import SourceShares
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.rules.rule import NO_RULE, Verdict
from vtl_tools.services.fw.flow import Decision, Flow, Opening, flow_key

ALLOWED = Decision(Verdict.ALLOW, NO_RULE, "known")
SEEDS = [
    segment(OUT, "S", 0),
    segment(IN, "S.", 0, 1),
    build.udp(**ends(OUT, six=True), sport=5000, dport=53, payload=b"?" * 20),
    build.icmp_echo(**ends(OUT), identifier=1, sequence=1),
    build.arp(src_mac=b"\2" * 6, dst_mac=b"\4" * 6, sha=b"\2" * 6, spa=VM, tpa=PEER),
]

PLAIN = [
    segment(direction, flags, seq, ack, data, options=options)
    for direction, flags, seq, ack, data, options in (
        (OUT, "S", 0, 0, b"", tcp.encode_options(mss=1460, window_scale=7, timestamps=(1, 0))),
        (IN, "S.", 0, 1, b"", tcp.encode_options(mss=1460, window_scale=2, timestamps=(5, 1))),
        (OUT, "S", 9, 0, b"", b""),
        (OUT, ".", 1, 1, b"", tcp.encode_options(timestamps=(2, 5))),
        (IN, "P.", 1, 1, b"data", tcp.encode_options(timestamps=(6, 2))),
        (IN, "R", 5, 0, b"", b""),
        (OUT, "R", 1, 0, b"", b""),
    )
]
PLAIN += [build.udp(**ends(OUT, six=six), sport=5000, dport=80, payload=b"?") for six in (False, True)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=120), st.sampled_from([IN, OUT])), max_size=8))
def test_any_octets_get_a_decision(frames):
    wire = Wire("allow out\ndeny")
    for frame, direction in frames:
        decision = wire.tracker.receive(bytearray(frame), direction, 1.0)
        assert decision.verdict is not Verdict.ALLOW or len(frame) >= 24


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(SEEDS),
            st.lists(st.tuples(st.integers(22, 90), st.integers(0, 255)), max_size=4),
            st.integers(24, 130),
            st.sampled_from([IN, OUT]),
        ),
        max_size=8,
    )
)
def test_broken_packets_get_a_decision(changed):
    wire = Wire("allow")
    for seed, changes, size, direction in changed:
        frame = bytearray(seed[:size])
        for at, octet in changes:
            if at < len(frame):
                frame[at] = octet
        before = bytes(frame)
        assert wire.tracker.receive(frame, direction, 1.0).why
        assert bytes(frame) == before


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(PLAIN),
            st.lists(st.tuples(st.integers(22, 90), st.integers(0, 255)), max_size=1),
            st.sampled_from([IN, OUT]),
        ),
        max_size=12,
    )
)
def test_the_quick_way_leads_where_the_slow_one_does(changed):
    quick, slow = (
        Wire("allow out tcp, udp port 80\nallow in tcp from 0.0.0.0/1\ndeny").tracker for _ in "ab"
    )
    for seed, changes, direction in changed:
        frame = bytearray(seed)
        for at, octet in changes:
            frame[at % len(frame)] = octet
        told = quick.receive(frame, direction, 1.0)
        try:
            expected = slow.judge(Packet.at(frame), direction, 1.0)
        except Malformed:
            assert told.why.startswith("malformed")
        else:
            assert (told.verdict, str(told.rule), told.why) == (
                expected.verdict,
                str(expected.rule),
                expected.why,
            )
        assert [(f.key, f.opening, f.states, f.until) for f in quick.flows] == [
            (f.key, f.opening, f.states, f.until) for f in slow.flows
        ]


@given(
    st.lists(
        st.tuples(st.sampled_from("SFR.P"), st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=30
    )
)
@settings(max_examples=200, deadline=None)
def test_no_segment_of_the_peer_opens_what_only_the_vm_may(said):
    """Whatever both sides say: without a SYN of the VM's there is no connection."""
    wire = Wire("allow out tcp port 80\ndeny")
    asked = False
    for flags, seq, ack, outgoing in said:
        word = wire.say(OUT if outgoing else IN, flags, seq, ack)
        asked = asked or (outgoing and flags == "S")
        if not asked:
            assert not word.startswith("+")


def flow(source, number):
    key = flow_key(IN, 17, bytes((10, 0, 0, source)), VM, number.to_bytes(4, "big"), -1, IN)
    return Flow(key, ALLOWED, Opening(IN, b"", b"", -1), None)


class SharesMachine(RuleBasedStateMachine):
    """Shares against lists."""

    def __init__(self):
        super().__init__()
        self.shares, self.model, self.number = SourceShares(), {}, 0

    @rule(source=st.integers(0, 4))
    def add(self, source):
        self.number += 1
        made = flow(source, self.number)
        self.shares.add(made)
        self.model.setdefault(source, []).append(made)

    @rule(source=st.integers(0, 4), at=st.integers(0, 9))
    def remove(self, source, at):
        mine = self.model.get(source, [])
        if at < len(mine):
            self.shares.remove(mine.pop(at))

    @invariant()
    def the_victim_is_the_oldest_of_who_has_most(self):
        victim, most = self.shares.victim(), max(map(len, self.model.values()), default=0)
        assert self.shares.count == sum(map(len, self.model.values()))
        if not most:
            assert victim is None
        else:
            assert victim in [mine[0] for mine in self.model.values() if len(mine) == most]

    @invariant()
    def sources_are_counted(self):
        for source in range(5):
            assert self.shares.of(bytes((10, 0, 0, source))) == len(self.model.get(source, []))


TestShares = SharesMachine.TestCase
TestShares.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class TableMachine(RuleBasedStateMachine):
    """The table against a dict of when each flow ends."""

    def __init__(self):
        super().__init__()
        self.wire, self.until = Wire("allow", flows_max=1000), {}

    @rule(port=st.integers(1, 30))
    def say(self, port):
        self.wire.udp(OUT, vm=port, peer=1)
        self.until[port] = self.wire.now + 120.0

    @rule(seconds=st.floats(0, 150))
    def wait(self, seconds):
        self.wire.wait(seconds)
        self.until = {port: until for port, until in self.until.items() if until > self.wire.now}

    @rule()
    def end_one(self):
        for found in self.wire.tracker.flows:
            self.wire.tracker.end(found)
            self.until.pop(found.ports[0], None)  # a flow may stay up to a second longer
            break

    @invariant()
    def flows_live_until_they_end_and_hardly_longer(self):
        alive = {found.ports[0] for found in self.wire.tracker.flows}
        assert set(self.until) <= alive
        late = {found.ports[0] for found in self.wire.tracker.flows if found.until < self.wire.now - 1}
        assert not late
        assert (self.wire.tracker.deadline() is None) == (not alive)


TestTable = TableMachine.TestCase
TestTable.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
