"""The octets of a session: records, and the frames within them.

A record (common/session/secure_channel.py) is frames: PLAIN_MAX octets at most. A frame lies within one
record: kind, flow, length, payload. Flow 0 is the session.

    frame    kind 1 | flow 4 | length 4 | payload
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.base import FlowOpening

FRAME: Final = struct.Struct("!BII")
PLAIN_MAX: Final = 1 << 16
"""Octets of frames in a record: one that arrives is decrypted when it is complete, so it must not be long."""
DATA_MAX: Final = PLAIN_MAX - FRAME.size
"""Octets of data in a frame: a super-segment fits."""
STAMP: Final = struct.Struct("!Q")
"""The payload of PING and PONG: microseconds of the sender's clock."""
CREDIT: Final = struct.Struct("!I")
ANSWER: Final = struct.Struct("!BI")

_PORT: Final = struct.Struct("!H")
_REASONS: Final = (
    Reason.GENERAL, Reason.PROHIBITED, Reason.NET_UNREACHABLE, Reason.HOST_UNREACHABLE, Reason.REFUSED,
    Reason.TTL_EXPIRED, Reason.CLOSED,
)  # fmt: skip


class FrameKind(IntEnum):
    """Kinds of frames. A number that is not here ends the session."""

    PING = 1
    """Flow 0: a time stamp, which the other end sends back."""
    PONG = 2
    OPEN = 3
    """A flow's opening, and the octets that its answer may be followed by."""
    ANSWER = 4
    """0: open, and the octets that the opener may send; or 1 and more: a reason."""
    DATA = 5
    END = 6
    """The sender sends no more data on the flow."""
    RESET = 7
    """The flow is gone, in both directions."""
    WINDOW = 8
    """More octets that the other end may send on the flow."""
    BYE = 9
    """Flow 0: the sender ends the session, and all its flows."""


_SIZES: Final = {
    FrameKind.PING: STAMP.size, FrameKind.PONG: STAMP.size, FrameKind.ANSWER: ANSWER.size, FrameKind.END: 0,
    FrameKind.RESET: 0, FrameKind.WINDOW: CREDIT.size, FrameKind.BYE: 0,
}  # fmt: skip
_OF_SESSION: Final = frozenset({FrameKind.PING, FrameKind.PONG, FrameKind.BYE})
_KINDS: Final = {int(kind): kind for kind in FrameKind}


def split_frames(body: memoryview) -> Iterator[tuple[FrameKind, int, memoryview]]:
    """Return kind, flow and payload of each frame of a record. Raises Malformed.

    The payload's size is right for its kind, and the flow is 0 where it must be.
    """
    at, end = 0, len(body)
    while at < end:
        if end - at < FRAME.size:
            raise Malformed("frame", at)
        number, flow, size = FRAME.unpack_from(body, at)
        kind = _KINDS.get(number)
        at += FRAME.size
        if kind is None:
            raise Malformed("frame.kind", at)
        if size > end - at or size != _SIZES.get(kind, size):
            raise Malformed("frame.length", at)
        if (flow == 0) != (kind in _OF_SESSION):
            raise Malformed("frame.flow", at)
        yield kind, flow, body[at : at + size]
        at += size


def pack_opening(opening: FlowOpening, window: int) -> bytes:
    """Return the payload of OPEN. window: octets that the other end may send."""
    ports = _PORT.pack(opening.client_port) + _PORT.pack(opening.destination_port)
    return CREDIT.pack(window) + ports + opening.client + opening.destination


def parse_opening(payload: memoryview) -> tuple[FlowOpening, int]:
    """Return the opening and the window of OPEN. Raises Malformed; both addresses are of one family."""
    fixed = CREDIT.size + 2 * _PORT.size
    size, odd = divmod(len(payload) - fixed, 2)
    if size not in (4, 16) or odd:
        raise Malformed("opening.length")
    window = CREDIT.unpack_from(payload)[0]
    client_port, destination_port = struct.unpack_from("!HH", payload, CREDIT.size)
    client, destination = bytes(payload[fixed : fixed + size]), bytes(payload[fixed + size :])
    return FlowOpening(client, client_port, destination, destination_port), window


def pack_answer(reason: Reason | None, window: int) -> bytes:
    """Return the payload of ANSWER. reason: None if the flow is open."""
    if reason is None:
        return ANSWER.pack(0, window)
    return ANSWER.pack(1 + _REASONS.index(reason if reason in _REASONS else Reason.GENERAL), 0)


def parse_answer(payload: memoryview) -> tuple[Reason | None, int]:
    """Return the reason, or None, and the window of ANSWER. Raises Malformed."""
    code, window = ANSWER.unpack(payload)
    if code > len(_REASONS):
        raise Malformed("answer.code")
    return (_REASONS[code - 1] if code else None), window
