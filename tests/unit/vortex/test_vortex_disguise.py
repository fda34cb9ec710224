"""Answers of a backend as the volunteer's own stack sends them; errors and fragments of both directions."""

import struct

import pytest

from tests.unit.vortex.test_vortex_client import (
    ATTACKER,
    BACKEND_MAC,
    OWN,
    OWN_MAC,
    PLACE,
    ROUTER_MAC,
    VERSIONS,
    World,
    datagram,
)
from vtl_tools.common.packet import build, derive, icmp, ip, tcp
from vtl_tools.common.packet.fragment import fragments
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.vortex.backend_link import GATEWAY_MAC
from vtl_tools.services.vortex.client import BACKEND, OUTSIDE
from vtl_tools.services.vortex.disguise import GUESSES_MAX, StackTraits

OFFSET = 0xF000_0000
FREEBSD = struct.pack("!BBHBBBBBBBBII", 2, 4, 8960, 1, 3, 3, 6, 4, 2, 8, 10, 77, 5)
LINUX = struct.pack("!BBHBBBBIIBBBB", 2, 4, 1460, 4, 2, 8, 10, 77, 5, 1, 3, 3, 10)


def inward(version: int, flags: int, *, seq: int = 7, ack: int = 0, options: bytes = b"") -> bytearray:
    return build.tcp(
        src_mac=ROUTER_MAC, dst_mac=OWN_MAC, src=ATTACKER[version], dst=OWN[version], sport=4000, dport=23,
        flags=flags, seq=seq, ack=ack, options=options,
    )  # fmt: skip


def outward(
    version: int, flags: int, *, seq: int, ack: int = 8, window: int = 512, options: bytes = b""
) -> bytearray:
    return build.tcp(
        src_mac=BACKEND_MAC, dst_mac=GATEWAY_MAC, src=PLACE[version], dst=ATTACKER[version], sport=23,
        dport=4000, flags=flags, seq=seq, ack=ack, window=window, options=options,
    )  # fmt: skip


def known(offset: int = OFFSET, **traits: object) -> World:
    world = World(offset=offset, traits=StackTraits(**traits))  # type: ignore[arg-type]
    world.know_backend()
    return world


def one(packets: list[Packet]) -> tcp.TCP:
    (pkt,) = packets
    assert pkt.verify()
    assert pkt.tcp is not None
    return pkt.tcp


def shaken(world: World, version: int = 4) -> None:
    """Complete a handshake: the backend's number is 99."""
    assert one(world.put(OUTSIDE, inward(version, tcp.SYN))).seq == 7
    answered = one(world.put(BACKEND, outward(version, tcp.SYN | tcp.ACK, seq=99)))
    assert answered.seq == (99 + OFFSET) & 0xFFFF_FFFF
    came = one(world.put(OUTSIDE, inward(version, tcp.ACK, seq=8, ack=answered.seq + 1)))
    assert came.ack == 100


@VERSIONS
def test_the_attacker_sees_numbers_that_the_client_chose_and_the_backend_its_own(version: int) -> None:
    world = known()
    shaken(world, version)
    assert one(world.put(BACKEND, outward(version, tcp.ACK, seq=100))).seq == 100 + OFFSET
    lost = [((200 + OFFSET) & 0xFFFF_FFFF, (300 + OFFSET) & 0xFFFF_FFFF)]
    asks = inward(version, tcp.ACK, ack=100 + OFFSET, options=tcp.encode_options(sack=lost))
    came = one(world.put(OUTSIDE, asks))
    assert (came.ack, came.sack) == (100, [(200, 300)])
    assert one(world.put(BACKEND, outward(version, tcp.RST | tcp.ACK, seq=100))).seq == 100 + OFFSET


