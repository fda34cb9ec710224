"""Updates the model of both ends for a TCP segment that passes (RFC 9293 section 3.10.7).

tx sent the segment, rx will receive it. Acceptance is judged by the rules of rx: RFC 9293, the stricter
checks of RFC 5961, and PAWS (RFC 7323 section 5). A segment that rx rejects changes nothing.
"""

from typing import Final

from vtl_tools.common.model.segment_kind import SegmentKind
from vtl_tools.common.model.tcp_end import TcpEnd, agree
from vtl_tools.common.packet.seq import seq_gt
from vtl_tools.common.packet.tcp import ACK, FIN, RST, TCP
from vtl_tools.common.packet.tcp_state import ON_CLOSE, ON_FIN, ON_FIN_ACKED, State

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000  # the comparisons of packet.seq are inlined below: a call takes 60 ns

# Of nearly all segments: to look a member up in its Enum takes four times as long.
_ESTABLISHED: Final = State.ESTABLISHED
_ACK, _DATA, _RETRANSMISSION = SegmentKind.ACK, SegmentKind.DATA, SegmentKind.RETRANSMISSION


def arrive(
    tx: TcpEnd, rx: TcpEnd, seq: int, ack: int, flags: int, window: int, length: int, tsval: int | None
) -> SegmentKind:
    """Follow a segment without SYN. window: as sent, not shifted. length: octets of data."""
    if flags & RST:
        return _reset(tx, rx, seq, ack, flags)
    una = tx.snd_una
    if tx.state is not _ESTABLISHED or rx.state is not _ESTABLISHED:
        if not (tx.is_synchronized and rx.is_synchronized):
            return SegmentKind.NOT_OPEN
        if rx.state is State.SYN_RECEIVED and flags & ACK and not 0 < (ack - rx.snd_una) & _MASK < _HALF:
            return SegmentKind.OLD_ACK  # its SYN must be acknowledged first (3.10.7.4, fifth)
        una = _edge(tx)
    if not flags & ACK:
        return SegmentKind.NO_ACK

    # first, check the sequence number; as Linux does, what reaches what is acknowledged is in
    end = (seq + length + (flags & FIN)) & _MASK
    if (end - una) & _HALF:  # SEG.SEQ+SEG.LEN < RCV.NXT
        return _stale(tx, rx, seq, una, tsval)
    reach = rx.rcv_wnd if rx.wscale is not None else rx.reach
    ahead = (seq - una) & _MASK
    if (reach < ahead < _HALF and (ahead != reach + 1 or end != seq)) or (
        tx.fin is not None and seq_gt(end, tx.fin)
    ):  # a bare FIN needs no room, and an acknowledgement after it has the next number
        return SegmentKind.OUT_OF_WINDOW
    if tsval is not None and rx.ts_recent is not None and (tsval - rx.ts_recent) & _HALF:
        return SegmentKind.OLD_TIMESTAMP

    # fifth, check the ACK field
    if not tx.heard and (rx.snd_una - ack) & _MASK <= tx.reach:
        # The first segment seen of this end: its ACK is exact, while rx's numbers gave an estimate
        rx.snd_wl1, rx.snd_una, tx.rcv_nxt = seq, ack, ack
    if (refused := _acknowledge(tx, rx, seq, ack, window)) is not None:
        return refused
    tx.heard = True
    if tsval is not None:
        tx.tsval = tsval
        if (una - seq) & _MASK < _HALF:  # SEG.SEQ =< Last.ACK.sent
            rx.ts_recent = tsval

    # seventh, process the segment text; eighth, check the FIN bit
    return _ACK if end == seq else _deliver(tx, rx, seq, ack, flags, end, una, reach)


def _edge(tx: TcpEnd) -> int:
    """Return the start of the other end's window: after the SYN of this end, acknowledged or not."""
    una = tx.snd_una
    return (una + 1) & _MASK if una == tx.iss else una


