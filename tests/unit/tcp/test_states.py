"""Opening, closing and resetting, from every state (RFC 9293 section 3.10)."""

import pytest
from talk import PLAIN, Talk

from vtl_tools.common.packet import address
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, SegmentDrop, State

pytestmark = pytest.mark.usefixtures("fresh")  # IPv4 and IPv6, also where a fixture is asked for by name

STATES = [state.name.lower() for state in State]
SYNCHRONIZED = STATES[4:]


@pytest.mark.parametrize("name", STATES)
def test_each_fixture_is_in_its_state(name, request):
    assert request.getfixturevalue(name)[0].state.name.lower() == name


def test_a_syn_waits_for_its_answer_until_the_user_accepts(listen):
    tcp, peer = listen
    peer.inject("S", 0, mss=1000)
    peer.inject("S", 0, mss=1000)
    peer.expect_nothing()
    assert tcp.asked
    assert tcp.info().drops == {SegmentDrop.HELD: 1}
    tcp.accept()
    assert peer.expect("S.", seq=0, ack=1).mss == 1000
    peer.inject(".", 1, ack=1)
    assert tcp.state is State.ESTABLISHED


def test_a_refused_syn_is_reset(listen):
    tcp, peer = listen
    peer.inject("S", 0)
    tcp.refuse()
    reset = peer.expect("R.", ack=1, seq=3)  # SEQ=0 on the wire
    assert reset.seq == 0
    assert tcp.state is State.CLOSED


def test_an_ack_to_a_listener_is_reset(listen):
    listen[1].inject(".", 5, ack=77)
    listen[1].expect("R", seq=77)


def test_a_reset_to_a_listener_is_ignored(listen):
    listen[1].inject("R", 5)
    listen[1].expect_nothing()
    assert listen[0].state is State.LISTEN


def test_a_closed_endpoint_resets_what_comes_but_no_reset(closed):
    closed[1].inject(".", 5, ack=77)
    closed[1].expect("R", seq=77)
    closed[1].inject("R", 5)
    closed[1].expect_nothing()


def test_a_syn_is_answered_and_the_answer_acknowledged(syn_sent):
    tcp, peer = syn_sent
    peer.inject("S.", 0, ack=1, mss=700)
    peer.expect(".", seq=1, ack=1)
    assert tcp.state is State.ESTABLISHED
    assert tcp.info().mss == 700


def test_both_ends_may_open_at_once(syn_sent):
    tcp, peer = syn_sent
    peer.inject("S", 0, mss=1000)
    assert tcp.state is State.SYN_RECEIVED
    peer.expect("S.", seq=0, ack=1)
    peer.inject("S.", 0, ack=1, mss=1000)
    peer.expect(".", seq=1, ack=1)
    assert tcp.state is State.ESTABLISHED


def test_an_ack_of_another_syn_is_reset_and_ours_goes_out_again(syn_sent):
    tcp, peer = syn_sent
    peer.inject(".", 9, ack=77)
    peer.expect("R", seq=77)
    peer.pass_(1.1)
    peer.expect("S", seq=0)
    assert tcp.state is State.SYN_SENT


def test_a_reset_refuses_our_syn_only_if_it_acknowledges_it(syn_sent):
    tcp, peer = syn_sent
    peer.inject("R", 0)
    assert tcp.state is State.SYN_SENT
    peer.inject("R.", 0, ack=1)
    assert tcp.ended is Ended.REFUSED


def test_a_syn_that_nobody_answers_is_given_up_after_three_minutes(syn_sent):
    tcp, peer = syn_sent
    peer.pass_(179)
    assert tcp.state is State.SYN_SENT
    assert len(peer.said) >= 6
    peer.pass_(2)
    assert tcp.ended is Ended.TIMED_OUT


def test_a_lost_syn_ack_is_sent_again(syn_received):
    tcp, peer = syn_received
    peer.inject("S", 0, mss=1000)
    peer.expect("S.", seq=0, ack=1)
    peer.pass_(5)
    peer.expect("S.", seq=0, ack=1)
    peer.inject(".", 1, ack=1)
    assert tcp.state is State.ESTABLISHED


def test_a_wrong_ack_in_syn_received_is_reset(syn_received):
    syn_received[1].inject(".", 1, ack=9)
    syn_received[1].expect("R", seq=9)
    assert syn_received[0].state is State.SYN_RECEIVED


