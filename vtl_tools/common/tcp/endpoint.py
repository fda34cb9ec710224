"""One end of a TCP connection (RFC 9293), without input, output, clock or chance: enter here."""

from collections.abc import Sequence
from dataclasses import dataclass

from vtl_tools.common.errors import Malformed
from vtl_tools.common.tcp import output
from vtl_tools.common.tcp.arrival import arrive
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.isn import initial_numbers
from vtl_tools.common.tcp.queue import Octets
from vtl_tools.common.tcp.snd import Piece
from vtl_tools.common.tcp.state import MAY_WRITE, ON_CLOSE, Drop, Ended, State
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.wire import Frame, Path, Pieces, Segment, is_intact, parse

_ABORT_IS_TOLD = frozenset(  # 3.10.5
    (State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2, State.CLOSE_WAIT)
)


@dataclass(frozen=True, slots=True)
class Info:
    """What TCP_INFO tells of a connection. Octets and seconds."""

    state: State
    mss: int
    rtt_s: float | None
    rttvar_s: float
    rto_s: float
    cwnd: int
    ssthresh: int
    unacked: int
    unsent: int
    sacked: int
    retransmits: int
    sent: int
    received: int
    readable: int
    snd_wnd: int
    rcv_wnd: int
    snd_wscale: int
    rcv_wscale: int
    sack: bool
    timestamps: bool
    segments_in: int
    segments_out: int
    out_of_order: int
    drops: dict[Drop, int]


