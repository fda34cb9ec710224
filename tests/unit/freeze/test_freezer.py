"""What is answered for a VM that is away, what is not, and what is said when it is back."""

import pytest

from vtl_tools.common.packet import address, arp, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.freeze import freezer as freezer_module
from vtl_tools.services.freeze.connection import FROM_SYN

ANSWER = (".", 201, 1001, 0, (1000, 5000))
MAC2 = address.mac("52:54:00:00:00:09")


@pytest.mark.parametrize("vlan", [None, 5], ids=["untagged", "tagged"])
@pytest.mark.parametrize("stamps", [True, False], ids=["stamps", "no-stamps"])
@pytest.mark.parametrize("version", [4, 6])
def test_data_is_answered_by_a_shut_window(new_talk, version, stamps, vlan):
    talk = new_talk(version, stamps, vlan).open().freeze()
    assert talk.peer(".", 1001, 201, 1000) == [(*ANSWER[:4], (1000, 5000) if stamps else None)]


def test_a_probe_and_a_keep_alive_are_answered(talk):
    assert talk.peer(".", 1000, 201, stamps=(5500, 1000)) == [(".", 201, 1001, 0, (1000, 5500))]
    assert talk.peer(".", 1000, 201, 1) == [(".", 201, 1001, 0, (1000, 5500))]  # with an octet of garbage
    assert talk.peer(".", 1001, 201, 1) == [(".", 201, 1001, 0, (1000, 5500))]  # the next one


def test_an_acceptable_acknowledgement_is_never_answered(talk):
    for seq in 1001, 1500, 1001 + (500 << 7):
        assert talk.peer(".", seq, 201) == []


def test_two_vms_that_are_away_do_not_answer_each_other(new_talk):
    talk = new_talk().open().freeze()
    assert talk.peer(".", 900, 150) == [ANSWER]  # the other side missed the VM's last words
    assert talk.peer(".", 1001, 201, window=0) == []


def test_a_fin_is_held_and_not_acknowledged(talk):
    assert talk.peer("F.", 1001, 201) == [ANSWER]
    talk.thaw()
    (held,) = talk.delivered
    assert Packet.at(bytearray(held)).tcp.flags == 0x11


def test_what_the_vm_sent_and_was_not_acknowledged_is_not_claimed_to_have_arrived(new_talk):
    talk = new_talk().open()
    talk.vm(".", 201, 1001, 700)
    talk.freeze()
    assert talk.peer(".", 1001, 201, 10) == [ANSWER]
    assert talk.peer(".", 1001, 901, 10) == [(".", 901, *ANSWER[2:])]


def test_what_was_overheard_just_before_counts_and_not_what_comes_as_a_whole(new_talk):
    talk = new_talk().open()
    talk.vm(".", 201, 1001, 700)
    talk.freeze()
    for seq_ack in 301, 401:
        frame = talk._frame(False, ".", 1001, seq_ack, 0, (5000, 1000), None)
        talk.freezer.overhear(memoryview(frame), False, talk.now)
        talk.now += seq_ack == 301
    assert talk.peer(".", 1001, 201, 10) == [(".", 301, *ANSWER[2:])]


def test_the_vms_clock_stands_still(talk):
    assert talk.peer(".", 1001, 201, 10, stamps=(9000, 4_000_000)) == [(".", 201, 1001, 0, (1000, 9000))]


def test_a_peer_that_goes_on_is_told_by_a_newer_segment(talk):
    for seq in (201, 201, 202):
        assert talk.peer(".", 1001, 201, 1000) == [(".", seq, *ANSWER[2:])]
        talk.now += 1
    assert talk.thaw() == [(".", 202, 1001, 500, (1000, 5000))]


@pytest.mark.parametrize(("vm", "peer"), [(0, 500), (500, 0)], ids=["the VM's", "the peer's"])
def test_but_not_where_a_window_was_shut(new_talk, vm, peer):
    talk = new_talk().open()
    talk.vm(".", 201, 1001, window=vm)
    talk.freeze()
    for _ in range(5):
        assert talk.peer(".", 1001, 201, 1, window=peer) == [ANSWER]
        talk.now += 1


