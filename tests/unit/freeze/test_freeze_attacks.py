"""Attacks on vtl-freeze by a blind spoofer, who knows addresses and ports, and by one on the VM's LAN."""

from random import Random

import pytest
from freeze_talk import PEER_ISS

from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.freeze import freezer as freezer_module
from vtl_tools.services.freeze import table as table_module
from vtl_tools.services.freeze.connection import UNHEARD
from vtl_tools.services.freeze.table import ConnectionTable

EVE = address.mac("52:54:00:00:00:ee")
VICTIM = address.ip("10.0.0.77")
ANSWER = (".", 201, 1001, 0)
FAR = 1 << 25
"""A number that nobody has used, and that is near enough to be of what passed unseen."""


def came_upon(new_talk, **options):
    """A connection that was there before the service: the VM is heard in the middle of it."""
    talk = new_talk(**options)
    talk.vm("P.", 1, 1001, 200)
    talk.peer(".", 1001, 201)
    return talk


def brief(said):
    return [one[:4] for one in said]


def repeat(talk, *fields, pauses=(0.0, 0.3, 0.6), **more):
    """Send the same thrice, as a retransmission timer does; what was answered to each."""
    said = []
    for pause in pauses:
        talk.now += pause
        said.append(brief(talk.peer(*fields, stamps=(int(talk.now * 1000), 1000), **more)))
    return said


# --- to have it speak for others


def test_to_have_arp_answered_for_an_address_that_was_never_the_vms(new_talk):
    talk = new_talk().open().freeze()
    own, talk.vm_host = talk.vm_host, VICTIM
    repeat(talk, ".", 1001, 201, 10)
    talk.vm_host = own
    asked = build.arp(src_mac=EVE, dst_mac=address.BROADCAST, sha=EVE, spa=own, tpa=VICTIM)
    talk.freezer.from_peer(memoryview(asked), talk.now)
    assert talk.said() == []
    assert [host for _, host in talk.freezer.table.hosts] == [own]


def test_to_be_told_the_numbers_by_the_answers(new_talk):
    talk = new_talk().open().freeze()
    for flags, seq, ack in (".", 9_000_000, 201), (".", 900, 201), ("S", 1, 0), (".", 1001, FAR):
        said = talk.whole(talk._frame(False, flags, seq, ack, 10, (5000, 1000), None, src_mac=EVE))
        assert brief(said) == [ANSWER]  # which brief() has seen to go to the peer's address


def test_to_have_the_windows_opened_elsewhere(new_talk):
    talk = new_talk().open().freeze()
    talk.peer(".", 1001, 201, 10)
    talk.whole(talk._frame(False, ".", 900, 201, 10, (5000, 1000), None, src_mac=EVE))
    assert brief(talk.thaw()) == [(".", 201, 1001, 500)]


def test_a_peer_whose_router_changed_is_followed(new_talk):
    talk = new_talk().open().freeze()
    talk.freezer.from_peer(
        memoryview(talk._frame(False, ".", 1001, 201, 10, (5000, 1000), None, src_mac=EVE)), talk.now
    )
    (frame,), _ = talk.freezer.take()
    assert Packet.at(bytearray(frame)).eth.dst == EVE


# --- to break a connection by numbers that are guessed


@pytest.mark.parametrize("before", [True, False], ids=["overheard", "away"])
@pytest.mark.parametrize("seq", [1001, 900, 1001 + FAR])
def test_to_have_it_answer_by_a_guessed_ack(new_talk, before, seq):
    talk = came_upon(new_talk)
    if not before:
        talk.freeze()
    for guess in FAR, FAR + 77, 201 - FAR:
        talk.peer(".", seq, guess, 10, stamps=(9_000_000, 9_000_000))
    if before:
        talk.freeze()
    assert talk.peer(".", 1001, 201, 10, stamps=(5001, 1000)) == [(*ANSWER, (1000, 5001))]


@pytest.mark.parametrize("ack", [201, 201 + FAR])
def test_to_have_data_acknowledged_that_the_vm_never_had(new_talk, ack):
    talk = came_upon(new_talk).freeze()
    for guess in range(1500, 2_000_000, 400_000):
        for answers in repeat(talk, ".", guess, ack, 10):
            assert all(answer[2] == 1001 for answer in answers)
    assert brief(talk.peer(".", 1001, 201, 10)) == [ANSWER]