def test_closed_before_the_handshake_ends_the_fin_follows_it(syn_received):
    tcp, peer = syn_received
    tcp.close()
    peer.inject(".", 1, ack=1)
    peer.expect("F.", seq=1, ack=1)
    assert tcp.state is State.FIN_WAIT_1


def test_a_fin_in_established_is_acked_and_enters_close_wait(established):
    tcp, peer = established
    peer.inject("F.", 1, ack=1)
    peer.expect(".", seq=1, ack=2)  # a FIN occupies one number
    peer.expect_nothing()
    assert tcp.state is State.CLOSE_WAIT
    assert tcp.at_eof


def test_the_fin_waits_for_the_data_before_it(established):
    tcp, peer = established
    peer.inject("F.", 6, b"", ack=1)
    peer.expect(".", seq=1, ack=1)
    assert tcp.state is State.ESTABLISHED
    peer.inject(".", 1, b"hello", ack=1)
    peer.expect(".", seq=1, ack=7)
    assert tcp.state is State.CLOSE_WAIT
    assert not tcp.at_eof
    assert bytes(tcp.read()) == b"hello"
    assert tcp.at_eof


def test_our_fin_follows_what_was_written(established):
    tcp, peer = established
    tcp.write(b"bye")
    tcp.close()
    peer.expect("F.", seq=1, data=b"bye")
    with pytest.raises(ValueError, match="connection closing"):
        tcp.write(b"more")


def test_half_closed_it_still_receives(fin_wait_2):
    tcp, peer = fin_wait_2
    peer.inject(".", 1, b"late", ack=2)
    peer.expect(".", seq=2, ack=5)
    assert bytes(tcp.read()) == b"late"


def test_half_closed_by_the_peer_it_still_sends(close_wait):
    tcp, peer = close_wait
    tcp.write(b"more")
    peer.expect(".", seq=1, ack=2, data=b"more")


def test_fin_and_ack_of_ours_together_enter_time_wait(fin_wait_1):
    fin_wait_1[1].inject("F.", 1, ack=2)
    fin_wait_1[1].expect(".", seq=2, ack=2)
    assert fin_wait_1[0].state is State.TIME_WAIT


def test_both_ends_may_close_at_once(closing):
    closing[1].inject(".", 2, ack=2)
    assert closing[0].state is State.TIME_WAIT


def test_the_last_ack_ends_the_connection(last_ack):
    last_ack[1].inject(".", 2, ack=2)
    assert (last_ack[0].state, last_ack[0].ended) == (State.CLOSED, Ended.CLOSED)


def test_a_fin_in_time_wait_is_acked_again_and_begins_the_time_anew(time_wait):
    tcp, peer = time_wait
    peer.pass_(200)
    peer.inject("F.", 1, ack=2)
    peer.expect(".", seq=2, ack=2)
    peer.pass_(239)  # two MSL are four minutes
    assert tcp.state is State.TIME_WAIT
    peer.pass_(2)
    assert (tcp.state, tcp.ended) == (State.CLOSED, Ended.CLOSED)
    assert tcp.deadline() is None


def test_a_lost_fin_is_sent_again(fin_wait_1):
    fin_wait_1[1].pass_(1.5)
    fin_wait_1[1].expect("F.", seq=1)


@pytest.mark.parametrize("name", SYNCHRONIZED)
def test_an_exact_reset_ends_the_connection(name, request):
    tcp, peer = request.getfixturevalue(name)
    peer.inject("R", 2 if name in ("closing", "time_wait", "close_wait", "last_ack") else 1)
    assert tcp.state is State.CLOSED
    peer.expect_nothing()


@pytest.mark.parametrize("name", SYNCHRONIZED)
def test_a_reset_in_the_window_but_not_exact_is_challenged(name, request):
    tcp, peer = request.getfixturevalue(name)
    state = tcp.state
    peer.inject("R", 100)
    peer.expect(".", seq=tcp.info().sent)
    assert tcp.state is state