def test_who_forges_a_source_proves_nothing_with_a_number_of_the_backend() -> None:
    world = known()
    world.put(OUTSIDE, inward(4, tcp.SYN))
    world.put(BACKEND, outward(4, tcp.SYN | tcp.ACK, seq=99))
    for guess in 100, 101:
        assert one(world.put(OUTSIDE, inward(4, tcp.ACK, ack=guess))).ack == guess, "it tells no offset"
    assert one(world.put(BACKEND, outward(4, tcp.RST, seq=101))).seq == 101, "as state SYN-RECEIVED answers"
    assert not any(flow["proven"] for flow in world.stage.flows.told(world.now))
    for _ in range(GUESSES_MAX):
        world.put(OUTSIDE, inward(4, tcp.ACK, ack=5))
    world.put(OUTSIDE, inward(4, tcp.ACK, ack=100 + OFFSET))
    assert not any(flow["proven"] for flow in world.stage.flows.told(world.now)), "all numbers were tried"


def test_a_scan_without_handshake_is_answered_as_the_backend_does() -> None:
    world = known()
    assert one(world.put(OUTSIDE, inward(4, tcp.ACK, ack=1234))).ack == 1234
    assert one(world.put(BACKEND, outward(4, tcp.RST, seq=1234))).seq == 1234
    world.put(OUTSIDE, inward(4, tcp.SYN))
    assert one(world.put(BACKEND, outward(4, tcp.RST | tcp.ACK, seq=0))).seq == 0


@VERSIONS
def test_options_and_windows_are_those_of_the_volunteers_stack(version: int) -> None:
    world = known(window_scale=10)
    world.stage.on_mtu(OUTSIDE, 1500)
    offers = tcp.encode_options(mss=1400, window_scale=9, sack_permitted=True, timestamps=(5, 0))
    world.put(OUTSIDE, inward(version, tcp.SYN, options=offers))
    syn_ack = one(
        world.put(BACKEND, outward(version, tcp.SYN | tcp.ACK, seq=99, window=8192, options=FREEBSD))
    )
    expected = LINUX if version == 4 else LINUX.replace(struct.pack("!H", 1460), struct.pack("!H", 1440))
    assert bytes(syn_ack.buf[syn_ack.off + 20 : syn_ack.payload_off]) == expected
    assert syn_ack.window == {4: 65160, 6: 64260}[version]
    assert one(world.put(BACKEND, outward(version, tcp.ACK, seq=100, window=1600))).window == 100


def test_what_the_volunteers_stack_does_not_take_is_not_offered_to_the_backend() -> None:
    world = known(window_scale=None, timestamps=False, sack=False, ecn=False)
    offers = tcp.encode_options(mss=1400, window_scale=9, sack_permitted=True, timestamps=(5, 0))
    came = one(world.put(OUTSIDE, inward(4, tcp.SYN | tcp.ECE | tcp.CWR, options=offers)))
    assert came.offered() == (1400, None, False, None)
    assert came.flags == tcp.SYN
    answered = one(
        world.put(
            BACKEND,
            outward(4, tcp.SYN | tcp.ACK, seq=99, window=8192, options=tcp.encode_options(mss=8960)),
        )
    )
    assert (answered.offered(), answered.window) == ((1460, None, False, None), 64240)


@pytest.mark.parametrize("ecn", [False, True])
def test_accurate_ecn_is_not_offered_to_the_backend(ecn: bool) -> None:
    world = known(ecn=ecn)
    frame = inward(4, tcp.SYN | tcp.ECE | tcp.CWR)
    segment = Packet.at(frame).tcp
    assert segment is not None
    segment.ae = 1
    came = one(world.put(OUTSIDE, frame))
    assert came.ae == 0
    assert came.flags == (tcp.SYN | tcp.ECE | tcp.CWR if ecn else tcp.SYN)


@pytest.mark.parametrize("size", [3, 9, 11, 12])
def test_a_broken_sack_option_breaks_nothing(size: int) -> None:
    world = known()
    shaken(world)
    options = bytes((tcp.SACK, size)).ljust(12, b"\x05")
    assert one(world.put(OUTSIDE, inward(4, tcp.ACK, ack=100 + OFFSET, options=options))).ack == 100


# --- ICMP errors


def unreachable(version: int) -> tuple[int, int]:
    return (icmp.UNREACHABLE, icmp.PORT_UNREACHABLE) if version == 4 else (icmp.V6_UNREACHABLE, 4)