def test_to_have_it_acknowledged_though_the_ack_was_not_known(new_talk):
    """Where segments pass unseen. The number is believed by who is told it, which is not the peer."""
    talk = came_upon(new_talk)
    talk.freezer.table.set_sampled(True)
    talk.freeze()
    said = repeat(talk, ".", 5001, 201 + FAR, 10)
    assert said[2] == [(".", 201 + FAR, 5001, 0)]  # no peer takes it: SEG.SEQ is not in its window
    assert brief(talk.peer(".", 1001, 201, 10)) == [ANSWER]
    assert repeat(talk, ".", 1001, 201, 10)[2] == [(".", 202, 1001, 0)]


def test_to_have_the_peer_taken_for_foreign(new_talk):
    """Where the VM was never heard, nobody knows which Ethernet address is its own."""
    talk = new_talk().freeze()
    for pause in 0.0, 0.3, 0.6:
        talk.now += pause
        stamps = (int(talk.now * 1000), 1000)
        frame = talk._frame(False, ".", 5001, 777, 10, stamps, None, dst_mac=EVE)
        talk.freezer.from_peer(memoryview(frame), talk.now)
    assert len(talk.freezer.take()[0]) == 1
    assert repeat(talk, ".", 1001, 201, 10)[2] == [ANSWER]


def test_to_be_spoken_to_after_a_wrong_proof(new_talk):
    talk = came_upon(new_talk)
    talk.freezer.table.set_sampled(True)
    talk.freeze()
    for _ in range(3):
        said = repeat(talk, ".", 5001, 201 - 100, 10, src_mac=EVE) + repeat(
            talk, ".", 5001, 201 + FAR, 10, src_mac=EVE
        )
        assert said  # which brief() has seen to go to the peer's address
    assert not talk.connection.flags & UNHEARD
    assert [one[2] for one in talk.peer(".", 1001, 201, 10)] == [1001]


def test_to_make_a_wrong_proof_outlast_its_contradiction(new_talk):
    talk = new_talk().freeze()
    repeat(talk, ".", 5001, 777, 10)
    assert talk.connection.has_numbers
    assert talk.peer(".", 1001, 201, 10) == []
    assert not talk.connection.has_numbers
    assert repeat(talk, ".", 1001, 201, 10)[2:] == [[(".", 201, 1001, 0)]]


def test_to_have_the_vms_own_word_not_believed(new_talk):
    talk = new_talk().freeze()
    repeat(talk, ".", 5001, 777, 10)
    talk.vm("P.", 1, 1001, 200)
    assert (talk.connection.vm_ack - PEER_ISS) % 2**32 == 1001
    assert brief(talk.thaw()) == []


def test_to_put_the_vms_clock_forward(new_talk):
    """Else the peer drops what the VM says when it is back, as old (PAWS)."""
    talk = came_upon(new_talk)
    talk.freezer.table.set_sampled(True)
    talk.freeze()
    talk.peer(".", 1001, 201, 10, stamps=(5001, 2_000_000_000))
    talk.peer(".", 1001, 201 + FAR, 10, stamps=(5001, 2_000_000_000))
    assert talk.connection.vm_tsval == 1000
    (answer,) = talk.peer(".", 1001, 201, 10, stamps=(5001, 1000))
    assert answer[4][0] == 1000


def test_to_have_windows_not_scaled(new_talk):
    talk = new_talk()
    talk.vm("S", 0, scale=7)
    for guess in 5000, -FAR, 2:
        frame = talk._frame(False, "S.", 0, guess, 0, (5000, 1000), None, scale=None)
        talk.freezer.overhear(memoryview(frame), False, talk.now)
    assert talk.connection.vm_scale == 7
    talk.peer("S.", 0, 1)
    talk.vm(".", 1, 1)
    frame = talk._frame(False, "S.", 0, 1, 0, (5000, 1000), None, scale=None)
    talk.freezer.overhear(memoryview(frame), False, talk.now)
    assert talk.connection.vm_scale == 7


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_to_break_a_connection_by_a_hundred_thousand_guesses(new_talk, seed):
    """Of a connection that was not followed from its SYN, all of whose segments were seen since."""
    rng = Random(seed)
    talk = came_upon(new_talk)
    for guess in range(20_000):
        if guess == 10_000:
            talk.freeze()
        flags = rng.choice((".", "F.", "S.", "S", "R", "R."))
        numbers = rng.randrange(1 << 32), rng.randrange(1 << 32), rng.choice((0, 1, 1000))
        for answer in talk.peer(flags, *numbers, stamps=(rng.randrange(1 << 32), rng.randrange(1 << 32))):
            assert (answer[1:4], answer[4][0]) == (ANSWER[1:], 1000)
        talk.now += 0.001
    assert talk.peer(".", 1001, 201, 10, stamps=(5001, 1000)) == [(*ANSWER, (1000, 5001))]