class Endpoint:
    """One end of one connection, on one path. Frames and time go in; frames and one deadline come out.

    After each receive(), wake(), or call of the user's, transmit() returns what is to be sent. Calls that the
    state does not allow raise ValueError. secret: see initial_numbers(); iss: the sequence number
    instead, for who takes over a number that is known.
    """

    __slots__ = ("_tcb", "config", "path")

    def __init__(
        self, path: Path, secret: bytes, now: float, config: Config | None = None, *, iss: int | None = None
    ) -> None:
        self.path = path
        self.config = Config() if config is None else config
        number, ts_offset = initial_numbers(secret, path, now)
        self._tcb = TCB(path, self.config, number if iss is None else iss, ts_offset)

    def __repr__(self) -> str:
        tcb = self._tcb
        return (
            f"Endpoint({self.path.local_port} to {self.path.remote_port} {tcb.state.value}"
            f" una={tcb.snd.una} nxt={tcb.snd.nxt} wnd={tcb.snd.wnd}"
            f" rcv_nxt={tcb.rcv.nxt} rcv_wnd={tcb.rcv.wnd})"
        )

    # --- opening

    def connect(self) -> None:
        """Open actively: the next transmit() has the SYN."""
        self._open(State.SYN_SENT)
        self._tcb.syn_due = True

    def listen(self) -> None:
        """Open passively. A SYN makes `asked` true; it is answered after accept() or refuse()."""
        self._open(State.LISTEN)
        self._tcb.passive = True

    def _open(self, state: State) -> None:
        if self._tcb.state is not State.CLOSED or self._tcb.ended is not None:
            raise ValueError(f"the connection is {self._tcb.state.value}: an endpoint opens once")
        self._tcb.become(state)

    @property
    def asked(self) -> bool:
        """Whether a SYN waits for accept() or refuse()."""
        return self._tcb.held

    def accept(self) -> None:
        """Answer the SYN by ours."""
        if not self._tcb.held:
            raise ValueError("no SYN waits for an answer")
        self._tcb.held, self._tcb.syn_due = False, True

    def refuse(self) -> None:
        """Answer the SYN by a reset, as a port where nobody listens does."""
        if not self._tcb.held:
            raise ValueError("no SYN waits for an answer")
        self._tcb.snd.nxt = -self._tcb.snd.iss  # SEQ=0, as of a connection that never was (3.10.7.1)
        output.abort(self._tcb)
        self._tcb.end(Ended.ABORTED)

    # --- frames and time

    def receive(self, frame: Frame, now: float) -> None:
        """Take a frame, which is borrowed: its data is copied. What is not of the connection is counted."""
        tcb = self._tcb
        try:
            segment = parse(frame)
            if not frame[0] & 3 and not is_intact(frame):
                tcb.drops[Drop.CHECKSUM] += 1
                return
        except Malformed:
            tcb.drops[Drop.MALFORMED] += 1
            return
        if segment.flow != tcb.framer.expected:
            tcb.drops[Drop.FOREIGN] += 1
            return
        arrive(tcb, segment, now)
        tcb.rcv.own()

    def arrive(self, segment: Segment, now: float) -> None:
        """Take a segment that parse() made of a frame of this path, and that is_intact().

        Its data is borrowed: call own() before the frame goes.
        """
        arrive(self._tcb, segment, now)

    def own(self) -> None:
        """Copy what is still borrowed, so that the frames it came in may go."""
        self._tcb.rcv.own()

    def transmit(self, now: float) -> list[bytearray]:
        """Return all that may be sent now; the frames are the caller's."""
        return [bytearray().join(pieces) for pieces in output.transmit(self._tcb, now)]

    def transmit_pieces(self, now: float) -> list[Pieces]:
        """Return the same in pieces, which show what was written: send them before the next call."""
        return output.transmit(self._tcb, now)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never, unless something else happens first."""
        tcb = self._tcb
        due = min(
            tcb.retransmit_at, tcb.persist_at, tcb.delayed_at, tcb.time_wait_at,
            self._give_up_at(), self._keep_alive_at(), self._silent_at(),
        )  # fmt: skip
        return None if due == NEVER else due

    def wake(self, now: float) -> None:
        """Do what is due by now; early is harmless."""
        tcb = self._tcb
        if now >= tcb.time_wait_at or now >= self._silent_at():
            tcb.end(Ended.CLOSED if tcb.time_wait_at <= now else Ended.TIMED_OUT)
            return
        if now >= self._give_up_at():
            tcb.end(Ended.TIMED_OUT)
            return
        if now >= self._keep_alive_at():
            self._keep_alive(now)
        if now >= tcb.delayed_at:
            tcb.delayed_at, tcb.ack_now = NEVER, True
        if now >= tcb.persist_at:
            self._persist(now)
        if now >= tcb.retransmit_at:
            self._retransmit(now)

    def _retransmit(self, now: float) -> None:
        tcb, snd = self._tcb, self._tcb.snd
        if tcb.state in (State.SYN_SENT, State.SYN_RECEIVED):
            tcb.rtt.back_off()
            tcb.syn_due, tcb.retransmit_at = True, NEVER
            return
        if tcb.probe_is_next:
            piece = snd.tail()
            tcb.probe_is_next = False
            if piece is not None:
                tcb.out.append(output.send_piece(tcb, piece, now))
                tcb.probe = (snd.nxt, piece.again)
            tcb.arm(now)
            return
        tcb.rtt.back_off()  # RFC 6298 (5.5)
        tcb.probe = tcb.timed = None
        if snd.wnd == 0:  # 3.8.6.1: not congestion, so an octet asks whether the window has opened
            end = snd.una + 1
            fin = snd.fin == snd.una
            piece = Piece(snd.una, snd.una if fin else end, fin, True)
            tcb.out.append(output.send_piece(tcb, piece, now))
        else:
            snd.timed_out()
        tcb.arm(now)

    def _persist(self, now: float) -> None:
        tcb = self._tcb
        tcb.persists += 1
        tcb.persist_at = NEVER
        if (piece := tcb.snd.override()) is not None:
            tcb.out.append(output.send_piece(tcb, piece, now))

    def _keep_alive(self, now: float) -> None:
        tcb = self._tcb
        if tcb.keep_alives >= self.config.keep_alive_probes:
            output.abort(tcb)
            tcb.end(Ended.TIMED_OUT)
            return
        tcb.keep_alives += 1
        tcb.out.append(output.frame(tcb, tcb.snd.nxt - 1, 0x10, now))  # 3.8.4: SEG.SEQ = SND.NXT-1

    def _give_up_at(self) -> float:
        since = self._tcb.stalled_since
        if since is None:
            return NEVER
        if self._tcb.state in (State.SYN_SENT, State.SYN_RECEIVED):
            return since + self.config.syn_timeout_s
        return NEVER if self.config.user_timeout_s is None else since + self.config.user_timeout_s

    def _keep_alive_at(self) -> float:
        tcb, config = self._tcb, self.config
        if config.keep_alive_s is None or tcb.stalled_since is not None:
            return NEVER
        if tcb.state not in (State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_2):
            return NEVER
        return tcb.heard_at + config.keep_alive_s + tcb.keep_alives * config.keep_alive_interval_s

    def _silent_at(self) -> float:
        tcb, config = self._tcb, self.config
        if tcb.state is not State.FIN_WAIT_2 or config.fin_wait_2_s is None:
            return NEVER
        return tcb.heard_at + config.fin_wait_2_s

    # --- the user

    @property
    def state(self) -> State:
        """The state, as RFC 9293 names it."""
        return self._tcb.state

    @property
    def ended(self) -> Ended | None:
        """Why the connection is closed; None as long as it is not."""
        return self._tcb.ended

    @property
    def readable(self) -> int:
        """Octets that read() has."""
        return self._tcb.rcv.readable

    @property
    def at_eof(self) -> bool:
        """Whether the peer has closed, and all it had sent was read."""
        tcb = self._tcb
        finished = tcb.rcv.fin is not None and tcb.rcv.nxt > tcb.rcv.fin
        return not tcb.rcv.readable and finished

    @property
    def writable(self) -> int:
        """Octets that write() would take."""
        return self._tcb.snd.room if self._may_write() else 0

    @property
    def send_size(self) -> int:
        """Octets that one frame carries at most: whole segments."""
        return self._tcb.snd.send_size

    @property
    def unsent(self) -> int:
        """Octets written and not sent yet, and our FIN."""
        return self._tcb.snd.unsent

    def _may_write(self) -> bool:
        return self._tcb.state in MAY_WRITE and self._tcb.snd.fin is None

    def write(self, data: Octets) -> int:
        """Queue octets; return how many were taken, which may be none. Large pieces are held by reference.

        The caller must not change data until it is acknowledged.
        """
        if not self._may_write():
            raise ValueError(f"the connection is {self._tcb.state.value}: nothing can be written")
        return self._tcb.snd.write(data)

    @property
    def acknowledged(self) -> int:
        """Octets of what was written that the peer has acknowledged: they are no longer referred to."""
        return self._tcb.snd.queue.head - 1

    @property
    def pieces(self) -> Sequence[Octets]:
        """What read() would return, piece by piece. To be looked at, and then skipped."""
        return self._tcb.rcv.queue

    def skip(self, octets: int) -> None:
        """Forget so many octets, as if they had been read. At most `readable`."""
        self._tcb.rcv.skip(octets)

    def read(self, octets: int = 1 << 20) -> Octets:
        """Return up to so many octets, in the pieces that they came in; empty if there is nothing (yet)."""
        return self._tcb.rcv.read(octets)

    def close(self) -> None:
        """Send no more: a FIN follows what was written. What the peer sends can still be read."""
        tcb = self._tcb
        if tcb.snd.fin is not None or tcb.state is State.CLOSED:
            return
        if tcb.state in (State.LISTEN, State.SYN_SENT):
            if tcb.state is State.LISTEN or not tcb.snd.queue.tail > tcb.snd.queue.head:
                tcb.end(Ended.CLOSED)  # 3.10.4
                return
        elif tcb.held:
            self.refuse()
            return
        tcb.snd.close()
        if tcb.state is not State.SYN_RECEIVED and tcb.state in ON_CLOSE:
            tcb.become(ON_CLOSE[tcb.state])

    def abort(self) -> None:
        """Reset the connection, and forget what was written and received."""
        tcb = self._tcb
        if tcb.held:
            self.refuse()
        elif tcb.state is not State.CLOSED:
            if tcb.state in _ABORT_IS_TOLD:
                output.abort(tcb)
            tcb.end(Ended.ABORTED)

    def path_mtu(self, octets: int) -> None:
        """Send no packets larger than this from now on (RFC 1191, RFC 8201), as an ICMP error told."""
        snd, framer = self._tcb.snd, self._tcb.framer
        options = 12 if self._tcb.timestamps else 0
        least = 576 if len(self.path.local) == 4 else 1280
        mss = max(octets, least) - framer.overhead - options
        if mss < snd.mss:
            snd.mss = snd.cc.smss = mss

    def info(self) -> Info:
        """Return what TCP_INFO would tell."""
        tcb, snd, rcv = self._tcb, self._tcb.snd, self._tcb.rcv
        return Info(
            state=tcb.state, mss=snd.mss, rtt_s=tcb.rtt.srtt_s, rttvar_s=tcb.rtt.rttvar_s,
            rto_s=tcb.rtt.timeout_s,
            cwnd=snd.cc.cwnd, ssthresh=snd.cc.ssthresh, unacked=snd.flight, unsent=max(0, snd.unsent),
            sacked=snd.board.sacked, retransmits=snd.retransmits, sent=snd.max, received=rcv.received,
            readable=rcv.readable, snd_wnd=snd.wnd, rcv_wnd=rcv.wnd, snd_wscale=snd.shift,
            rcv_wscale=rcv.shift,
            sack=snd.sack, timestamps=tcb.timestamps, segments_in=tcb.segments_in,
            segments_out=tcb.segments_out, out_of_order=rcv.segments_out_of_order, drops=dict(tcb.drops),
        )  # fmt: skip