def _acknowledge(tx: TcpEnd, rx: TcpEnd, seq: int, ack: int, window: int) -> SegmentKind | None:
    """Move SND.UNA and SND.WND of rx, if SND.UNA - MAX.SND.WND =< SEG.ACK =< SND.NXT (RFC 5961 5.2)."""
    news = (ack - rx.snd_una) & _MASK
    if news >= _HALF:  # an old acknowledgement: harmless
        limit = tx.reach if tx.wscale is None else rx.max_snd_wnd
        return SegmentKind.OLD_ACK if -news & _MASK > limit else None
    if 0 < (ack - rx.snd_nxt) & _MASK < _HALF:
        if rx.iss is not None or news > tx.reach:
            return SegmentKind.ACK_OF_UNSENT
        rx.snd_nxt = ack  # sent before the model joined
    if news or not (seq - rx.snd_wl1) & _HALF:  # SND.WL1 =< SEG.SEQ; as in Linux, any newer ACK will do
        tx.rcv_wnd = rx.snd_wnd = wnd = window << tx.wscale if tx.wscale else window
        if wnd > rx.max_snd_wnd:
            rx.max_snd_wnd = wnd
        rx.snd_wl1 = seq
    if news:
        rx.snd_una = ack
        if (ack - tx.rcv_nxt) & _MASK < _HALF:
            tx.rcv_nxt = ack
        if rx.state is not _ESTABLISHED:
            if rx.state is State.SYN_RECEIVED:
                rx.state = State.ESTABLISHED
            elif ack == rx.fin:
                rx.state = ON_FIN_ACKED.get(rx.state, rx.state)
                tx.state = ON_FIN.get(tx.state, tx.state)
    return None


def _deliver(
    tx: TcpEnd, rx: TcpEnd, seq: int, ack: int, flags: int, end: int, una: int, reach: int
) -> SegmentKind:
    """Advance SND.NXT of tx and RCV.NXT of rx, and change the states after a FIN.

    RCV.NXT moves by the octets that are next and fit the window of `reach` octets after una. A bare FIN needs
    no room: it may come one octet after the window.
    """
    fin = flags & FIN
    if 0 < (end - tx.snd_nxt) & _MASK < _HALF:
        tx.snd_nxt = end
    nxt = rx.rcv_nxt
    news = (end - nxt) & _MASK
    if 0 < (seq - nxt) & _MASK < _HALF:
        seen = SegmentKind.OUT_OF_ORDER
    elif news == 0 or news >= _HALF:
        seen = _RETRANSMISSION
    else:
        room = reach - ((nxt - una) & _MASK) + (1 if fin and (end - seq) & _MASK == 1 else 0)
        if room <= 0:
            seen = SegmentKind.PROBE
        else:
            rx.rcv_nxt = (nxt + min(news, room)) & _MASK
            seen = _DATA
    if fin and tx.fin is None and end == tx.snd_nxt:
        tx.fin = end
        crossed = tx.state is State.CLOSE_WAIT and rx.fin != ack  # it did not receive that FIN
        tx.state = State.CLOSING if crossed else ON_CLOSE.get(tx.state, tx.state)
    elif seen is _RETRANSMISSION and not fin and end == una and (end - seq) & _MASK == 1:
        seen = SegmentKind.KEEP_ALIVE  # with its octet of garbage (RFC 9293 section 3.8.4)
    if tx.fin is not None and rx.rcv_nxt == tx.fin:
        rx.state = ON_FIN.get(rx.state, rx.state)
    return seen


def _stale(tx: TcpEnd, rx: TcpEnd, seq: int, una: int, tsval: int | None) -> SegmentKind:
    """Judge a segment that ends before SND.UNA: rx drops it and answers with an ACK."""
    if (seq + 1) & _MASK == una:
        if tsval is not None and rx.ts_recent is not None and not (tsval - rx.ts_recent) & _HALF:
            # RFC 7323 section 4.3 (2); Linux does not, but a TS.Recent that keep-alives do not renew
            # refuses everything after 24 days
            tx.tsval = rx.ts_recent = tsval
        return SegmentKind.KEEP_ALIVE
    furthest = max(tx.max_snd_wnd, rx.reach) + 1  # after another whole window, and the FIN after it
    return SegmentKind.RETRANSMISSION if (una - seq) & _MASK <= furthest else SegmentKind.OUT_OF_WINDOW


def _reset(tx: TcpEnd, rx: TcpEnd, seq: int, ack: int, flags: int) -> SegmentKind:
    """Second, check the RST bit: SEG.SEQ must be exactly at the edge of the window (RFC 5961 section 3.2).

    That edge, the real RCV.NXT, is either the last acknowledgement of rx or the end of the data that passed
    here.
    """
    if rx.state is State.SYN_SENT:
        sure = (
            flags & ACK != 0
            and ack != rx.iss
            and (rx.snd_nxt - ack) & _MASK < _HALF > (ack - rx.snd_una) & _MASK
        )
        doubt = SegmentKind.ACK_OF_UNSENT
    elif not rx.is_synchronized:
        sure, doubt = tx.state is State.SYN_SENT and seq == tx.snd_nxt, SegmentKind.NOT_OPEN
    else:
        una = _edge(tx)
        sure = seq in (rx.rcv_nxt, una)
        inside = (seq - una) & _MASK <= rx.reach + 1  # after a bare FIN, which needs no room
        doubt = SegmentKind.UNSURE_RESET if inside else SegmentKind.OUT_OF_WINDOW
    if not sure:
        return doubt
    for end in (tx, rx):
        end.state, end.fin = State.CLOSED, None
    return SegmentKind.RESET