# --- attacks (RFC 5961), and what is not of the connection


def test_a_reset_counts_only_where_it_is_exact(talk):
    assert talk.peer("R", 1000, stamps=None) == []
    assert talk.peer("R", 1001 + (500 << 7) + 1, stamps=None) == []
    assert talk.peer("R", 1002, stamps=None) == [ANSWER]
    assert talk.freezer.unanswered == {"out-of-window": 2, "unsure-reset": 1}
    assert talk.peer("R", 1001, stamps=None) == []
    assert talk.peer(".", 1001, 201, 10) == []  # it is forgotten
    talk.thaw()
    (told,) = talk.delivered
    assert Packet.at(bytearray(told)).is_rst


def test_a_syn_is_challenged_and_a_new_one_is_left_to_be_sent_again(talk):
    assert talk.peer("S", 12345) == [ANSWER]
    talk.port = 40_001
    assert talk.peer("S", 0) == []
    assert len(list(talk.freezer.table)) == 1


def test_an_acknowledgement_of_what_was_never_sent_teaches_nothing(talk):
    assert talk.peer(".", 1001, 5000, 10, stamps=(7000, 9999)) == [ANSWER]
    assert talk.peer(".", 1001, 201, 10) == [ANSWER]
    assert talk.freezer.unanswered == {"bad-ack": 1}


def test_data_beyond_the_window_is_answered_and_not_kept(talk):
    assert talk.peer(".", 1001 + (600 << 7), 201, 1000) == [ANSWER]
    assert talk.freezer.table.held == 0


def test_no_flood_is_answered_in_full(talk):
    said = [answer for _ in range(500) for answer in talk.peer(".", 1001, 201, 10)]
    assert len(said) == 10
    talk.now += 1
    assert len([answer for _ in range(500) for answer in talk.peer(".", 1001, 201, 10)]) == 10
    assert talk.freezer.unanswered == {"paced": 980}


def test_who_disagrees_is_not_talked_with_for_long(talk):
    assert len([one for _ in range(500) for one in talk.peer(".", 1001, 5000)]) == 5
    talk.now += 1
    assert len([one for _ in range(500) for one in talk.peer(".", 1001, 5000)]) == 1
    assert talk.peer(".", 1001, 201, 10) == [ANSWER]  # which takes nothing from who is right


def test_what_is_damaged_or_for_others_is_left_alone(talk):
    assert talk.peer(".", 1001, 201, 10, dst_mac=MAC2) == []
    frame = talk._frame(False, ".", 1001, 201, 10, (1, 1), None)
    frame[-1] ^= 1
    assert talk.whole(frame) == []
    assert talk.whole(bytearray(30)) == []
    assert talk.freezer.unanswered == {"foreign": 1, "checksum": 1}


# --- the VM is back


def test_nothing_is_said_of_a_connection_that_was_left_in_peace(talk):
    assert talk.thaw() == []
    assert talk.delivered == []


def test_the_windows_are_opened_as_the_vm_had_them_and_what_came_is_delivered(talk):
    talk.peer(".", 1001, 201, 1000, stamps=(5001, 1000))
    talk.peer(".", 2001, 201, stamps=(5002, 1000))
    assert talk.thaw() == [(".", 201, 1001, 500, (1000, 5002))]
    assert [Packet.at(bytearray(frame)).tcp.timestamps[0] for frame in talk.delivered] == [5001, 5002]
    assert talk.freezer.table.held == 0


def test_who_waits_with_data_is_told_first(new_talk):
    talk = new_talk().open()
    talk.port = 40_001
    talk.open().freeze()
    talk.peer(".", 1000, 201)
    talk.port = 40_000
    talk.peer(".", 1001, 201, 10)
    talk.freezer.stop(talk.now)
    talk.freezer.thaw()
    ports = [Packet.at(bytearray(frame)).tcp.dport for frame in talk.freezer.to_network]
    assert ports == [40_000, 40_001]