# --- to take the room of others


def test_to_push_out_a_peer_before_it_has_shown_itself(new_talk):
    talk = new_talk().freeze()
    rng = Random(1)
    genuine, said = talk.port, []
    for pause in 0.0, 0.3, 0.6, 1.2:
        talk.now += pause
        talk.port = genuine
        said += talk.peer(".", 1001, 201, 10, stamps=(int(talk.now * 1000), 1000))
        for _ in range(6000):
            talk.port = rng.randrange(1024, 65535)
            if talk.port != genuine:
                talk.peer(".", rng.randrange(1 << 32), rng.randrange(1 << 32), 10)
    assert [one[2] for one in said] == [1001, 1001]
    assert talk.freezer.table.strangers <= table_module.STRANGERS_MAX
    assert talk.freezer.unanswered["crowded"] > 15_000
    talk.port = 1023
    talk.now += table_module.STRANGERS_KEPT_S
    assert repeat(talk, ".", 1001, 201, 10)[2] == [(".", 201, 1001, 0)]  # and there is room for others


def test_to_push_out_what_was_overheard_by_what_was_made_up(new_talk):
    talk = new_talk()
    talk.freezer.table = ConnectionTable(3, proven_max=5)
    heard = (1, 2, 3)
    for talk.port in heard:
        talk.open()
    talk.now += 1000.0
    talk.freeze()
    for talk.port in range(100, 120):
        repeat(talk, ".", 1001, 201, 10)
    for talk.port in heard:
        assert brief(talk.peer(".", 1001, 201, 10)) == [ANSWER]
    assert len(talk.freezer.table) == 3 + 5


def test_to_push_out_open_connections_by_a_flood_of_syns(new_talk):
    talk = new_talk()
    talk.freezer.table = ConnectionTable(100, opening_max=50)
    for talk.port in range(60):
        talk.open()
    talk.now += 1000.0
    for talk.port in range(1000, 3000):
        talk.peer("S", 0)
        talk.vm("S.", 0, 1)  # the VM answers each, as with SYN cookies
    ports = {int.from_bytes(one.key[10:12], "big") for one in talk.freezer.table}
    assert ports > set(range(60))
    assert len(talk.freezer.table) <= 100


def test_to_fill_memory_by_resets_that_carry_data(new_talk):
    talk = new_talk()
    for talk.port in range(50):
        talk.open()
    talk.freeze()
    for talk.port in range(50):
        talk.peer("R", 1001, 0, 60_000, stamps=None)
    assert sum(map(len, talk.freezer.resets)) <= 50 * freezer_module.RESET_OCTETS_MAX


def test_to_fill_memory_by_octets_behind_the_packet(new_talk):
    talk = new_talk().open().freeze()
    frame = talk._frame(False, ".", 1001, 201, 0, (5000, 1000), None)
    talk.whole(frame + bytes(9000))
    assert 0 < talk.freezer.table.held <= len(frame)


def test_to_fill_memory_by_the_same_connection_again_and_again(new_talk):
    talk = new_talk()
    for _ in range(3000):
        talk.open()
        talk.peer("F.", 1001, 201)
        talk.vm("F.", 201, 1002)
        talk.vm("S", 99_999)
        talk.vm("R", 100_000)
    assert len(talk.freezer.table._closed) < 1000


def test_to_have_it_ask_a_third_party_without_end(new_talk):
    talk = new_talk().freeze()
    said = [one for guess in range(500) for one in talk.peer(".", 1000, guess)]
    assert len(said) == 5
