"""Blocks of pcapng files (draft-ietf-opsawg-pcapng): the header of a file, and a frame.

A block is as long as its second word says, a multiple of 4 octets, and in the byte order of this machine.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from vtl_tools.common.host.octet_queue import OctetQueue

INBOUND: Final = 1  # epb_flags
OUTBOUND: Final = 2
_SECTION: Final = 0x0A0D0D0A
_INTERFACE: Final = 1
_PACKET: Final = 6
_SMALLEST: Final = 12
_LARGEST: Final = 1 << 17
"""Octets that no block exceeds: the largest frame has 64 KiB."""
_MAGIC: Final = 0x1A2B3C4D
_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
_NAME, _APPLICATION, _FLAGS = 2, 4, 2  # if_name, shb_userappl, epb_flags

_WORDS: Final = struct.Struct("=II")
_HEAD: Final = struct.Struct("=7I")  # type, length, interface, time in microseconds (high, low), octets twice
_TAILS: Final = tuple(struct.Struct(f"={pad}xHHIII") for pad in (0, 3, 2, 1))
"""By the length of a frame modulo 4: padding, epb_flags, the end of the options, the length of the block."""


def file_header(links: Sequence[str]) -> bytes:
    """Return the blocks that a file begins with. links: names of its interfaces, numbered from 0."""
    section = struct.pack("=IHHq", _MAGIC, 1, 0, -1) + _option(_APPLICATION, "vtl-tools")
    return b"".join((_block(_SECTION, section), *map(description, links)))


def description(link: str) -> bytes:
    """Return the block that adds an interface, with the next number."""
    return _block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, 0) + _option(_NAME, link))


def _option(code: int, text: str) -> bytes:
    octets = text.encode(errors="replace")
    return struct.pack("=HH", code, len(octets)) + octets + bytes(-len(octets) % 4) + bytes(4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return _WORDS.pack(kind, length) + body + length.to_bytes(4, "little" if _WORDS.pack(1, 0)[0] else "big")


def put_frames(
    queue: OctetQueue, link: int, frames: Iterable[memoryview], direction: int, now: float
) -> tuple[int, int]:
    """Put Ethernet frames into a queue as blocks. Return how many there was room for, and for how many not.

    link: its number in the file's header. now: seconds since 1970.
    """
    high, low = divmod(int(now * 1e6), 1 << 32)
    put_head, size, octets, at = _HEAD.pack_into, queue.size, queue.octets, queue.at
    written = kept = lost = 0
    for frame in frames:
        length = len(frame)
        tail = _TAILS[length & 3]
        whole = _HEAD.size + length + tail.size
        if not queue.has_room(written + whole):
            lost += 1
            continue
        end = at + whole
        if end <= size:
            put_head(octets, at, _PACKET, whole, link, high, low, length, length)
            body = at + _HEAD.size
            octets[body : body + length] = frame
            tail.pack_into(octets, body + length, _FLAGS, 4, direction, 0, whole)
            at = end
        else:  # the block wraps around
            queue.at = at
            queue.put(_HEAD.pack(_PACKET, whole, link, high, low, length, length))
            queue.put(frame)
            queue.put(tail.pack(_FLAGS, 4, direction, 0, whole))
            at = queue.at
        written += whole
        kept += 1
    queue.at = at
    if written:
        queue.publish(written)
    return kept, lost


def whole_blocks(queue: OctetQueue, octets: int) -> int:
    """Return the size of the blocks that are whole within the first octets of those that wait.

    Octets that are no blocks, from a service that was taken over, count as one: the writer goes on with them.
    """
    end = 0
    while end < octets:
        length = queue.word(end + 4)
        if not _SMALLEST <= length <= _LARGEST or length & 3:
            return octets
        if length > octets - end:
            break
        end += length
    return end


def descriptions(octets: bytes | memoryview) -> bytes:
    """Return the blocks that add interfaces, among those at the beginning of octets."""
    found, at, end = [], 0, len(octets)
    while at <= end - _SMALLEST:
        kind, length = _WORDS.unpack_from(octets, at)
        if not _SMALLEST <= length <= end - at or length & 3:
            break
        if kind == _INTERFACE:
            found.append(octets[at : at + length])
        at += length
    return b"".join(found)
