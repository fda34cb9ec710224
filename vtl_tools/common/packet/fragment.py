"""Cuts an IP packet that a link does not carry whole into fragments (RFC 791 section 2.3, RFC 8200 4.5)."""

from collections.abc import Iterator
from typing import Final

from vtl_tools.common.packet import ether, ip, quick
from vtl_tools.common.packet.checksum import checksum
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.view import U16

_MORE4: Final = 0x2000
_FRAGMENT_SIZE: Final = 8


def fragments(frame: bytes | bytearray, mtu: int, number: int) -> Iterator[bytes]:
    """Yield the fragments of a frame, or the frame itself if its packet is no larger than the MTU.

    frame: one of our own: untagged, without IP options or extension headers, its checksums full. number: the
    identification, which no other packet of the same addresses and protocol should have meanwhile.
    """
    ipv6 = U16.unpack_from(frame, quick.KIND)[0] == ether.IPV6
    start = quick.L3 + (IPv6.SIZE if ipv6 else IPv4.SIZE)
    if len(frame) - quick.L3 <= mtu:
        yield bytes(frame)
        return
    size = mtu - (start - quick.L3) - (_FRAGMENT_SIZE if ipv6 else 0) & ~7
    head, payload = bytearray(frame[:start]), frame[start:]
    for offset in range(0, len(payload), size):
        piece, more = payload[offset : offset + size], offset + size < len(payload)
        if ipv6:
            U16.pack_into(head, quick.L3 + 4, _FRAGMENT_SIZE + len(piece))
            head[quick.L3 + 6] = ip.FRAGMENT
            extension = bytes((frame[quick.L3 + 6], 0)) + (offset | more).to_bytes(2, "big")
            yield bytes(head) + extension + (number & 0xFFFF_FFFF).to_bytes(4, "big") + piece
            continue
        U16.pack_into(head, quick.L3 + 2, IPv4.SIZE + len(piece))
        U16.pack_into(head, quick.L3 + 4, number & 0xFFFF)
        U16.pack_into(head, quick.L3 + 6, (_MORE4 if more else 0) | offset >> 3)
        U16.pack_into(head, quick.L3 + IPv4.SUM, 0)
        U16.pack_into(head, quick.L3 + IPv4.SUM, checksum(head[quick.L3 :]))
        yield bytes(head) + piece
