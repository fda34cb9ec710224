"""Whatever a guest sends, the relay goes on: nothing is raised, and nothing is kept without bounds."""

from contextlib import suppress
from random import Random

import pytest
from carry import Call, Scene, batch_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.socks import Reason

LETTERS = "S.PFR"


@st.composite
def segments(draw):
    return {
        "flags": "".join(draw(st.sets(st.sampled_from(LETTERS)))),
        "seq": draw(st.sampled_from([-70_000, -1, 0, 1, 2, 500, 1001, 70_000])),
        "ack": draw(st.sampled_from([-1, 0, 1, 2, 1000, 100_000])),
        "data": bytes(draw(st.sampled_from([0, 0, 1, 1000, 3000]))),
        "win": draw(st.sampled_from([0, 1, 10_000])),
    }


EVENTS = st.sampled_from(["bring", "finish", "fail", "drain", "stuff", "stands", "refuses"])
ACTS = st.lists(
    st.tuples(st.sampled_from([40000, 40001]), segments() | EVENTS | st.floats(0.0, 400.0)), max_size=40
)


def act(scene, guest, what, calls):
    call = calls.get(guest.where["sport"])
    match what:
        case float():
            scene.pass_(what)
        case dict():
            made = len(scene.made)
            guest.inject(**what)
            if len(scene.made) > made:
                calls[guest.where["sport"]] = scene.made[-1]
        case _ if call is None or call.stream.closed:
            pass
        case "stands" if call.outcomes[0] is None:
            call.comes_to(b"hello")
        case "refuses" if call.outcomes[0] is None:
            call.comes_to(Reason.REFUSED)
        case "bring" if call.stream.error is None and None not in call.stream.pending:
            call.stream.bring(bytes(5000))
        case "finish" if call.stream.error is None and None not in call.stream.pending:
            call.stream.finish()
        case "fail":
            call.stream.fail()
        case "drain":
            call.stream.drain()
        case "stuff":
            call.stream.room = 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTS, st.sampled_from([4, 6]))
def test_any_segments_and_events_are_survived(acts, version):
    scene, calls = Scene(version), {}
    guests = {port: scene.guest(port) for port in (40000, 40001)}
    guests[40000].establish()
    calls[40000] = scene.made[-1]
    scene.calls.extend(Call(None) for _ in acts)
    for port, what in acts:
        act(scene, guests[port], what, calls)
        scene.turn()
        for pkt in scene.said:
            if pkt.tcp is not None and pkt.tcp.flags & 2:
                guests[pkt.tcp.dport].iss = pkt.tcp.seq
        scene.said.clear()
        assert scene.relay.budget.buffered == sum(flow.buffered for flow in scene.relay.flows.values())
        assert scene.relay.budget.half_open == sum(flow.half_open for flow in scene.relay.flows.values())
    scene.pass_(8000.0)
    assert not scene.relay.flows, "whatever it was, it is over in time"
    assert scene.relay.budget.buffered == scene.relay.budget.half_open == 0
    assert all(call.stream.closed for call in scene.made)


@pytest.mark.parametrize("seed", range(20))
def test_broken_frames_are_survived(seed):
    rng, scene = Random(seed), Scene(4)
    guest = scene.guest()
    guest.establish()
    for _ in range(300):
        frame = guest.frame(
            rng.choice(["S", ".", "F.", "R", "P."]), rng.randrange(5), bytes(rng.randrange(30)), ack=1,
            options={"timestamps": (1, 2), "sack": [(1, 2)]},
        )  # fmt: skip
        for _ in range(rng.randrange(1, 4)):
            frame[rng.randrange(len(frame))] = rng.getrandbits(8)
        if rng.random() < 0.5:
            with suppress(Exception):
                Packet.at(frame).compute_transport_checksum()
                Packet.at(frame).compute_ip_checksum()
        if rng.random() < 0.2:
            del frame[rng.randrange(len(frame)) :]
        scene.relay.on_batch(0, batch_of(frame), scene.now)
        scene.relay.settle(scene.now)
