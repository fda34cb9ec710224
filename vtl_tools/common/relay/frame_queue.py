"""Sends the frames of many endpoints with few system calls."""

from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.tcp.endpoint import Endpoint

_JOINED: Final = 2048
"""Octets of data below which a frame is copied together, and sent along with those of other flows."""


class FrameQueue:
    """Frames without much data wait until flush(). send: puts frames on a link, at a time."""

    __slots__ = ("_frames", "_send")

    def __init__(self, send: Callable[[Sequence[Pieces], float], object]) -> None:
        self._send = send
        self._frames: list[Pieces] = []

    def transmit(self, endpoint: Endpoint, now: float) -> None:
        """Take or send the frames that an endpoint may send now."""
        frames = endpoint.transmit_pieces(now)
        for i, pieces in enumerate(frames):
            if len(pieces) == 1:
                self._frames.append(pieces)
            elif len(pieces) == 2 and len(pieces[1]) < _JOINED:
                self._frames.append((b"".join(pieces),))
            else:  # as are those that follow, nearly always
                self.flush(now)
                self._send(frames[i:] if i else frames, now)
                return

    def flush(self, now: float) -> None:
        """Send the frames that wait."""
        if self._frames:
            self._send(self._frames, now)
            self._frames = []
