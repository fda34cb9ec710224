"""Frames: every layer's at(), every field, what is written, and what is answered.

Checked: Malformed and nothing else; reading changes nothing; a field written leaves each checksum as right or
as wrong as it was, and can be read again; an answer is a sound frame to who asked.
"""

import struct
from contextlib import suppress
from copy import copy

from tests.fuzz.frames import FRAMES, MAC, V4, V6
from tests.fuzz.octets import Octets
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import derive, icmp, nd, vnet
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.ether import VLAN, Ethernet
from vtl_tools.common.packet.icmp import ICMPv4, ICMPv6
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import View

VIEWS = (Ethernet, VLAN, ARP, IPv4, IPv6, TCP, UDP, ICMPv4, ICMPv6, *nd.MESSAGES.values())
FIELDS = {
    cls: [name for base in cls.__mro__ for name, field in vars(base).items() if isinstance(field, property)]
    for cls in VIEWS
}
LAYERS = [
    name for base in Packet.__mro__ for name, field in vars(base).items() if isinstance(field, property)
]
STRUCTURE = frozenset(
    (
        "version_ihl", "ihl", "total_length", "payload_length", "flags_fragment", "dont_fragment", "length",
        "more_fragments", "fragment_offset", "next_header", "protocol", "data_offset", "offset_octet", "type",
        "version_class_flow", "checksum", "tpid",
    )
)  # fmt: skip
"""Fields that move what a view was checked for, and checksums themselves."""


def every_field(view: View) -> dict[str, object]:
    return {name: getattr(view, name) for name in FIELDS[type(view)]}


def walk(pkt: Packet) -> None:
    """Read what no property is."""
    for tag in pkt.vlans:
        every_field(tag)
    if (v4 := pkt.ipv4) is not None:
        list(v4.options())
    if (v6 := pkt.ipv6) is not None:
        list(v6.extensions())
        _ = v6.fragment
    if (segment := pkt.tcp) is not None:
        list(segment.options())
    if (message := pkt.nd) is not None:
        list(message.options())


def read(pkt: Packet) -> None:
    """Read everything."""
    for name in LAYERS:
        with suppress(Malformed):
            found = getattr(pkt, name)
            if isinstance(found, View):
                every_field(found)
                assert repr(found)
    with suppress(Malformed):
        walk(pkt)
    with suppress(Malformed):
        pkt.verify()


def most(view: View, name: str) -> int:
    """Return the largest number that a field takes."""
    field = type(view), name
    for bits in range(32, 0, -1) if field not in WIDTHS else ():
        scratch = copy(view)
        scratch.buf = bytearray(view.buf)
        with suppress(ValueError, OverflowError, struct.error):
            setattr(scratch, name, (1 << bits) - 1)
            WIDTHS[field] = (1 << bits) - 1
            break
    return WIDTHS[field]


WIDTHS: dict[tuple[type[View], str], int] = {}


def write(pkt: Packet, take: Octets) -> None:
    """Write some fields; what checksums say stays."""
    views = [view for view in (pkt.eth, pkt.arp, pkt.ip, pkt.transport, pkt.nd) if view is not None]
    right = pkt.verify()
    while take.left >= 2:
        view = take.pick(views)
        names = [
            name
            for name in FIELDS[type(view)]
            if name not in STRUCTURE and getattr(type(view), name).fset is not None
        ]
        name = take.pick(names)
        was = getattr(view, name)
        value: object
        if isinstance(was, bytes):
            value = take.take(len(was)).ljust(len(was), b"\0")
        elif isinstance(was, int):
            value = take.number(4) & most(view, name)
        else:
            continue
        setattr(view, name, value)
        assert getattr(view, name) == value, name
        assert pkt.verify() == right, f"{type(view).__name__}.{name}: a checksum was {right}"


ANSWERS = (
    lambda pkt: derive.ack(pkt, window=1),
    lambda pkt: derive.rst(pkt),
    lambda pkt: derive.syn_ack(pkt, iss=1, window=1),
    lambda pkt: derive.arp_reply(pkt, MAC),
    lambda pkt: derive.nd_reply(pkt, MAC),
    lambda pkt: derive.echo_reply(pkt),
    lambda pkt: derive.udp_reply(pkt, b"answer"),
    lambda pkt: derive.icmp_error(pkt, 3, 1, src=V6["src"] if pkt.ethertype == 0x86DD else V4["src"]),
    lambda pkt: derive.icmp_error(pkt, icmp.V6_PACKET_TOO_BIG, 0, src=pkt.ip.src if pkt.ip else b""),
)


def answer(frame: bytes) -> None:
    """Each answer is a sound frame, to who sent the frame or to all nodes."""
    for ask in ANSWERS:
        try:
            made = ask(Packet.at(frame))
        except Malformed:
            continue
        if made is None:
            continue
        asked, said = Packet.at(frame), Packet.at(made)
        assert said.verify()
        assert said.arp or said.transport is not None
        assert bytes(made[: vnet.VNET]) == vnet.NONE
        assert said.eth.dst == asked.eth.src or said.eth.dst[:2] == b"\x33\x33"
        if asked.ip is not None:
            assert said.ip.dst == asked.ip.src or said.ip.dst[0] == 0xFF
            assert said.end == len(made)


def one(data: bytes) -> None:
    take = Octets(data)
    how, frame = take.number(), take.blob()
    with suppress(Malformed):
        every_field(take.pick(VIEWS).at(bytearray(frame), how))
    before, buffer = frame, bytearray(frame + b"beyond")
    view = memoryview(buffer)[: len(frame)]  # a read past the end raises
    try:
        pkt = Packet.at(view)
    except Malformed:
        return
    read(pkt)
    assert bytes(view) == before, "reading changed the frame"
    answer(before)
    if how & 1:
        with suppress(Malformed):
            pkt.compute_ip_checksum()
        with suppress(Malformed):
            if pkt.compute_transport_checksum(full=bool(how & 2)) and how & 2:
                assert pkt.verify()
    with suppress(Malformed):
        write(pkt, take)
    with suppress(Malformed):
        pkt = Packet.at(view)
        pkt.swap()
        pkt.swap()
    with suppress(Malformed, ValueError):
        pkt = Packet.at(view)
        right = pkt.verify()
        pkt.set_payload(take.rest())
        assert Packet.at(view[: pkt.end]).verify() == right, "the checksum does not follow the payload"
    assert buffer[len(frame) :] == b"beyond", "written past the end"


def seeds() -> list[bytes]:
    return [
        bytes((how,)) + len(frame).to_bytes(2, "big") + frame + bytes(range(40, 90))
        for frame in FRAMES
        for how in (0, 3)
    ]