@VERSIONS
def test_a_closed_udp_port_of_the_backend_is_the_volunteers(version: int) -> None:
    world = known()
    (came,) = world.put(OUTSIDE, datagram(version, 100, outside=True))
    error = derive.icmp_error(came, *unreachable(version), src=PLACE[version])
    assert error is not None
    (told,) = world.put(BACKEND, error)
    assert told.verify()
    assert told.ip is not None
    assert (told.ip.src, told.ip.dst) == (OWN[version], ATTACKER[version])
    assert told.quoted_flow == (ip.UDP, ATTACKER[version], 4000, OWN[version], 53)
    assert PLACE[version] not in bytes(told.buf)


@VERSIONS
def test_an_error_about_an_answer_comes_to_the_backend_with_its_own_address_and_number(version: int) -> None:
    world = known()
    shaken(world, version)
    (sent,) = world.put(BACKEND, outward(version, tcp.ACK, seq=100))
    kind = (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED) if version == 4 else (icmp.V6_PACKET_TOO_BIG, 0)
    error = derive.icmp_error(sent, *kind, src=ATTACKER[version], rest=1280)
    assert error is not None
    (told,) = world.put(OUTSIDE, error)
    assert told.verify()
    assert told.quoted_flow == (ip.TCP, PLACE[version], 23, ATTACKER[version], 4000)
    assert told.icmp is not None
    quoted = told.icmp.payload_off + {4: 20, 6: 40}[version]
    assert struct.unpack_from("!I", told.buf, quoted + 4)[0] == 100
    assert OWN[version] not in bytes(told.buf)


def test_an_error_about_no_flow_or_with_a_wrong_checksum_is_dropped() -> None:
    world = known()
    error = derive.icmp_error(Packet.at(datagram(4, 9, outside=False)), *unreachable(4), src=ATTACKER[4])
    assert error is not None
    assert world.put(OUTSIDE, error) == []
    (came,) = world.put(OUTSIDE, datagram(4, 100, outside=True))
    error = derive.icmp_error(came, *unreachable(4), src=PLACE[4])
    assert error is not None
    error[-1] ^= 1
    assert world.put(BACKEND, error) == []
    assert world.stage.drops == {"not-for-host": 1, "malformed": 1}


# --- fragments


@VERSIONS
def test_fragments_are_judged_as_the_packet_that_they_are_and_pass_as_they_came(version: int) -> None:
    world = known()
    attacker, own, place = ATTACKER[version], OWN[version], PLACE[version]
    first, second = fragments(datagram(version, 2000, outside=True), 1280, 77)
    assert world.put(OUTSIDE, second) == []
    came = world.put(OUTSIDE, first)
    assert [(pkt.ip.src, pkt.ip.dst) for pkt in came if pkt.ip] == [(attacker, place)] * 2
    assert all(pkt.verify() and pkt.eth.dst == BACKEND_MAC for pkt in came)
    first, second = fragments(datagram(version, 1900, outside=False), 1280, 78)
    assert world.put(BACKEND, first) == []
    sent = world.put(BACKEND, second)
    assert [(pkt.ip.src, pkt.ip.dst) for pkt in sent if pkt.ip] == [(own, attacker)] * 2
    (flow,) = world.stage.flows.told(world.now)
    assert (flow["frames_in"], flow["frames_out"]) == (2, 2)


def test_fragments_of_a_port_in_use_are_the_volunteers_alone() -> None:
    world = known()
    world.stage.on_used((ip.UDP, 53), world.now)
    for part in fragments(datagram(4, 2000, outside=True), 1280, 77):
        assert world.put(OUTSIDE, part) == []
    assert world.stage.drops == {"in-use": 1}


def test_an_echo_needs_the_option_and_an_error_does_not() -> None:
    world = World(echo=False)
    world.know_backend()
    echo = build.icmp_echo(
        src_mac=ROUTER_MAC, dst_mac=OWN_MAC, src=ATTACKER[4], dst=OWN[4], identifier=5, sequence=1
    )
    assert world.put(OUTSIDE, echo) == []
    assert world.stage.drops == {"other": 1}
