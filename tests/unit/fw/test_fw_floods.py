"""Floods: whoever sends most takes room from itself, and never from the other side."""

import pytest
from fw import IN, OUT, PEER, VM, Wire, ends, policy

from vtl_tools.common.model import fragments
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.fw import limits
from vtl_tools.services.fw import saved_state as memory
from vtl_tools.services.fw.limits import RuleLimits

ROOM = 64


def stranger(number):
    """An IPv4 address of somebody on the network."""
    return b"\xc6" + number.to_bytes(3, "big")


@pytest.fixture
def wire():
    return Wire("allow", flows_max=ROOM)


def flood_in(wire, count, *, first=0):
    """SYNs of so many strangers, each its first, that nobody answers."""
    for number in range(first, first + count):
        assert wire.come("S", 0, vm=22, peer=1024, src=stranger(number)) == "+new"


def flood_out(wire, count):
    for number in range(count):
        assert wire.out("S", 0, vm=1024 + number, peer=9, dst=stranger(number)) == "+new"


def answer(wire, number, flags="S."):
    return wire.out(flags, 0, 1, vm=22, peer=1024, dst=stranger(number))


def admit(wire, number):
    """A stranger's connection from its SYN to its handshake's end."""
    assert wire.come("S", 0, vm=22, peer=1024, src=stranger(number)) == "+new"
    assert answer(wire, number) == "+known"
    assert wire.come(".", 1, 1, vm=22, peer=1024, src=stranger(number)) == "+known"


def is_known(wire, number):
    return wire.come(".", 1, 1, vm=22, peer=1024, src=stranger(number)) == "+known"


# --- connections


