"""Early acknowledgement: the SYN is answered before the call stands, and what then happens to both."""

import pytest
from carry import Call

from vtl_tools.common.relay.flow import FlowStage
from vtl_tools.common.socks import Reason


@pytest.fixture
def early(fresh):
    """The guest's connection is established, and the call is under way."""
    scene = fresh(early_ack=True, open_s=60.0)
    call = Call(None)
    scene.calls.append(call)
    guest = scene.guest()
    guest.syn()
    guest.expect("S.", seq=0, ack=1)
    guest.inject(".", 1, ack=1)
    guest.expect_nothing()
    yield scene, guest, call
    assert scene.relay.budget.buffered == sum(flow.buffered for flow in scene.relay.flows.values())


def test_what_the_guest_sent_meanwhile_is_carried_once_the_call_stands(early):
    scene, guest, call = early
    assert guest.flow.stage is FlowStage.OPEN
    guest.inject("P.", 1, b"early", ack=1)
    guest.expect(".", seq=1, ack=6)
    assert bytes(call.stream.got) == b""
    call.comes_to(b"first")
    guest.expect(".", seq=1, data=b"first")
    guest.inject(".", 6, ack=6)
    guest.expect_nothing()
    assert bytes(call.stream.got) == b"early"
    assert guest.flow.stage is FlowStage.ESTABLISHED
    assert (scene.relay.budget.established, scene.relay.budget.half_open) == (1, 0)


@pytest.mark.parametrize("reason", [Reason.REFUSED, Reason.HOST_UNREACHABLE])
def test_a_call_that_fails_resets_the_connection(early, reason):
    scene, guest, call = early
    guest.inject("P.", 1, b"early", ack=1)
    guest.expect(".", seq=1, ack=6)
    call.comes_to(reason)
    guest.expect("R.", seq=1)
    guest.expect_nothing()
    assert not scene.relay.flows
    assert (scene.relay.budget.failed, scene.relay.budget.buffered) == (1, 0)


def test_a_call_that_takes_too_long_resets_the_connection(early):
    scene, guest, _ = early
    scene.pass_(61.0)
    guest.expect("R.", seq=1)
    assert not scene.relay.flows


def test_a_guest_that_gives_up_ends_the_call(early):
    scene, guest, call = early
    guest.inject("R", 1)
    scene.expect_nothing()
    assert not scene.relay.flows
    assert call.stream.closed


def test_a_guest_that_has_said_all_before_the_call_stands_is_heard(early):
    scene, guest, call = early
    guest.inject("FP.", 1, b"all", ack=1)
    scene.pass_(1.0)
    guest.expect(".", seq=1, ack=5)
    call.comes_to(b"")
    scene.pass_(0.1)
    assert bytes(call.stream.got) == b"all"
    assert call.stream.finished


def test_a_syn_ack_that_is_lost_is_sent_again(fresh):
    scene = fresh(early_ack=True, open_s=60.0)
    scene.calls.append(Call(None))
    guest = scene.guest()
    guest.syn()
    guest.expect("S.", seq=0, ack=1)
    scene.pass_(1.5)
    guest.expect("S.", seq=0, ack=1)


def test_a_call_that_fails_at_once_is_told_as_without_it(fresh):
    scene = fresh(early_ack=True)
    scene.calls.append(Call(Reason.REFUSED))
    guest = scene.guest()
    guest.syn_frame = guest.frame("S", options={"mss": 1460})
    scene.push(guest.syn_frame)
    guest.expect("R.", seq=0, ack=1)
    assert not scene.relay.flows
