"""Builds the segments that a connection sends: SYNs, data, acknowledgements, resets."""

import struct
from typing import Final

from vtl_tools.common.packet.tcp import (
    ACK,
    CWR,
    FIN,
    MSS,
    NOP,
    OPTIONS_MAX,
    PSH,
    RST,
    SACK_PERMITTED,
    SYN,
    TIMESTAMPS,
    URG,
    WINDOW_SCALE,
    encode_options,
)
from vtl_tools.common.tcp import ecn, fast_open, user_timeout
from vtl_tools.common.tcp.accurate import ACE_SHIFT
from vtl_tools.common.tcp.limits import judge
from vtl_tools.common.tcp.snd import Piece
from vtl_tools.common.tcp.state import ESTABLISHED, FIN_WAIT_1, FIN_WAIT_2, SENDS_DATA, SYN_RECEIVED, SYN_SENT
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.wire import NO_STAMPS, Pieces, Segment

_pack_stamps: Final = struct.Struct("!III").pack
_STAMPS_ALONE: Final = 0x0101_080A
_pack_syn_options: Final = struct.Struct("!HH8sIII").pack
"""All of a usual SYN, as encode_options() has them, which takes three times as long."""
_MSS_FIRST: Final = MSS << 8 | 4
_SACK_AND_STAMPS: Final = bytes((NOP, NOP, SACK_PERMITTED, 2, NOP, NOP, TIMESTAMPS, 10))
_SCALE_LAST: Final = NOP << 24 | WINDOW_SCALE << 16 | 3 << 8
_ALL_PADDED: Final = 24
"""Octets of the options of a usual SYN, four of which are padding."""
_LATE_S: Final = 0.01
_LATE_TRIPS: Final = 0.5
"""How much of what was not sent in time may leave at once: so many seconds of it; if it waited for the pacing
rate, and so the driver is late, also as many round trips: the queue of the path has drained meanwhile."""
_SEGMENT_MIN: Final = 536  # RFC 9293 MUST-15, IPv4; 1220 over IPv6
_PEER_MSS_MIN: Final = 48
"""As in Linux: a smaller one, which no link needs, would make each octet cost too much."""
_ANSWER_S: Final = 0.04
"""Data sent within this time after the peer's is an answer to it."""
_OVERRIDE_S: Final = 1.0
"""Maximum time that a small window delays data (3.8.6.2.1)."""
_URGENT_MAX: Final = 0xFFFF  # if SND.UP is further ahead, later segments announce the rest


def our_mss(tcb: TCB) -> int:
    """Return the MSS that our SYN offers: the payload that fits the link without options (RFC 6691)."""
    fits = tcb.config.mtu - tcb.framer.overhead
    return fits if tcb.config.mss is None else min(tcb.config.mss, fits)


def syn_window(tcb: TCB) -> int:
    """Return the window that our SYN offers, which is never scaled."""
    return min(tcb.config.receive_buffer, 0xFFFF)


def agree(tcb: TCB, syn: Segment) -> None:
    """Apply the options of both SYNs: an option is in force only if both offered it (RFC 7323, RFC 2018)."""
    config, snd, rcv = tcb.config, tcb.snd, tcb.rcv
    tcb.timestamps = config.timestamps and syn.tsval != NO_STAMPS
    snd.sack = config.sack and syn.sack_permitted
    if syn.user_timeout:
        user_timeout.heed(tcb, syn.user_timeout)
    tcb.peer_scales = syn.window_scale is not None
    if config.window_scaling and syn.window_scale is not None:
        snd.shift, rcv.shift = min(syn.window_scale, 14), config.window_scale
    default = _SEGMENT_MIN if len(tcb.path.local) == 4 else 1220
    options = 12 if tcb.timestamps else 0
    theirs = max(syn.mss or default, _PEER_MSS_MIN)  # as in Linux, a size of zero is none
    snd.start(max(min(theirs, our_mss(tcb)) - options, 32))
    rcv.mss = our_mss(tcb) - options
    rcv.full = min(rcv.full, rcv.mss)
    ecn.agree(tcb, syn)  # a mark on our SYN reduces the initial window


