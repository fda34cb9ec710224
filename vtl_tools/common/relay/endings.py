"""Puts off what nobody waits for at the end of a connection: the last frames, and closing its stream."""

from collections.abc import Callable
from typing import Final, final

from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.frame_queue import FrameQueue
from vtl_tools.common.tcp.state import Ended

_TURNS: Final = 32
"""Turns for which it is put off at most; about as long as a peer takes for its answer."""
_MANY: Final = 16
"""Flows with such work from which on it is not put off: one call for all their frames is cheaper then."""


@final
class Endings:
    """Sends the frames of a turn, and ends the flows that are over.

    A guest that opens connections in turn waits for the SYN|ACK of the next, not for the FIN of the last or
    the end of its stream. A FIN is due behind octets for a guest, which is busy with these, closing behind
    octets for a stream.

    remove: forgets a flow and closes its stream. waits: whether something was put off.
    """

    __slots__ = ("_outbox", "_over", "_remove", "_turns", "waits")

    def __init__(self, outbox: FrameQueue, remove: Callable[[RelayFlow, float], object]) -> None:
        self._outbox, self._remove = outbox, remove
        self._over: list[RelayFlow] = []
        self._turns, self.waits = 0, False

    def finish(
        self, ending: list[RelayFlow], went_up: bool, went_down: bool, is_due: bool, now: float
    ) -> None:
        """Send the frames that wait, and do, or put off, what nobody waits for.

        ending: flows of which the guest's side or both have ended in this turn. went_up, went_down: whether
        octets did, in this turn. is_due: nothing is put off.
        """
        outbox, over, waits = self._outbox, self._over, self.waits
        is_due |= self._turns >= _TURNS or len(outbox.late) + len(over) + len(ending) >= _MANY
        if is_due or (went_down and waits):
            outbox.flush_all(now)
        else:
            outbox.flush(now)
        for flow in ending:  # behind the frames, as this takes long
            if flow.owes_eof:
                flow.finish_up()
            if flow.is_over:
                if flow.endpoint.ended is Ended.CLOSED:
                    over.append(flow)
                else:
                    outbox.flush_all(now)  # before its ports are used again
                    self._remove(flow, now)  # it may hold much memory
        if is_due or (went_up and waits):
            self._over = []
            for flow in over:
                self._remove(flow, now)
        self.waits = bool(self._over or outbox.late)
        self._turns = self._turns + 1 if self.waits else 0

    def finish_all(self, now: float) -> None:
        """Do what was put off."""
        self.finish([], False, False, True, now)

    def hurry(self) -> None:
        """Have nothing put off in this turn."""
        self._turns, self.waits = _TURNS, True
