"""Changes the numbers of a passing segment in place, with its checksum."""

import struct
from typing import Final

from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import CWR, ECE, SACK, TCP
from vtl_tools.common.packet.vnet import F_NEEDS_CSUM

MD5: Final = 19  # RFC 2385
ENO: Final = 69  # RFC 8547
AO: Final = 29  # RFC 5925
MPTCP: Final = 30  # RFC 8684

_VARIED: Final = struct.Struct("!IIHHH")  # from octet 4: seq, ack, offset and flags, window, checksum


def rewrite(
    frame: memoryview, l4: int, *, seq: int | None = None, ack: int | None = None, window: int | None = None
) -> None:
    """Write other numbers into the TCP header at l4. window: as sent, already shifted.

    A partial checksum covers none of them.
    """
    was_seq, was_ack, flags, was_window, checksum = _VARIED.unpack_from(frame, l4 + 4)
    seq = was_seq if seq is None else seq
    ack = was_ack if ack is None else ack
    window = was_window if window is None else window
    if not frame[0] & F_NEEDS_CSUM:
        # RFC 1624; a 32-bit number is congruent to the sum of its halves
        checksum = -((checksum ^ 0xFFFF) + seq - was_seq + ack - was_ack + window - was_window) % 0xFFFF
    _VARIED.pack_into(frame, l4 + 4, seq, ack, flags, window, checksum)


def erase_sack(frame: memoryview) -> None:
    """Overwrite a SACK option: it is about data that is acknowledged here."""
    if (segment := Packet.at(frame).tcp) is not None:
        segment.erase_option(SACK)


def is_signed(segment: TCP) -> bool:
    """Return whether the segment is signed, so that nobody between the ends may change the connection."""
    found = {kind for kind, _, _ in walk_options(segment.buf, segment.off + TCP.SIZE, segment.payload_off)}
    return bool(found & {MD5, AO})


def simplify(segment: TCP) -> None:
    """Take the offers out of a SYN that need an end's own segments: Multipath TCP, tcpcrypt, and ECN."""
    for kind in MPTCP, ENO:
        while segment.erase_option(kind):
            pass
    segment.flags &= ~(ECE | CWR)
    segment.ae = 0


def widen(segment: TCP, shift: int) -> bool:
    """Raise the window scale that a SYN offers to at least this, if it offers any. Return whether it did."""
    offered = segment.window_scale
    if offered is None or offered >= shift:
        return False
    segment.window_scale = shift
    return True
