"""The TCP endpoint (RFC 9293), without I/O, clock or randomness: the interface for user and driver."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.tcp import acks, arrival, output, timeouts
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.info import ConnectionInfo, describe
from vtl_tools.common.tcp.isn import initial_numbers, number_after
from vtl_tools.common.tcp.queue import Octets
from vtl_tools.common.tcp.state import (
    CLOSED,
    LISTEN,
    MAY_WRITE,
    ON_CLOSE,
    SENDS_DATA,
    SYN_RECEIVED,
    Ended,
    SegmentDrop,
    State,
)
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.wire import SOURCE_ROUTE, Frame, Framer, Path, Pieces, Segment, is_intact, parse

DEFAULT: Final = Config()
_TUNE_AFTER_S: Final = 0.01
"""Age of a connection that is worth larger buffers."""
_R1: Final = 3  # retransmissions (RFC 9293 section 3.8.3, SHLD-10)

_ABORT_IS_TOLD = frozenset(  # 3.10.5
    (State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSE_WAIT)
)

_CLOSED_TWICE = frozenset((State.CLOSED, State.CLOSING, State.LAST_ACK, State.TIME_WAIT))  # 3.10.4: an error

_NOTHING_TO_TELL = frozenset((State.CLOSED, State.TIME_WAIT))  # the peer has ended as well

_BEFORE_SYN = frozenset((State.LISTEN, State.SYN_SENT))


class Endpoint(TCB):
    """One end of one connection, on one path. Frames and time go in; frames and one deadline come out.

    After each receive(), wake(), or call by the user, transmit() returns the frames to send. Calls that the
    state does not allow raise ValueError. secret: see initial_numbers(). iss: the initial sequence number to
    use instead, to take over a connection. cookies: for fast open, where config has that; the same for all
    connections.
    """

    __slots__ = ()

    def __init__(
        self,
        path: Path,
        secret: bytes,
        now: float,
        config: Config | None = None,
        *,
        iss: int | None = None,
        cookies: FastOpen | None = None,
    ) -> None:
        super().__init__(path, config or DEFAULT)
        number, self.ts_offset = initial_numbers(secret, self.framer.ends, now)
        self.snd.iss = number if iss is None else iss
        if cookies is not None and self.config.fast_open:
            self.fast_open = cookies
        if self.tune_at < NEVER:
            self.tuned, self.tune_at = (0, now), now + _TUNE_AFTER_S

    def __repr__(self) -> str:
        return (
            f"Endpoint({self.path.local_port} to {self.path.remote_port} {self.state.value}"
            f" una={self.snd.una} nxt={self.snd.nxt} wnd={self.snd.wnd}"
            f" rcv_nxt={self.rcv.nxt} rcv_wnd={self.rcv.wnd})"
        )

    # --- opening

    def connect(self) -> None:
        """Open actively, also from LISTEN: the next transmit() returns the SYN."""
        if not self.path.is_unicast:
            raise ValueError("not an address of a single host")  # MUST-46
        if self.state is State.LISTEN:  # 3.10.1
            self.passive = False
            self.become(State.SYN_SENT)
        else:
            self._open(State.SYN_SENT)
        self.syn_due = True

    def listen(self, *, once: bool = False, after: TCB | None = None) -> None:
        """Open passively. A SYN sets `asked`; it is answered after accept() or refuse().

        If the handshake fails by a reset, the state is LISTEN again (3.10.7.4); once: it is CLOSED then.
        after: the connection to follow(). If the SYN proves to be an old duplicate, that is if a reset
        answers our SYN-ACK, the state is TIME-WAIT again (3.6.1, MAY-2).
        """
        self._open(LISTEN)
        self.passive, self.once = True, once
        if after is not None:
            self.follow(after)
            self.before = after

    def follow(self, before: TCB) -> None:
        """Begin above all numbers of a connection of this path that a SYN ended in TIME-WAIT.

        Call this before transmit(). The earlier endpoint must not be used any more.
        """
        self.snd.iss = number_after(self.snd.iss, before.snd.snd_nxt)

    def _open(self, state: State) -> None:
        if self.state is not CLOSED or self.ended is not None:
            raise ValueError("connection already exists: an endpoint can be opened only once")
        self.become(state)

    @property
    def asked(self) -> bool:
        """Whether a SYN waits for accept() or refuse()."""
        return self.syn_pending

    def accept(self) -> None:
        """Answer the SYN by a SYN-ACK. Data of a fast open can be read at once."""
        if not self.syn_pending:
            raise ValueError("no SYN waits for an answer")
        self.syn_pending, self.syn_due = False, True
        if self.is_early:
            self.rcv.release()

    def refuse(self) -> None:
        """Answer the SYN by a reset, as a closed port does."""
        if not self.syn_pending:
            raise ValueError("no SYN waits for an answer")
        self.snd.nxt = -self.snd.iss  # SEQ=0, as in state CLOSED (3.10.7.1)
        self.reset_due, self.timestamps = True, False
        self.end(Ended.ABORTED)

    # --- frames and time

    def receive(self, frame: Frame, now: float) -> None:
        """Process a frame, which is borrowed: its data is copied.

        A frame of another connection is counted.
        """
        try:
            segment = parse(frame)
        except Malformed as found:
            self.drops[SegmentDrop.SOURCE_ROUTE if found.what == SOURCE_ROUTE else SegmentDrop.MALFORMED] += 1
            return
        if segment is None:
            self.drops[SegmentDrop.MALFORMED] += 1
            return
        if segment.sum_is_due and not is_intact(frame):
            self.drops[SegmentDrop.CHECKSUM] += 1
            return
        if segment.flow != self.framer.expected:
            self.drops[SegmentDrop.FOREIGN] += 1
            return
        arrival.arrive(self, segment, now)
        self.rcv.own()

    def arrive(self, segment: Segment, now: float) -> None:
        """Process a segment of this path that parse() returned, and for which is_intact() holds.

        Its data is borrowed: call own() before the frame becomes invalid.
        """
        arrival.arrive(self, segment, now)

    def own(self) -> None:
        """Copy the data that is still borrowed, so that its frames may become invalid."""
        if self.rcv.borrowed:
            self.rcv.own()

    def fills_gap(self, segment: Segment) -> bool:
        """Tell whether all data received so far waits for this segment, so that taking it frees memory."""
        rcv = self.rcv
        return bool(rcv.early.starts) and not rcv.readable and segment.seq == rcv.rcv_nxt

    def transmit(self, now: float) -> list[bytearray]:
        """Return all frames that may be sent now. The caller owns them."""
        return [bytearray().join(pieces) for pieces in output.transmit(self, now)]

    def transmit_pieces(self, now: float) -> list[Pieces]:
        """Return the frames of transmit() in pieces: views of written data, sent before the next call."""
        return output.transmit(self, now)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never, unless another call comes first."""
        due = timeouts.deadline(self)
        return None if due == NEVER else due

    def wake(self, now: float) -> None:
        """Process the timers that are due. An early call is harmless."""
        timeouts.process(self, now)

    # --- the user

    @property
    def readable(self) -> int:
        """Octets that read() can return."""
        return self.rcv.readable

    @property
    def urgent(self) -> int:
        """Urgent octets, counted from the next that read() returns (MUST-33); some may not have arrived yet.

        They end before the octet that the urgent pointer points to (MUST-62). The number grows when the
        pointer advances; the user checks it after receive().
        """
        return self.rcv.urgent

    @property
    def suspect(self) -> bool:
        """Whether the path seems dead (R1, MUST-20), so that the user can inform IP.

        A SYN or data was retransmitted three times and not acknowledged, or three probes of a zero window
        were not answered.
        """
        return self.ended is None and self.rtt.unanswered >= _R1

    @property
    def at_eof(self) -> bool:
        """Whether the peer has closed, and all its data was read."""
        rcv = self.rcv
        return rcv.fin is not None and not rcv.readable and rcv.nxt > rcv.fin

    @property
    def writable(self) -> int:
        """Octets that write() would accept."""
        return self.snd.room if self._may_write() else 0

    @property
    def unsent(self) -> int:
        """Octets written and not sent yet, our FIN included."""
        return self.snd.unsent

    @property
    def buffered(self) -> int:
        """Octets of memory that all takes that was written or received, and has not gone on its way."""
        rcv, octets = self.rcv, self.snd.queue.kept
        return octets + rcv.kept if rcv.queue or rcv.early.starts else octets

    @property
    def send_size(self) -> int:
        """Octets that one frame carries at most."""
        return self.snd.send_size

    def has_room_for(self, octets: int) -> bool:
        """Tell whether all that was written was sent, and so many octets more may wait to be acknowledged."""
        snd = self.snd
        queue = snd.queue
        return snd.nxt >= queue.tail and snd.config.send_buffer - queue.tail + queue.head >= octets

    def can_send(self, octets: int) -> bool:
        """Tell whether all that was written, and so many octets more, can be sent at once."""
        snd, cc = self.snd, self.snd.cc
        flight = snd.queue.tail - snd.una + octets
        return flight <= min(snd.wnd, cc.cwnd, snd.config.send_buffer) and cc.pacing_rate is None

    def _may_write(self) -> bool:
        return self.state in MAY_WRITE and self.snd.fin is None

    def write(self, data: Octets, *, urgent: bool = False, more: bool = False, eor: bool = False) -> int:
        """Queue octets; return how many were accepted, perhaps none. Large pieces are held by reference.

        The caller must not change data until it is acknowledged. urgent: all data up to the end of the
        accepted part is urgent (3.8.5), and the peer learns this even while its window is zero. more: more
        will be written soon: less than a full segment waits for it, an ACK or the RTO (MSG_MORE); a write
        without it, even of nothing, sends the rest. eor: if all of it was accepted, data written later does
        not share a segment with it (MSG_EOR).
        """
        if not self._may_write():
            raise self._refusal()
        if self.state is LISTEN:  # 3.10.2
            self.connect()
        snd = self.snd
        taken = snd.write(data, more=more and not urgent, eor=eor)
        if urgent and taken:
            if not snd.is_urgent and self.state in SENDS_DATA:
                self.ack_now = True  # sent with the data, if that may be sent
            snd.up = snd.queue.tail  # SND.UP
        return taken

    @property
    def acknowledged(self) -> int:
        """Octets written that the peer has acknowledged: no reference to them remains."""
        return self.snd.queue.head - 1

    @property
    def pieces(self) -> Sequence[Octets]:
        """The octets that read() would return, piece by piece. Use skip() to consume them."""
        return self.rcv.queue

    def skip(self, octets: int) -> None:
        """Discard octets, as if they had been read. At most `readable`."""
        self.rcv.skip(octets)

    def read(self, octets: int = 1 << 20) -> Octets:
        """Return at most so many octets, as pieces arrived; empty if there are none (yet)."""
        if self.state is CLOSED and self.ended is None:
            raise self._refusal()
        return self.rcv.read(octets)

    def close(self, *, both: bool = False) -> None:
        """Close our direction: a FIN follows the written data. The peer's data can still be read.

        both: it is not going to be read. A reset then tells the peer that data is lost: at once, if some was
        received and not read, or when more arrives (3.6.1, as close(2) does).

        Another call has no effect, once it has ended or while the peer may still send; else it fails, unless
        `both`. Before the peer's SYN has come, it ends the connection, and discards written data (3.10.4).
        """
        snd = self.snd
        if both and self.rcv.readable and self.state not in _NOTHING_TO_TELL:
            is_told = self.state in SENDS_DATA  # also in CLOSING and LAST-ACK, where an abort is not
            self.abort()
            self.reset_due |= is_told
            return
        self.is_deaf |= both
        if snd.fin is not None or self.state is CLOSED:
            if self.ended is None and self.state in _CLOSED_TWICE and not (both and snd.fin is not None):
                raise self._refusal()
            return
        if self.state in _BEFORE_SYN:
            self.end(Ended.CLOSED)
            return
        if self.syn_pending:
            self.refuse()
            return
        snd.close()
        if self.state is SYN_RECEIVED and (snd.nxt == 0 or snd.queue.tail > 1):
            return  # the FIN waits for the handshake: our SYN was not sent yet, or data is before it
        self.become(ON_CLOSE[self.state])

    def abort(self) -> None:
        """Reset the connection, and discard written and received data."""
        if self.syn_pending:
            self.refuse()
        elif self.state is not State.CLOSED:
            # Until our FIN is sent, the state is for the peer what it was before: CLOSE-WAIT, not LAST-ACK.
            if self.state in _ABORT_IS_TOLD or (self.state in SENDS_DATA and self.snd.unsent > 0):
                self.reset_due = True
            self.end(Ended.ABORTED)
        elif self.ended is None:
            raise self._refusal()

    def _refusal(self) -> ValueError:
        """Return the error of a call that the state does not allow, in the words of section 3.10."""
        return ValueError("connection does not exist" if self.state is CLOSED else "connection closing")

    def forget(self) -> None:
        """Discard written and received data, once it is no longer needed."""
        self.snd.queue.clear()
        self.rcv.forget()

    def configure(self, **changes: Any) -> None:
        """Change fields of the configuration, as setsockopt(2) does. Raises as Config does.

        Options agreed in the SYNs stay, as do running timers and a window offered before.
        """
        self.config = self.snd.config = config = replace(self.config, **changes)
        self.rcv.resize(config.receive_buffer)
        self.rtt.limit(config.rto_min_s, config.rto_max_s)
        if "user_timeout_s" in changes:
            self.user_timeout_s, self.is_timeout_fixed = config.user_timeout_s, True
            self.user_timeout_due = config.user_timeout_option
        if changes.get("no_delay"):
            self.snd.more = False  # as in Linux, what waits for more leaves at once
        if "ttl" in changes or "dscp" in changes:
            self.framer = Framer(self.path, config.ttl, config.dscp)

    def path_mtu(self, octets: int) -> None:
        """Limit packets to this size from now on (RFC 1191, RFC 8201), after an ICMP error.

        Larger segments in flight are sent again in parts, at the next transmit().
        """
        snd, framer = self.snd, self.framer
        options = 12 if self.timestamps else 0
        least = 576 if len(self.path.local) == 4 else 1280
        mss = max(octets, least) - framer.overhead - options
        if mss < snd.mss:
            before, snd.mss = snd.mss, mss
            snd.cc.resize(mss)
            if self.state in SENDS_DATA and snd.una:
                acks.too_big(snd, before)

    def readdress(self, *, local_mac: bytes | None = None, remote_mac: bytes | None = None) -> None:
        """Use other Ethernet addresses from now on."""
        path = self.path
        self.path = path.replace(
            local_mac=local_mac or path.local_mac, remote_mac=remote_mac or path.remote_mac
        )
        self.framer = Framer(self.path, self.config.ttl, self.config.dscp)

    def info(self, now: float | None = None) -> ConnectionInfo:
        """Return the state of the connection, as TCP_INFO does. now: for its times, which lag without it."""
        return describe(self, self.deadline(), now)