def acknowledge(tcb: TCB, now: float) -> Pieces:
    """Return <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>, with SACK blocks if data is out of order."""
    if not tcb.rcv.has_news:
        return frame(tcb, tcb.acceptable, ACK, now)
    blocks = tcb.rcv.blocks()
    if not tcb.snd.sack or tcb.state is SYN_RECEIVED:  # the SYN's data is held, and may be dropped
        blocks = []
    return frame(tcb, tcb.acceptable, ACK, now, blocks=blocks[: 3 if tcb.timestamps else 4])


def frame(
    tcb: TCB,
    position: int,
    flags: int,
    now: float,
    data: list[bytes | memoryview] | None = None,
    length: int = 0,
    blocks: list[tuple[int, int]] | None = None,
    *,
    ect: bool = False,
) -> Pieces:
    """Return a segment that acknowledges all received data, and record that it does."""
    rcv, snd = tcb.rcv, tcb.snd
    if tcb.quick:
        if tcb.ack_due_octets:
            tcb.quick -= 1
        if length and rcv.received and now - tcb.heard_at < _ANSWER_S:
            tcb.is_interactive = True
    tcb.ack_now, tcb.delayed_at, tcb.ack_due_octets = False, NEVER, 0
    tcb.last_ack = rcv.nxt
    tcb.segments_out += 1
    options, tsval = b"", NO_STAMPS
    if tcb.ecn:  # whose option needs to know the size of the others
        options = stamps(tcb, now, tcb.ts_recent)
    elif tcb.timestamps:
        tsval = tcb.tsval(now)
    if blocks is None and snd.sack and rcv.has_gap:  # SACK wherever it is permitted (RFC 2018 section 3)
        room = (snd.mss - length - 4) // 8
        if room > 0:
            blocks = rcv.blocks()[: min(3 if tcb.timestamps else 4, room)]
    if tcb.ecn:
        flags, options, blocks = ecn.feed_back(tcb, flags, options, blocks, length)
    if blocks:
        options += encode_options(sack=blocks)
    elif (
        tcb.user_timeout_due
        and length + user_timeout.OPTION_SIZE <= snd.mss
        and not (length and tcb.ecn)  # whose option may have taken the room
    ):
        options += user_timeout.option(tcb)
        tcb.user_timeout_due = False
    urgent = 0
    if snd.up > position and snd.is_urgent:  # a keep-alive is before SND.UNA, and so is an old SND.UP
        flags |= URG
        urgent = min(snd.up - position, _URGENT_MAX)
    return tcb.framer.frame(
        (snd.iss + position) & 0xFFFF_FFFF,
        rcv.rcv_nxt,
        flags,
        rcv.window(rcv.shift),
        options,
        length,
        data,
        snd.mss if length > snd.mss else 0,
        urgent,
        ect,
        tsval,
        tcb.ts_recent,
    )