def test_spoofed_syns_do_not_stop_new_connections_of_the_vm(wire):
    flood_in(wire, 3 * ROOM)
    for port in range(ROOM // 2):  # of them half are the VM's, however many strangers there are
        assert wire.out("S", 0, vm=2000 + port) == "+new"
        flood_in(wire, 3, first=1000 * (port + 1))
    for port in range(ROOM // 2):
        side = {"vm": 2000 + port}
        assert wire.come("S.", 0, 1, **side) == "+known"
        assert wire.out(".", 1, 1, **side) == "+known"
    assert len(wire.tracker.flows) == ROOM


def test_a_question_of_the_vm_outlives_spoofed_datagrams(wire):
    for number in range(10):
        assert wire.udp(OUT, vm=3000 + number) == "+new"
        for other in range(3 * ROOM):
            assert wire.udp(IN, vm=53, peer=9, src=stranger(1000 * number + other)) == "+new"
    rules = policy("allow out\nallow in udp port 53\ndeny")
    list(wire.tracker.replace(rules))
    assert [wire.udp(IN, vm=3000 + number) for number in range(10)] == ["+known"] * 10


def test_spoofed_syns_do_not_end_what_is_established(wire):
    wire.open()
    for number in range(10):
        admit(wire, number)
    flood_in(wire, 5 * ROOM, first=100)
    assert all(is_known(wire, number) for number in range(10))
    assert wire.out(".", 1, 1) == "+known"


def test_a_stranger_gets_in_though_all_its_room_is_established_and_a_flood_comes(wire):
    for number in range(ROOM):
        admit(wire, number)
    flood_in(wire, ROOM, first=500)
    assert wire.come("S", 0, vm=22, peer=1024, src=stranger(400)) == "+new"
    flood_in(wire, 2, first=5000)
    assert answer(wire, 400) == "+known"
    assert is_known(wire, 400)


def test_spoofed_datagrams_that_are_answered_do_not_end_established_tcp(wire):
    for number in range(8):
        admit(wire, number)
    for number in range(100, 100 + 4 * ROOM):  # a second one, blindly, as if the answer had come
        for direction in IN, OUT, IN:
            side = {"dst" if direction is OUT else "src": stranger(number)}
            assert wire.udp(direction, vm=53, peer=9, **side).startswith("+")
    assert all(is_known(wire, number) for number in range(8))


def test_a_syn_flood_of_the_vm_does_not_stop_who_may_come_in(wire):
    for number in range(4):
        admit(wire, number)
    flood_out(wire, 4 * ROOM)
    for number in range(10, 14):  # with the others, an eighth of the table
        assert wire.come("S", 0, vm=22, peer=1024, src=stranger(number)) == "+new"
        flood_out(wire, 3 * ROOM)
    assert all(answer(wire, number) == "+known" for number in range(10, 14))
    assert all(is_known(wire, number) for number in range(4))


def test_connections_of_the_vm_with_an_accomplice_leave_room_for_who_may_come_in(wire):
    for port in range(2 * ROOM):
        wire.open(vm=1024 + port)
    for number in range(ROOM // 8 - 1):
        admit(wire, number)
        wire.open(vm=5000 + number)
    flood_out(wire, ROOM)
    assert len(wire.tracker.flows) == ROOM - 1
    assert all(is_known(wire, number) for number in range(ROOM // 8 - 1))


def test_one_stranger_takes_room_from_itself_also_with_all_addresses_of_its_prefix():
    wire = Wire("allow", flows_max=ROOM)
    host = {"dst": ends(IN, six=True)["dst"]}
    other, many = bytes.fromhex("20010db800aa0000") + bytes(8), bytes.fromhex("20010db800bb0000")
    assert wire.udp(IN, six=True, src=other, **host) == "+new"
    for number in range(4 * ROOM):
        assert wire.udp(IN, six=True, src=many + number.to_bytes(8, "big"), **host) == "+new"
    assert wire.udp(OUT, six=True, dst=other) == "+known"


@pytest.mark.parametrize("room", [16, 17, 100])
def test_the_table_is_never_fuller_than_it_may_be(room):
    wire = Wire("allow", flows_max=room)
    for number in range(3 * room):
        admit(wire, number)
        wire.open(vm=1024 + number)
        wire.udp(IN, vm=53, peer=9, src=stranger(number))
        wire.udp(OUT, vm=53, peer=10, dst=stranger(number))
        assert len(wire.tracker.flows) <= room
    assert is_known(wire, 3 * room - 1)
    assert wire.out(".", 1, 1, vm=1024 + 3 * room - 1) == "+known"
    wire.wait(20_000)
    assert len(wire.tracker.flows) == 0


def test_strangers_do_not_push_the_vms_connections_out_of_what_a_restart_remembers():
    wire = Wire("allow")
    wire.open()
    for number in range(memory.FLOWS_MAX + 10):
        admit(wire, number)
    told = []
    keeper = memory.StateKeeper(wire.tracker, None, "boot", told.append)
    while not told:
        keeper.wake(wire.now)
        wire.now += 0.01
    assert "out tcp 10.0.0.5:40000 192.0.2.1:80\n" in told[0]
    assert told[0].count("\nflow ") <= memory.FLOWS_MAX


def test_strangers_do_not_flush_the_vms_syn_that_begins_a_connection_anew():
    wire = Wire("allow")
    wire.open()
    assert wire.out("S", 5000) == "+known"  # the VM forgot the connection, as did its peer
    for number in range(1100):
        admit(wire, number)
        assert wire.come("S", 7000, vm=22, peer=1024, src=stranger(number)) == "+known"
    assert wire.come("S.", 9000, 5001) == "+known"
    assert wire.out(".", 5001, 9001) == "+known"


# --- fragments


def part(src, dst, number, *, first=True, octets=64, direction=OUT):
    """Half of a datagram: of the network's side, whoever it says it is from."""
    frame = bytearray(build.udp(**{**ends(direction), "src": src, "dst": dst}, sport=5000, dport=53))
    del frame[-8:]
    frame += (
        (b"\x13\x88\0\x35" + (2 * octets).to_bytes(2, "big") + bytes(octets - 6)) if first else bytes(octets)
    )
    net = Packet.at(frame[:44] + bytes(8)).ip
    frame[net.off + 2 : net.off + 4] = (20 + octets).to_bytes(2, "big")
    frame[net.off + 4 : net.off + 6] = number.to_bytes(2, "big")
    frame[net.off + 6 : net.off + 8] = (0x2000 if first else octets >> 3).to_bytes(2, "big")
    return frame


def test_spoofed_fragments_do_not_flush_what_the_vm_sends():
    wire = Wire("allow")
    assert wire.raw(part(VM, PEER, 1), OUT) == "fragment-held"
    for number in range(3 * fragments.PACKETS_MAX):
        assert wire.raw(part(stranger(number), VM, 1, direction=IN), IN) == "fragment-held"
    assert wire.raw(part(VM, PEER, 1, first=False), OUT) == "+new"


def test_fragments_of_one_stranger_do_not_flush_those_of_another():
    wire = Wire("allow")
    assert wire.raw(part(PEER, VM, 1, direction=IN), IN) == "fragment-held"
    for number in range(3 * fragments.PACKETS_MAX):
        assert wire.raw(part(stranger(1), VM, number & 0xFFFF, direction=IN), IN) == "fragment-held"
    assert wire.raw(part(PEER, VM, 1, first=False, direction=IN), IN) == "+new"


def test_fragments_of_the_vm_do_not_flush_what_comes_in():
    wire = Wire("allow")
    assert wire.raw(part(PEER, VM, 1, direction=IN), IN) == "fragment-held"
    for number in range(3 * fragments.PACKETS_MAX):
        wire.raw(part(stranger(number), PEER, 1, octets=1200), OUT)
    assert wire.tracker.fragments.octets <= fragments.OCTETS_MAX
    assert wire.raw(part(PEER, VM, 1, first=False, direction=IN), IN) == "+new"


def test_large_spoofed_fragments_are_bounded_and_the_oldest_of_who_has_most_goes():
    wire = Wire("allow")
    assert wire.raw(part(PEER, VM, 1, direction=IN), IN) == "fragment-held"
    for number in range(4000):
        wire.raw(part(stranger(number % 3), VM, number, octets=1400, direction=IN), IN)
    assert wire.tracker.fragments.octets <= fragments.OCTETS_MAX
    assert wire.raw(part(PEER, VM, 1, first=False, direction=IN), IN) == "+new"


# --- limits


def limited(text):
    (rule, *_) = policy(f"{text}\ndeny").rules
    return rule


def admits(table, rule, source, now, direction=IN):
    return table.admit(rule, direction, source, now) == ""


def test_strangers_do_not_make_the_vms_rate_start_anew():
    table, rule = RuleLimits(), limited("allow limit 1/m burst 2 per source")
    assert [admits(table, rule, VM, 0.0, OUT) for _ in range(3)] == [True, True, False]
    for number in range(limits.SOURCES_MAX + 10):
        table.admit(rule, IN, stranger(number), 0.0)
    assert not admits(table, rule, VM, 0.0, OUT)


def test_a_rate_for_all_does_not_start_anew_by_the_sources_of_another_rule():
    table, all_, each = (
        RuleLimits(),
        limited("allow in limit 1/m burst 2"),
        limited("allow in limit 1/m burst 2 per source"),
    )
    assert [admits(table, all_, stranger(n), 0.0) for n in range(3)] == [True, True, False]
    for number in range(limits.SOURCES_MAX + 10):
        table.admit(each, IN, stranger(number), 0.0)
    assert not admits(table, all_, stranger(7), 0.0)


def test_a_source_that_was_refused_does_not_start_anew_by_spoofed_ones():
    table, rule = RuleLimits(), limited("allow in limit 1/m burst 2 per source")
    assert [admits(table, rule, PEER, 0.0) for _ in range(3)] == [True, True, False]
    for number in range(2 * limits.SOURCES_MAX):
        assert admits(table, rule, stranger(number), 0.0)  # who was not heard of gets in meanwhile
    assert not admits(table, rule, PEER, 0.0)
    assert admits(table, rule, PEER, 61.0)


def test_what_is_remembered_of_rates_is_bounded():
    table, rule = RuleLimits(), limited("allow in limit 1/m burst 1 per source")
    for number in range(2 * limits.SOURCES_MAX):
        assert admits(table, rule, stranger(number), 0.0)
        assert not admits(table, rule, stranger(number), 0.0)
    assert len(table) <= 2 * limits.SOURCES_MAX
