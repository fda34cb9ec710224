"""Super-segments as a kernel would hand them over, built from values; and what is on their segments."""

import struct
from random import Random

from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.checksum import pseudo_sum

FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
TIMESTAMPS = bytes.fromhex("0101080a0001020304050607")
HOP_BY_HOP = bytes.fromhex("0000010400000000")  # next header, length 0, PadN of 4
DESTINATION = HOP_BY_HOP
V4 = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6 = (bytes.fromhex("fd00" + "00" * 13 + "01"), bytes.fromhex("fd00" + "00" * 13 + "02"))
MACS = bytes.fromhex("02aabbccdd0202aabbccdd01")
GSO_TCP = {4: vnet.GSO_TCPV4, 6: vnet.GSO_TCPV6}


def octets(count, seed=1):
    """Return count octets without a pattern, the same ones every time."""
    return Random(seed).randbytes(count)


def tcp(
    version,
    payload,
    gso_size,
    *,
    flags=ACK | PSH,
    seq=0x01020304,
    options=TIMESTAMPS,
    gso_type=None,
    urgent=0,
    **network,
):
    """Return the frame of a TCP super-segment with a partial checksum; gso_size 0: without GSO."""
    offset_flags = (20 + len(options)) // 4 << 12 | flags
    header = struct.pack("!HHIIHHHH", 1000, 2000, seq, 0x8899AABB, offset_flags, 501, 0, urgent) + options
    if gso_type is None:
        gso_type = GSO_TCP[version] if gso_size else vnet.GSO_NONE
    return _frame(version, 6, header, 16, payload, gso_type, gso_size, **network)


def udp(version, payload, gso_size, *, gso_type=None, **network):
    """Return the frame of many UDP datagrams (or with GSO_UDP of a large one) with a partial checksum."""
    header = struct.pack("!HHHH", 1000, 2000, 8 + len(payload), 0)
    if gso_type is None:
        gso_type = vnet.GSO_UDP_L4 if gso_size else vnet.GSO_NONE
    return _frame(version, 17, header, 6, payload, gso_type, gso_size, **network)


def _frame(
    version,
    protocol,
    header,
    csum_offset,
    payload,
    gso_type,
    gso_size,
    *,
    tags=(),
    ident=0xABCD,
    ip_options=b"",
    extensions=(),
    length=None,
):
    """length: what the IP header claims, if not the truth. extensions: (protocol, octets) of each."""
    size = len(header) + len(payload)
    source, destination = V4 if version == 4 else V6
    transport = bytearray(header)
    struct.pack_into("!H", transport, csum_offset, pseudo_sum(source, destination, protocol, size))
    if version == 4:
        total = 20 + len(ip_options) + size if length is None else length
        first = 0x40 | (20 + len(ip_options)) // 4
        ip = bytearray(struct.pack("!BBHHHBBH", first, 0, total, ident, 0x4000, 64, protocol, 0))
        ip += source + destination + ip_options
        struct.pack_into("!H", ip, 10, ~(rfc1071(ip)) & 0xFFFF)
    else:
        chain = b""
        follower = protocol
        for number, extension in reversed(extensions):
            chain = bytes([follower]) + extension[1:] + chain
            follower = number
        total = len(chain) + size if length is None else length
        ip = bytearray(struct.pack("!IHBB", 0x6000_0000, total, follower, 64) + source + destination + chain)
    ethernet = MACS + b"".join(struct.pack("!HH", *tag) for tag in tags)
    ethernet += b"\x08\x00" if version == 4 else b"\x86\xdd"
    start = len(ethernet) + len(ip)
    hdr_len = start + len(header) if gso_size else 0
    virtio = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, gso_type, hdr_len, gso_size, start, csum_offset)
    return bytearray(virtio + ethernet + ip + transport + payload)


def rfc1071(data):
    """Return the ones' complement sum, word by word as the RFC has it: nothing of ours to be tested."""
    data = bytes(data) + bytes(len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_right(version, protocol, transport):
    """Tell whether the checksum of a whole TCP segment or UDP datagram is full and right."""
    pseudo = pseudo_sum(*(V4 if version == 4 else V6), protocol, len(transport))
    padding = bytes(len(transport) & 1)
    return rfc1071(bytes(transport) + padding + pseudo.to_bytes(2, "big")) == 0xFFFF