def synchronize(tcb: TCB, now: float) -> Pieces:
    """Return our SYN, with an ACK if the peer's SYN has arrived."""
    config, snd, rcv = tcb.config, tcb.snd, tcb.rcv
    answers = tcb.state is not SYN_SENT
    stamps = tcb.timestamps if answers else config.timestamps
    scales = config.window_scaling and (tcb.peer_scales or not answers)
    sack = snd.sack if answers else config.sack
    if stamps and scales and sack:
        options = _pack_syn_options(
            _MSS_FIRST, our_mss(tcb), _SACK_AND_STAMPS,
            tcb.tsval(now), tcb.ts_recent, _SCALE_LAST | config.window_scale,
        )  # fmt: skip
    else:
        options = encode_options(
            mss=our_mss(tcb),
            window_scale=config.window_scale if scales else None,
            sack_permitted=sack,
            timestamps=(tcb.tsval(now), tcb.ts_recent) if stamps else None,
        )
    data, length = None, 0
    if tcb.fast_open is not None:
        options, length = _open_early(tcb, options, now)
        if length:
            data = snd.queue.views(1, 1 + length)
    tcb.syn_due, tcb.ack_now = False, False
    tcb.last_ack = rcv.nxt
    tcb.segments_out += 1
    if snd.nxt == 0:
        tcb.timed = (1, now)
        snd.nxt = 1
        snd.max = 1 + length
        if tcb.is_early:
            snd.una = 1  # data may follow before the handshake is complete
    else:
        tcb.timed = None
        snd.retransmits += 1
    if config.user_timeout_option and len(options) + user_timeout.OPTION_SIZE <= OPTIONS_MAX:
        options += user_timeout.option(tcb)
    if tcb.stalled_since is None:
        tcb.stalled_since = now
    tcb.retransmit_at = now + tcb.rtt.timeout_s
    flags, ack = (SYN | ACK, rcv.rcv_nxt) if answers else (SYN, 0)
    if not answers:
        flags |= ecn.offer(tcb)
    elif tcb.ecn:
        marks, options = ecn.answer(tcb, options)
        flags |= marks
    window = rcv.window(0) if answers else syn_window(tcb)
    return tcb.framer.frame(snd.iss, ack, flags, window, options, length, data)


def _open_early(tcb: TCB, options: bytes, now: float) -> tuple[bytes, int]:
    """Return the options of our SYN with that of fast open, and how many octets of data the SYN carries.

    The data stays unsent until it is acknowledged: whatever the SYN-ACK does not, is sent right after it.
    """
    length, cookie = 0, None
    if tcb.state is not SYN_SENT:
        cookie = tcb.grant or None
        if tcb.snd.nxt:
            return options, 0
    else:
        cookie, room = fast_open.offer(tcb, now)
        queue = tcb.snd.queue
        length = min(room, our_mss(tcb) - OPTIONS_MAX, queue.tail - 1)
    if cookie is None:
        return options, 0
    if len(options) == _ALL_PADDED:
        options = options[:4] + options[6:8] + options[10:]  # without no-operations
    longer = fast_open.add_option(options, cookie)
    return longer, max(0, length) if len(longer) > len(options) else 0


def send_piece(tcb: TCB, piece: Piece, now: float) -> Pieces:
    """Return a segment, or super-segment, of data or a FIN or both."""
    snd = tcb.snd
    start, end, again = piece.start, piece.end, piece.again
    flags = ACK
    if piece.fin:
        flags |= FIN
    data = None
    if end > start:
        data = snd.queue.views(start, end)
        if end == snd.queue.tail:
            flags |= PSH  # MUST-61: the end of the written data
    ect = tcb.ect and data is not None and not again and snd.wnd > 0  # RFC 3168 section 6.1.5, 6.1.6
    if ect and snd.cwr_due:
        snd.cwr_due = False
        if tcb.accurate is None:
            flags |= CWR
    snd.sent(piece, now)
    if snd.wnd:  # a probe of a zero window says nothing of the path
        tcb.sent_at = now
    if tcb.retransmit_at == NEVER or (again and start == snd.una):
        tcb.arm(now)
    elif tcb.probe_is_next and not again:
        tcb.arm_probe(now)
    return frame(tcb, start, flags, now, data, end - start, ect=ect)


def stamps(tcb: TCB, now: float, echo: int) -> bytes:
    """Return the timestamps option, if it is in force. echo: TSecr; 0 without an ACK (RFC 7323 3.2)."""
    return _pack_stamps(_STAMPS_ALONE, tcb.tsval(now), echo) if tcb.timestamps else b""


def reset(tcb: TCB, segment: Segment, options: bytes = b"") -> None:
    """Answer a segment of no connection by a reset (3.10.7.1); never a reset, nor what many hosts got."""
    if segment.flags & RST or not tcb.path.is_unicast:
        return
    if segment.flags & ACK:
        seq, ack, flags = segment.ack, 0, RST
    else:
        length = segment.length + (segment.flags & FIN) + (segment.flags >> 1 & 1)
        seq, ack, flags = 0, (segment.seq + length) & 0xFFFF_FFFF, RST | ACK
    tcb.segments_out += 1
    tcb.out.append(tcb.framer.frame(seq, ack, flags, 0, options))


