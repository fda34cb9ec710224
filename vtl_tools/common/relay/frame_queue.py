"""Sends the frames of many endpoints with few system calls."""

from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.tcp.endpoint import Endpoint

_JOINED: Final = 2048
"""Octets of data below which a frame is copied together, and sent along with those of other flows."""


class FrameQueue:
    """Frames without much data wait until flush(), and late ones until flush_all().

    send: puts frames on a link, at a time. late: those that nobody waits for. A flow whose frames are late
    stays so, as flush_all() sends them last.
    """

    __slots__ = ("_frames", "_send", "late")

    def __init__(self, send: Callable[[Sequence[Pieces], float], object]) -> None:
        self._send = send
        self._frames: list[Pieces] = []
        self.late: list[Pieces] = []

    def transmit(self, endpoint: Endpoint, now: float, is_late: bool = False) -> None:
        """Take or send the frames that an endpoint may send now."""
        frames = endpoint.transmit_pieces(now)
        queue = self.late if is_late else self._frames
        for i, pieces in enumerate(frames):
            if len(pieces) == 1:
                queue.append(pieces)
            elif len(pieces) == 2 and len(pieces[1]) < _JOINED:
                queue.append((b"".join(pieces),))
            else:  # as are those that follow, nearly always
                if is_late:
                    self.flush_all(now)
                else:
                    self.flush(now)
                self._send(frames[i:] if i else frames, now)
                return

    def flush(self, now: float) -> None:
        """Send the frames that wait, but for the late ones."""
        if self._frames:
            self._send(self._frames, now)
            self._frames = []

    def flush_all(self, now: float) -> None:
        """Send all frames that wait."""
        if self.late:
            self._frames += self.late
            self.late = []
        self.flush(now)
