"""What is followed while the VM is there: maxima, in bounded room."""

from contextlib import suppress

import pytest
from freeze_talk import Talk
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.services.freeze import table as table_module
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.headers import parse
from vtl_tools.services.freeze.table import ConnectionTable


def numbers(connection):
    return connection.vm_window, connection.vm_scale, connection.vm_tsval, connection.peer_tsval


@pytest.mark.parametrize("version", [4, 6])
def test_both_ends_numbers_are_followed(new_talk, version):
    talk = new_talk(version)
    talk.peer("S", 0)
    talk.vm("S.", 0, 1, window=65_535, scale=7)
    assert numbers(talk.connection) == (511, 7, 1000, None)
    talk.peer(".", 1, 1, stamps=(5001, 1000))
    talk.vm(".", 1, 1, stamps=(1002, 5001), window=400)
    assert numbers(talk.connection) == (400, 7, 1002, 5001)


def test_what_comes_late_takes_nothing_back(new_talk):
    talk = new_talk().open()
    before = talk.connection.vm_ack, talk.connection.peer_ack, numbers(talk.connection)
    talk.vm(".", 1, 501, stamps=(990, 4000), window=3)
    talk.peer(".", 1, 1, stamps=(4000, 900), window=3)
    assert (talk.connection.vm_ack, talk.connection.peer_ack, numbers(talk.connection)) == before


def test_hop_by_hop_options_behind_others_are_no_header(new_talk):
    talk = new_talk(6)
    frame = talk._frame(False, ".", 1, 1, 0, None, None)
    frame[64:64] = bytes((0, 0)) + bytes(6) + bytes((6, 0)) + bytes(6)
    frame[28:30] = (len(frame) - 64).to_bytes(2, "big")
    frame[30] = 60  # destination options, then hop-by-hop options, which no host takes (RFC 8200 4.1)
    with pytest.raises(Malformed):
        parse(frame, False)
    frame[30], frame[64] = 0, 60
    assert parse(frame, False).l4 == 80


def test_without_scaling_at_the_peer_the_vm_does_not_scale(new_talk):
    talk = new_talk()
    talk.vm("S", 0)
    frame = talk._frame(False, "S.", 0, 1, 0, (5000, 1000), None, scale=None)
    talk.freezer.overhear(memoryview(frame), False, talk.now)
    assert talk.connection.vm_scale == 0


def test_a_connection_anew_forgets_the_one_before(new_talk):
    talk = new_talk().open()
    talk.vm("S.", 70_000, 90_001)
    assert not talk.connection.has_numbers
    assert (talk.connection.vm_ack + 5000) % 2**32 == 90_001


def test_a_reset_of_the_vm_ends_it_and_floods_leave_nothing(new_talk):
    talk = new_talk().open()
    talk.vm("R", 201)
    for port in range(100):
        talk.port = port
        talk.peer("S", 0)
        talk.vm("R.", 0, 1)
        talk.peer(".", 1, 1, 10)
    assert list(talk.freezer.table) == []


def test_closed_connections_make_room_first_then_idle_ones(new_talk):
    talk = new_talk()
    talk.freezer.table = table = ConnectionTable(3)
    for port, idle_s in (1, 0.0), (2, 100.0), (3, 100.0):
        talk.port = port
        talk.open()
        talk.now += idle_s
    talk.vm("F.", 201, 1001)
    talk.peer("F.", 1001, 202)
    ports = []
    for port in 4, 5, 6:
        talk.port = port
        talk.open()
        ports.append(sorted(int.from_bytes(one.key[10:12], "big") for one in table))
    assert ports == [[1, 2, 4], [2, 4, 5], [4, 5, 6]]
    assert table.evicted == 3


def test_closed_connections_go_in_time(new_talk):
    talk = new_talk().open()
    for _ in range(3):
        talk.vm("F.", 201, 1001)
        talk.peer("F.", 1001, 202)
    talk.now += table_module.CLOSED_S + 1
    talk.port = 5
    talk.open()
    assert len(talk.freezer.table) == 1


def test_what_is_kept_is_bounded(new_talk):
    talk = new_talk()
    talk.freezer.table = ConnectionTable(held_max=3000)
    for port in range(5):
        talk.port = port
        talk.open()
    talk.freeze()
    for port in range(5):
        talk.port = port
        talk.peer(".", 1001, 201, 1000)
    assert talk.freezer.table.held <= 3000
    assert talk.freezer.unanswered["not-kept"] == 3
    talk.freezer.stop(talk.now)
    talk.freezer.thaw()
    assert talk.freezer.table.held == 0


@settings(deadline=None)
@given(octets=st.binary(max_size=200), from_vm=st.booleans(), frozen=st.booleans())
def test_whatever_comes_is_followed_or_malformed(octets, from_vm, frozen):
    frame = bytearray(octets)
    with suppress(Malformed):
        parse(frame, from_vm)
    freezer = Freezer()
    if frozen:
        freezer.start(0.0)
    freezer.overhear(memoryview(frame), from_vm, 1.0)
    freezer.from_vm(frame, 1.0)
    freezer.from_peer(frame, 3.0)


@settings(deadline=None)
@given(data=st.data())
def test_damaged_segments_are_followed_or_malformed(data):
    talk = Talk(data.draw(st.sampled_from([4, 6])), vlan=data.draw(st.sampled_from([None, 7]))).open()
    if data.draw(st.booleans()):
        talk.freeze()
    for _ in range(3):
        frame = talk._frame(
            False, data.draw(st.sampled_from([".", "S.", "R", "F."])), 1001, 201, 5, (1, 1), None
        )
        frame[0] = 1  # so that the checksum is nobody's business
        for _ in range(data.draw(st.integers(0, 4))):
            frame[data.draw(st.integers(10, len(frame) - 1))] = data.draw(st.integers(0, 255))
        cut = memoryview(frame)[: data.draw(st.integers(10, len(frame)))]
        talk.freezer.from_peer(cut, talk.now)
        talk.freezer.overhear(cut, data.draw(st.booleans()), talk.now)