def abort(tcb: TCB, now: float) -> Pieces:
    """Return a reset of a connection that the peer knows (3.10.5)."""
    tcb.reset_due = False
    tcb.segments_out += 1
    options = stamps(tcb, now, tcb.ts_recent)
    flags = RST | ACK
    if tcb.accurate is not None:
        flags |= tcb.accurate.ace(pure=False) << ACE_SHIFT
    rcv = tcb.rcv
    return tcb.framer.frame(tcb.snd.seq(tcb.acceptable), rcv.rcv_nxt, flags, rcv.window(rcv.shift), options)


def _stream(tcb: TCB, frames: list[Pieces], now: float) -> bool:
    """Send new data in whole segments, and its end, as far as both windows permit.

    For a connection without loss, urgent data or FIN. It decides as Sender.next() does, in a third of the
    time. Returns whether data is left for Sender.next() to judge.
    """
    snd = tcb.snd
    queue, mss, at_once = snd.queue, snd.mss, snd.config.no_delay or snd.small <= snd.una
    edge = snd.una + min(snd.wnd, snd.cc.cwnd)
    most = snd.send_size
    first = start = snd.nxt
    head: bytes | memoryview = b""
    length, told = 0, 0
    while (size := min(min(queue.tail, edge) - start, most)) > 0:
        end = start + size
        flags = ACK
        if end == queue.tail and at_once:
            flags = ACK | PSH  # MUST-61: the end of the written data
        elif size % mss:
            end -= size % mss
            if end == start:
                break
        elif end == queue.tail:
            flags = ACK | PSH
        views = queue.views(start, end)
        if end - start == length and flags == told:
            tcb.segments_out += 1
            frames.append((tcb.framer.renumbered(head, (snd.iss + start) & 0xFFFF_FFFF), *views))
        else:
            length, told = end - start, flags
            pieces = frame(tcb, start, flags, now, views, length, ect=tcb.ect)
            head = pieces[0]
            frames.append(pieces)
        start = end
    if start > first:
        if (start - first) % mss:
            snd.small = start
        _has_sent(tcb, start, now)
    return queue.tail > start and edge > start


def _has_sent(tcb: TCB, end: int, now: float) -> None:
    """Record that all from SND.NXT up to a position was sent, for the first time and without a sample."""
    snd = tcb.snd
    snd.runs.sent(snd.nxt, end, now, None, snd.rack.tick_s, snd.mss)
    snd.nxt = end
    if end > snd.max:
        snd.max = end
    tcb.sent_at = now
    if tcb.retransmit_at == NEVER:
        tcb.arm(now)
    elif tcb.probe_is_next:
        tcb.arm_probe(now)


def transmit(tcb: TCB, now: float) -> list[Pieces]:
    """Return all frames that may be sent now."""
    frames = tcb.out
    if tcb.reset_due:
        frames.append(abort(tcb, now))
    if frames:
        tcb.out = []
    state, snd = tcb.state, tcb.snd
    end = snd.queue.tail if snd.fin is None else snd.fin + 1
    if snd.nxt >= end and snd.recover is None and not (tcb.ack_now or tcb.syn_due):  # the usual case
        if _window_opened(tcb):
            return [*frames, acknowledge(tcb, now)]
        return frames
    if not frames:
        frames = []  # the other list stays the connection's
    if state is ESTABLISHED or state in SENDS_DATA:
        # segments with data have no room for blocks
        if tcb.ack_now and ((snd.sack and tcb.rcv.has_news) or (tcb.ecn and ecn.is_alone(tcb))):
            frames.append(acknowledge(tcb, now))
        if snd.nxt < end or snd.recover is not None:
            _data(tcb, frames, now)
    else:
        if tcb.syn_due:
            frames.append(synchronize(tcb, now))
            if not tcb.is_early:
                return frames
        if tcb.is_early and 0 < snd.nxt < end:
            _data(tcb, frames, now)
    if tcb.ack_now or _window_opened(tcb):
        frames.append(acknowledge(tcb, now))
    return frames


