"""The session of two daemons over one connection: items in sealed records (secure_channel.py). Sans-IO."""

from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.batch import FRAME_MAX
from vtl_tools.common.session.items import BYE, FRAME, HEAD, Conversation, Hello
from vtl_tools.common.session.secure_channel import Role, SecureChannel, SecureConfig, SessionState

_RECORD: Final = 1 << 16
"""Octets of items after which a record is sealed."""


class PeerSession(Conversation, SecureChannel):
    """One side of a connection between daemons."""

    prologue = b"vtl-vnet 2"
    sizes = range(HEAD.size, _RECORD + HEAD.size + FRAME_MAX + 1)

    def __init__(
        self,
        role: Role,
        config: SecureConfig,
        *,
        psk: bytes,
        ephemeral: bytes,
        now: float,
        hello: Hello,
        is_fresh: Callable[[bytes], bool] = lambda key: True,
    ) -> None:
        Conversation.__init__(self, hello, now)
        SecureChannel.__init__(self, role, config, psk=psk, ephemeral=ephemeral, now=now, is_fresh=is_fresh)

    @property
    def is_up(self) -> bool:
        """Whether records can be sent."""
        return self.state is SessionState.UP

    def emit(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Put a record of items in the outbox."""
        self._emit_record(pieces)

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session."""
        if self.is_over:
            return
        if say and self.is_up:
            self._emit_record([HEAD.pack(BYE, 0, 0)])
        self.state, self.why = SessionState.OVER, why
        self.frames.clear()

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Make records of frames, one at least; return how many frames are in the outbox now."""
        pieces: list[bytes | memoryview] = []
        size = 0
        for taken, frame in enumerate(frames, 1):
            pieces += (HEAD.pack(FRAME, hops, len(frame)), frame)
            size += HEAD.size + len(frame)
            if size >= _RECORD or taken == len(frames):
                self._emit_record(pieces)
                return taken
        return 0
