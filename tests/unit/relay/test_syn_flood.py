"""A flood of SYNs: who asks again, and who answers a challenge, is let in."""

from tests.unit.tor.test_tor_hostile import syn
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.relay.syn_flood import _CHALLENGES_PER_S, _REMEMBERED_MAX, SynFloodGuard, SynVerdict
from vtl_tools.common.tcp.wire import parse

MOST = 100


def test_all_are_let_in_until_half_of_the_places_are_taken_and_nobody_when_all_are():
    crowd = SynFloodGuard(b"secret")
    assert crowd.judge(b"a", 0.0, half_open=49, most=MOST) is SynVerdict.ACCEPT
    assert crowd.judge(b"a", 0.0, half_open=50, most=MOST) is SynVerdict.DROP
    assert crowd.judge(b"a", 2.0, half_open=100, most=MOST) is SynVerdict.DROP


def test_who_asks_again_after_a_second_is_let_in_and_who_repeats_himself_sooner_is_not():
    crowd = SynFloodGuard(b"secret")
    assert crowd.judge(b"a", 0.0, half_open=60, most=MOST) is SynVerdict.DROP
    assert crowd.judge(b"a", 0.4, half_open=60, most=MOST) is SynVerdict.DROP
    assert crowd.judge(b"a", 1.0, half_open=60, most=MOST) is SynVerdict.ACCEPT
    assert crowd.judge(b"a", 1.1, half_open=60, most=MOST) is SynVerdict.DROP


def test_a_caller_proves_himself_by_the_reset_that_the_rfc_asks_for():
    crowd, frame = SynFloodGuard(b"secret"), bytearray(NONE + syn(1234))
    segment = parse(frame)
    assert crowd.judge(segment.flow, 0.0, half_open=80, most=MOST) is SynVerdict.DROP
    assert crowd.judge(segment.flow, 1.0, half_open=80, most=MOST) is SynVerdict.CHALLENGE
    challenge = Packet.at(bytearray(crowd.challenge(frame, segment)))
    assert challenge.verify()
    assert challenge.tcp.flags == SYN | ACK
    assert challenge.tcp.ack != segment.seq + 1

    reset = bytearray(frame)
    header = Packet.at(reset).tcp
    header.flags, header.seq = RST, challenge.tcp.ack + 1
    crowd.on_reset(parse(reset), 1.1)
    assert crowd.judge(segment.flow, 1.2, half_open=80, most=MOST) is not SynVerdict.ACCEPT
    header.seq = challenge.tcp.ack
    crowd.on_reset(parse(reset), 1.3)
    assert crowd.judge(segment.flow, 1.4, half_open=80, most=MOST) is SynVerdict.ACCEPT
    assert crowd.judge(segment.flow, 1.5, half_open=80, most=MOST) is not SynVerdict.ACCEPT


def test_what_a_flood_costs_has_a_bound():
    crowd = SynFloodGuard(b"secret")
    flows = [number.to_bytes(12, "big") for number in range(_REMEMBERED_MAX + 1000)]
    for flow in flows:
        crowd.judge(flow, 0.0, half_open=80, most=MOST)
    assert len(crowd._seen) == _REMEMBERED_MAX
    verdicts = [crowd.judge(flow, 1.0, half_open=80, most=MOST) for flow in flows[-2 * _CHALLENGES_PER_S :]]
    assert verdicts.count(SynVerdict.CHALLENGE) == _CHALLENGES_PER_S