def test_only_one_speaks(talk):
    talk.peer(".", 1001, 201, 10)
    talk.vm(".", 201, 1001)
    assert talk.freezer.heard_vm
    assert talk.peer(".", 1001, 201, 10) == []
    talk.now += freezer_module.QUIET_S
    assert talk.peer(".", 1001, 201, 10) == [ANSWER]
    assert talk.thaw() == []  # the VM has spoken of this connection itself


def test_what_is_kept_is_kept_until_the_vm_has_taken_it(talk):
    talk.peer(".", 1001, 201, 1000)
    talk.vm(".", 201, 1001, 10)
    assert talk.freezer.table.held
    talk.vm(".", 211, 2001)
    assert not talk.freezer.table.held


def test_a_peer_that_was_told_by_a_newer_segment_is_told_again(talk):
    for _ in range(3):
        talk.peer(".", 1001, 201, 1000)
    talk.vm(".", 201, 1001)
    assert talk.thaw() == [(".", 202, 1001, 500, (1000, 5000))]


def test_who_starts_twice_or_stops_without_a_start_does_no_harm(talk):
    assert not talk.freezer.start(talk.now)
    assert talk.peer(".", 1001, 201, 10) == [ANSWER]
    talk.thaw()
    assert not talk.freezer.stop(talk.now)
    assert talk.peer(".", 1001, 201, 10) == []


# --- where the VM is


def test_neighbours_are_answered_while_it_is_away(new_talk):
    talk = new_talk(4).open()
    asked = build.arp(src_mac=MAC2, dst_mac=address.BROADCAST, sha=MAC2, spa=address.ip("10.0.0.1"),
                      tpa=talk.vm_host)  # fmt: skip
    other = build.arp(src_mac=MAC2, dst_mac=address.BROADCAST, sha=MAC2, spa=address.ip("10.0.0.1"),
                      tpa=address.ip("10.0.0.77"))  # fmt: skip
    talk.freezer.from_peer(memoryview(asked), talk.now)
    assert talk.freezer.to_network == []
    talk.freeze()
    talk.freezer.from_peer(memoryview(other), talk.now)
    assert talk.freezer.to_network == []
    talk.freezer.from_peer(memoryview(asked), talk.now)
    (reply,) = talk.freezer.to_network
    told = Packet.at(bytearray(reply)).arp
    assert (told.oper, told.sha, told.spa) == (arp.REPLY, address.mac("52:54:00:00:00:01"), talk.vm_host)


# --- connections from before


def test_a_connection_from_before_waits_for_its_peer_to_repeat_itself(new_talk):
    talk = new_talk().freeze()
    said = []
    for pause in 0, 0.3, 0.6, 1.2:
        talk.now += pause
        said.append(talk.peer(".", 1001, 201, 10, stamps=(int(talk.now * 1000), 1000)))
    assert [[answer[:4] for answer in each] for each in said] == [[], [], [ANSWER[:4]], [ANSWER[:4]]]
    assert not talk.connection.flags & FROM_SYN


def test_one_with_keep_alives_is_asked_what_is_next(new_talk):
    talk = new_talk().freeze()
    (question,) = talk.peer(".", 1000, 201)
    assert question[:2] == (".", 200)  # not acceptable, so the peer answers
    assert talk.peer(".", 1001, 201) == []
    said = []
    for _ in range(3):
        talk.now += 75
        said.append(talk.peer(".", 1000, 201, stamps=(int(talk.now * 1000), 1000)))
    assert [[answer[:4] for answer in each] for each in said] == [[], [ANSWER[:4]], [ANSWER[:4]]]


def test_strangers_take_room_from_each_other_only(new_talk):
    talk = new_talk().open().freeze()
    for port in range(1000, 7000):
        talk.port = port
        talk.peer(".", 1, 1, 10)
        talk.now += 1.0
        assert len(talk.freezer.table) == 1
        assert talk.freezer.table.strangers <= 4096
