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
from vtl_tools.services.udt.transport.tokens import TOKEN

FRAME: Final = struct.Struct("!BII")
PLAIN_MAX: Final = 1 << 16
"""Octets of frames in a record: one that arrives is decrypted when it is complete, so it must not be long."""
OFFSET: Final = struct.Struct("!Q")
"""The payload of END, and what that of DATA begins with: octets of the flow's direction before it."""
DATA_MAX: Final = PLAIN_MAX - FRAME.size - OFFSET.size
"""Octets of data in a frame: a super-segment fits."""
STAMP: Final = struct.Struct("!Q")
"""The payload of PING and PONG: microseconds of the sender's clock."""
CREDIT: Final = struct.Struct("!I")
ANSWER: Final = struct.Struct("!BI")

_OPENING: Final = struct.Struct(f"!I{TOKEN}sHH")
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
    """A flow's opening, its token, and the octets that its answer may be followed by."""
    ANSWER = 4
    """0: open, and the octets that the opener may send; or 1 and more: a reason."""
    DATA = 5
    """An offset, and octets of the flow."""
    END = 6
    """The sender sends no more data on the flow: the offset of its end."""
    RESET = 7
    """The flow is gone, in both directions."""
    WINDOW = 8
    """More octets that the other end may send on the flow."""
    BYE = 9
    """Flow 0: the sender ends the session, and all its flows."""
    JOIN = 10
    """A token: this number is one more way for the octets of its flow."""


_SIZES: Final = {
    FrameKind.PING: STAMP.size, FrameKind.PONG: STAMP.size, FrameKind.ANSWER: ANSWER.size,
    FrameKind.END: OFFSET.size, FrameKind.RESET: 0, FrameKind.WINDOW: CREDIT.size, FrameKind.BYE: 0,
    FrameKind.JOIN: TOKEN,
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


def pack_opening(opening: FlowOpening, token: bytes, window: int) -> bytes:
    """Return the payload of OPEN. window: octets that the other end may send."""
    fixed = _OPENING.pack(window, token, opening.client_port, opening.destination_port)
    return fixed + opening.client + opening.destination


def parse_opening(payload: memoryview) -> tuple[FlowOpening, bytes, int]:
    """Return the opening, token and window of OPEN. Raises Malformed; both addresses are of one family."""
    size, odd = divmod(len(payload) - _OPENING.size, 2)
    if size not in (4, 16) or odd:
        raise Malformed("opening.length")
    window, token, client_port, destination_port = _OPENING.unpack_from(payload)
    addresses = bytes(payload[_OPENING.size :])
    client, destination = addresses[:size], addresses[size:]
    return FlowOpening(client, client_port, destination, destination_port), token, window


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