def arrive_syn(tx: TcpEnd, rx: TcpEnd, segment: TCP) -> SegmentKind:
    """Follow a segment with SYN."""
    seq, flags = segment.seq, segment.flags
    if flags & (RST | FIN):
        return SegmentKind.UNEXPECTED_SYN  # no valid segment has these flags
    again = seq == tx.iss and tx.state not in (State.CLOSED, State.LISTEN)
    if flags & ACK:
        return _answer(tx, rx, segment, again)
    if again:
        return SegmentKind.RETRANSMISSION
    if tx.is_synchronized or rx.is_synchronized:
        # RFC 9293 section 3.6.1: a new incarnation, if both ends have closed the old one
        through = (State.CLOSED, State.TIME_WAIT)
        if tx.state not in through or rx.state not in through or not seq_gt(seq, tx.snd_nxt):
            return SegmentKind.UNEXPECTED_SYN
    crossing = rx.state is State.SYN_SENT
    if tx.open(segment) is not None:
        rx.ts_recent = tx.tsval
    rx.rcv_nxt = (seq + 1) & _MASK
    rx.snd_wnd = rx.max_snd_wnd = tx.rcv_wnd
    rx.snd_wl1 = seq
    if crossing:  # each has sent its SYN, and the other's is under way (RFC 9293 figure 7)
        tx.rcv_nxt = rx.snd_nxt
        tx.snd_wnd = tx.max_snd_wnd = rx.rcv_wnd
        tx.snd_wl1 = rx.snd_una
        tx.ts_recent = rx.tsval if rx.timestamps else None
        agree(tx, rx)
        tx.state = rx.state = State.SYN_RECEIVED
    else:
        tx.state, rx.state = State.SYN_SENT, State.LISTEN
        rx.iss = rx.fin = None
    return SegmentKind.SYN


def _answer(tx: TcpEnd, rx: TcpEnd, segment: TCP, again: bool) -> SegmentKind:
    """Follow a SYN-ACK."""
    seq, ack = segment.seq, segment.ack
    if again:
        if rx.iss is None:
            return SegmentKind.NOT_OPEN  # it received no SYN to acknowledge
        if ack == rx.iss or (rx.snd_nxt - ack) & _MASK >= _HALF or (ack - rx.iss) & _MASK >= _HALF:
            return SegmentKind.ACK_OF_UNSENT
        if rx.state is State.SYN_RECEIVED and ack == rx.snd_nxt:
            rx.snd_una = tx.rcv_nxt = ack  # a simultaneous open: it acknowledges our SYN
            rx.state = State.ESTABLISHED
            return SegmentKind.SYN
        return SegmentKind.RETRANSMISSION
    if rx.state is not State.SYN_SENT:
        return SegmentKind.UNEXPECTED_SYN if rx.is_synchronized else SegmentKind.NOT_OPEN
    if ack == rx.iss or (rx.snd_nxt - ack) & _MASK >= _HALF or (ack - rx.snd_una) & _MASK >= _HALF:
        return SegmentKind.ACK_OF_UNSENT
    stamps = tx.open(segment)
    if rx.heard:
        agree(tx, rx)
    else:  # the SYN was not seen; the answer reveals its options, except shift and MSS
        if tx.wscale is None:
            tx.wscale = rx.wscale = 0
        rx.timestamps, rx.sack_permitted = tx.timestamps, tx.sack_permitted
    if stamps is not None:
        tx.ts_recent, rx.ts_recent = stamps[1], tx.tsval
    rx.snd_una = tx.rcv_nxt = ack
    rx.rcv_nxt = (seq + 1) & _MASK
    tx.snd_wnd = tx.max_snd_wnd = rx.rcv_wnd
    tx.snd_wl1 = (ack - 1) & _MASK
    rx.snd_wnd = rx.max_snd_wnd = tx.rcv_wnd
    rx.snd_wl1 = seq
    tx.state, rx.state = State.SYN_RECEIVED, State.ESTABLISHED
    return SegmentKind.SYN
