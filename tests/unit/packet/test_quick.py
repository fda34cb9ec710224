"""The quick reader: which frames are ordinary, and what it tells of them. The fuzz target asks the views."""

import pytest

from vtl_tools.common.packet import build, quick, tcp
from vtl_tools.common.packet.packet import Packet

MACS = {"src_mac": b"\2\0\0\0\0\1", "dst_mac": b"\2\0\0\0\0\2"}
FOUR = {**MACS, "src": b"\x0a\0\0\1", "dst": b"\x0a\0\0\2"}
SIX = {**MACS, "src": b"\x20\x01" + bytes(13) + b"\1", "dst": b"\x20\x01" + bytes(13) + b"\2"}
STAMPS = tcp.encode_options(timestamps=(77, 88))
NUMBERS = {"sport": 5000, "dport": 80, "seq": 2**32 - 1, "ack": 2**31, "window": 1000}
VERSIONS = pytest.mark.parametrize(("ends", "l4"), [(FOUR, 44), (SIX, 64)], ids=["IPv4", "IPv6"])


def up_to_the_ethertype(headers):
    """Of the start of the frame each reader returns as much as costs it least."""
    return (headers[0][: quick.KIND], *headers[1:]) if headers is not None else None


def at_once(frame, whole=True):
    return up_to_the_ethertype(quick.read(frame, whole))


def octet_by_octet(frame, whole=True):
    headers = quick.unpack_octets(frame, whole)
    return up_to_the_ethertype(headers if headers[7] else None)


READERS = pytest.mark.parametrize("read", [at_once, octet_by_octet])


def parties(ends):
    return ends["src"] + ends["dst"] + (5000).to_bytes(2, "big") + (80).to_bytes(2, "big")


@VERSIONS
@pytest.mark.parametrize(
    ("options", "stamps"),
    [
        (b"", (-2, 0)),
        (STAMPS, (77, 88)),
        (STAMPS + b"\1" * 8, (77, 88)),
        (b"\1\1\1\0", (-1, 0)),
        (b"\1" * 8 + STAMPS, (-1, 0)),
    ],
    ids=["no options", "timestamps", "timestamps and more", "others", "timestamps behind others"],
)
@pytest.mark.parametrize("padding", [0, 1, 60, 300])
@READERS
def test_a_tcp_segment(read, ends, l4, options, stamps, padding):
    frame = build.tcp(**ends, **NUMBERS, flags=tcp.ACK, options=options, payload=b"abc") + bytes(padding)
    data = l4 + 20 + len(options)
    told = read(frame)
    assert told == (
        bytes(frame[: quick.KIND]), 6, parties(ends), 2**32 - 1, 2**31, tcp.ACK, 1000,
        l4, data, data + 3, *stamps,
    )  # fmt: skip
    assert read(memoryview(frame)) == told


@VERSIONS
@pytest.mark.parametrize("size", [0, 1, 40])
@READERS
def test_a_udp_datagram(read, ends, l4, size):
    frame = build.udp(**ends, sport=5000, dport=80, payload=bytes(size))
    told = read(frame)
    start = bytes(frame[: quick.KIND])
    assert told == (start, 17, parties(ends), 0, 0, 0, 0, l4, l4 + 8, l4 + 8 + size, -2, 0)


@VERSIONS
@READERS
def test_a_frame_that_a_capture_cut(read, ends, l4):
    frame = build.tcp(**ends, **NUMBERS, flags=tcp.ACK, options=STAMPS, payload=bytes(100))
    told = read(frame)
    for size in range(len(frame)):
        cut = frame[:size]
        assert read(cut) is None
        assert read(cut, whole=False) == (told if size >= l4 + 32 else None)


def changed(frame, at, octet):
    frame = bytearray(frame)
    frame[at] = octet
    return frame


SEGMENT4 = build.tcp(**FOUR, **NUMBERS, flags=tcp.ACK, options=STAMPS, payload=b"abc")
SEGMENT6 = build.tcp(**SIX, **NUMBERS, flags=tcp.ACK, options=STAMPS, payload=b"abc")
DATAGRAM = build.udp(**FOUR, sport=5000, dport=80, payload=b"abc")


@pytest.mark.parametrize(
    "frame",
    [
        build.icmp_echo(**FOUR, identifier=1, sequence=1),
        build.icmp_echo(**SIX, identifier=1, sequence=1),
        build.arp(**MACS, sha=MACS["src_mac"], spa=FOUR["src"], tpa=FOUR["dst"]),
        build.tcp(**FOUR, **NUMBERS, flags=tcp.ACK, vlan=7),
        changed(SEGMENT4, 24, 0x46),
        changed(SEGMENT4, 24, 0x65),
        changed(SEGMENT4, 30, 0x20),
        changed(SEGMENT4, 31, 0x01),
        changed(SEGMENT4, 33, 47),
        changed(SEGMENT4, 44 + 12, 0x40),
        changed(SEGMENT4, 44 + 12, 0xF0),
        changed(SEGMENT4, 27, SEGMENT4[27] + 1),
        changed(SEGMENT6, 24, 0x45),
        changed(SEGMENT6, 30, 0),
        changed(SEGMENT6, 30, 44),
        changed(SEGMENT6, 29, SEGMENT6[29] + 1),
        changed(DATAGRAM, 44 + 5, 7),
        changed(DATAGRAM, 44 + 5, 12),
    ],
    ids=[
        "ICMP", "ICMPv6", "ARP", "tagged", "IPv4 options", "version", "more fragments", "later fragment",
        "GRE", "short data offset", "long data offset", "IPv4 length", "IPv6 version", "hop-by-hop options",
        "IPv6 fragment", "IPv6 length", "short UDP length", "long UDP length",
    ],
)  # fmt: skip
@READERS
def test_it_knows_no_other_frame(read, frame):
    assert read(frame) is None


@VERSIONS
def test_parties(ends, l4):
    told = parties(ends)
    assert quick.split(told) == (ends["src"], ends["dst"], 5000, 80)
    assert quick.split(quick.reverse(told)) == (ends["dst"], ends["src"], 80, 5000)


@READERS
def test_dont_fragment_and_the_reserved_flag_are_no_fragments(read):
    for flags in 0x40, 0x80, 0xC0:
        frame = changed(SEGMENT4, 30, flags)
        assert read(frame) is not None
        assert Packet.at(frame).tcp is not None