def _window_opened(tcb: TCB) -> bool:
    """Return whether a window update is due. Elsewhere the peer does not know us yet, or sends no more."""
    state = tcb.state
    if state is ESTABLISHED or state is FIN_WAIT_1 or state is FIN_WAIT_2:
        return tcb.rcv.window_opened
    return False


def _data(tcb: TCB, frames: list[Pieces], now: float) -> None:
    """Send new and lost data, and set the timers for data that cannot be sent."""
    snd = tcb.snd
    if not snd.flight and snd.wnd and now - tcb.sent_at > tcb.rtt.rto_s:
        snd.cc.idle(int((now - tcb.sent_at) / tcb.rtt.rto_s))
    if tcb.config.pacing:
        snd.cc.pace(tcb.rtt.srtt_s, snd.max)
    if snd.cc.pacing_rate is not None:
        _paced(tcb, frames, now)
        return
    ordinary = (
        snd.recover is None
        and snd.up <= snd.una
        and not (snd.dup_acks or snd.runs.sacked or snd.cc.samples or snd.more or snd.records)
        and not (snd.cwr_due and tcb.ect)
    )
    fin = snd.fin
    if ordinary and fin is not None and fin == snd.nxt and fin < snd.una + snd.wnd:  # only that is left
        frames.append(frame(tcb, fin, ACK | FIN, now))
        _has_sent(tcb, fin + 1, now)
    elif not ordinary or fin is not None or _stream(tcb, frames, now):
        while (snd.nxt < snd.end or snd.recover is not None) and (piece := snd.next()) is not None:
            frames.append(send_piece(tcb, piece, now))
    snd.used()
    _wait(tcb, now)


def _paced(tcb: TCB, frames: list[Pieces], now: float) -> None:
    """Send as much as the pacing rate permits, and set the time for the rest.

    A driver that comes late may catch up, so that the average holds. On a busy machine it may not run for
    tens of milliseconds, and would else send the less the later it comes.
    """
    snd = tcb.snd
    rate = snd.cc.pacing_rate
    assert rate is not None
    late_s = _LATE_S if snd.cc.samples else snd.cc.quantum / rate / 2
    if snd.cc.samples and tcb.is_paced and tcb.rtt.srtt_s is not None:
        late_s = max(late_s, _LATE_TRIPS * tcb.rtt.srtt_s)
    if tcb.pace_at < now - late_s:
        tcb.pace_at = now - late_s
    tcb.paced_at, tcb.is_paced = NEVER, False
    while (snd.nxt < snd.end or snd.runs.lost) and (piece := snd.next()) is not None:
        if tcb.pace_at > now:
            tcb.paced_at, tcb.is_paced = tcb.pace_at, True
            break
        tcb.pace_at += (piece.end - piece.start + piece.fin) / rate
        frames.append(send_piece(tcb, piece, now))
    snd.used()
    _wait(tcb, now)


def _wait(tcb: TCB, now: float) -> None:
    """Set the timer for data that the peer's window holds back, and note that data is outstanding."""
    snd = tcb.snd
    if not snd.flight and snd.unsent > 0 and tcb.paced_at == NEVER:
        if tcb.persist_at == NEVER:  # the window is zero, or too small (silly window)
            wait_s = min(tcb.rtt.rto_s, _OVERRIDE_S) if snd.wnd else tcb.rtt.after(tcb.persists)
            tcb.persist_at = now + wait_s
            if not snd.wnd:
                tcb.stalled_since = tcb.persist_at  # MUST-37: the peer answered so far
    else:
        tcb.persist_at = NEVER
    if tcb.stalled_since is None:
        tcb.stalled_since = now
    judge(tcb, now)