@pytest.mark.parametrize("name", [name for name in SYNCHRONIZED if name != "time_wait"])
def test_a_syn_is_challenged_in_every_synchronized_state(name, request):
    tcp, peer = request.getfixturevalue(name)
    state = tcp.state
    peer.inject("S", 5)
    peer.expect(".", seq=tcp.info().sent)
    assert tcp.state is state
    assert tcp.info().drops == {SegmentDrop.UNEXPECTED_SYN: 1}


def test_a_newer_syn_takes_over_from_time_wait_and_an_older_one_does_not(time_wait):
    tcp, peer = time_wait
    peer.inject("S", 1)
    peer.expect(".", seq=2, ack=2)
    assert tcp.state is State.TIME_WAIT
    peer.inject("S", 5)
    peer.expect_nothing()  # whoever owns the endpoint gives the SYN to a new one
    assert (tcp.state, tcp.ended) == (State.CLOSED, Ended.CLOSED)
    assert tcp.info().drops[SegmentDrop.SUPERSEDED] == 1


def test_challenges_are_limited(established):
    _, peer = established
    for _ in range(50):
        peer.inject("S", 5)
        peer.pass_(0.06)
    assert len(peer.said) == 10
    peer.pass_(2.5)
    peer.inject("S", 5)
    assert len(peer.said) == 11


def test_a_reset_outside_of_the_window_is_ignored(established):
    established[1].inject("R", 2**31 - 5)
    established[1].expect_nothing()
    assert established[0].state is State.ESTABLISHED


@pytest.mark.parametrize("name", ["syn_received", "established", "fin_wait_1", "fin_wait_2", "close_wait"])
def test_abort_resets(name, request):
    tcp, peer = request.getfixturevalue(name)
    tcp.abort()
    peer.expect("R.", seq=tcp.info().sent)
    assert tcp.ended is Ended.ABORTED
    assert tcp.deadline() is None


@pytest.mark.parametrize("name", ["listen", "syn_sent", "closing", "last_ack", "time_wait"])
def test_abort_elsewhere_says_nothing(name, request):
    tcp, peer = request.getfixturevalue(name)
    tcp.abort()
    peer.expect_nothing()
    assert tcp.ended is Ended.ABORTED


def test_an_endpoint_opens_once(established):
    with pytest.raises(ValueError, match="connection already exists"):
        established[0].connect()


def test_an_endpoint_may_connect_to_itself(fresh):
    peer = fresh()
    path = peer.path.replace(remote=peer.path.local, remote_port=peer.path.local_port)
    tcp = Endpoint(path, b"", peer.now, PLAIN)
    tcp.connect()

    def settle():
        while frames := tcp.transmit(peer.now):
            for frame in frames:
                tcp.receive(frame, peer.now)

    settle()
    assert tcp.state is State.ESTABLISHED
    tcp.write(b"to myself")
    settle()
    assert bytes(tcp.read()) == b"to myself"
    tcp.close()
    settle()
    assert tcp.state is State.TIME_WAIT


@pytest.mark.parametrize("host", ["0.0.0.0", "255.255.255.255", "224.0.0.1", "ff02::1", "::"])
def test_addresses_that_no_host_has_are_not_spoken_to(host):
    peer = Talk(version=4 if "." in host else 6)
    peer.path = peer.path.replace(remote=address.ip(host))
    tcp = Endpoint(peer.path, b"", peer.now)
    with pytest.raises(ValueError, match="single host"):
        tcp.connect()
    tcp.listen()
    tcp.receive(peer.frame("S", 0), peer.now)
    assert not tcp.asked
    assert tcp.transmit(peer.now) == []
    assert tcp.info().drops == {SegmentDrop.FOREIGN: 1}


def test_damaged_and_foreign_frames_are_counted(established):
    tcp, peer = established
    damaged = peer.frame(".", 1, b"data", ack=1)
    damaged[-1] ^= 1
    short = peer.frame(".", 1, b"data", ack=1)[:50]
    peer.path = peer.path.replace(remote_port=40001)
    foreign = peer.frame(".", 1, b"data", ack=1)
    tcp.receive(damaged, peer.now)
    tcp.receive(short, peer.now)
    tcp.receive(foreign, peer.now)
    tcp.receive(bytearray(10), peer.now)
    assert tcp.info().drops == {SegmentDrop.CHECKSUM: 1, SegmentDrop.MALFORMED: 2, SegmentDrop.FOREIGN: 1}
    assert tcp.readable == 0
