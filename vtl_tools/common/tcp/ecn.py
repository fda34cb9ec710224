"""Explicit congestion notification: classic (RFC 3168) or accurate (RFC 9768), as the SYNs agree on.

A connection without it has `ecn` False, and costs one test of that. The counters of the accurate mode are in
accurate.py.
"""

from typing import Final

from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.quick import KIND, L3
from vtl_tools.common.packet.tcp import ACK, AE, CWR, ECE, OPTIONS_MAX, SYN
from vtl_tools.common.tcp.accurate import (
    ACE_SHIFT,
    CE,
    NOT_ECT,
    ORDER_0,
    ORDER_1,
    REFLECTED,
    AccurateECN,
)
from vtl_tools.common.tcp.tcb import TCB
from vtl_tools.common.tcp.wire import Segment, options_of

_BLOCKS_FIRST: Final = 2
"""SACK blocks that go before the option (RFC 9768 section 3.2.3.3)."""
_CLASSIC: Final = 0b011  # ACE of a SYN that asks for it
_CLASSIC_ANSWER: Final = 0b001
_OFF_ANSWERS: Final = (0b000, 0b111)  # the second is a server that mirrors flags
_RESERVED_ANSWER: Final = 0b101
_NO_OPTION: Final[tuple[int, bytes]] = (0, b"")


def codepoint(segment: Segment) -> int:
    """Return the ECN field of the IP header that a segment came with; NOT_ECT without a frame."""
    frame = segment.frame
    if frame is None:
        return NOT_ECT
    kind = frame[KIND] << 8 | frame[KIND + 1]
    if kind == 0x0800:
        return frame[L3 + 1] & 3
    if kind == 0x86DD:
        return frame[L3 + 1] >> 4 & 3
    net = Packet.at(frame).ip
    return NOT_ECT if net is None else net.ecn


def _ace(segment: Segment) -> int:
    """Return the flags AE, CWR and ECE as a number."""
    frame = segment.frame
    ae = 0 if frame is None else frame[segment.at + 12] & 1
    return ae << 2 | segment.flags >> ACE_SHIFT & 3


def _option(segment: Segment) -> tuple[int, bytes]:
    """Return the kind of the AccECN option and what it holds; 0 without one. Its length may be any."""
    frame = segment.frame
    if frame is None:
        return _NO_OPTION
    for kind, at, size in options_of(segment, frame):
        if kind in (ORDER_0, ORDER_1):
            return kind, bytes(frame[at + 2 : at + min(size, 11)])
    return _NO_OPTION


def _packets(segment: Segment) -> int:
    """Return of how many packets the link has made a segment."""
    frame = segment.frame
    if frame is None or not frame[1]:
        return 1
    size = frame[4] | frame[5] << 8  # virtio_net_hdr.gso_size
    return max(1, -(-segment.length // size)) if size else 1


# --- the handshake


def offer(tcb: TCB) -> int:
    """Return the flags by which our SYN asks for ECN; none if a SYN was lost, maybe for them.

    The accurate mode is asked for twice (RFC 9768 section 3.1.4.1).
    """
    if tcb.config.ecn == "accurate":
        return AE | CWR | ECE if tcb.snd.retransmits <= 1 else 0
    return ECE | CWR if tcb.config.ecn == "classic" and not tcb.snd.retransmits else 0


def agree(tcb: TCB, syn: Segment) -> None:
    """Enter the mode that the SYNs agree on (RFC 9768 section 3.1, table 2)."""
    tcb.ecn, tcb.accurate, tcb.ect = False, None, False
    config = tcb.config.ecn
    ace = _ace(syn)
    if not ace or config == "off":
        return
    if syn.flags & ACK:
        is_classic = ace == _CLASSIC_ANSWER if config == "accurate" else ace & 3 == _CLASSIC_ANSWER
        is_accurate = config == "accurate" and not is_classic and ace not in _OFF_ANSWERS
        is_offered = config != "accept"
    else:
        is_classic = ace == _CLASSIC or (config == "classic" and ace & 3 == _CLASSIC)
        is_accurate = not is_classic and config != "classic"
        is_offered = tcb.passive or config != "accept"
    if not is_offered or not (is_classic or is_accurate):
        return
    tcb.ecn, tcb.ect = True, tcb.passive or offer(tcb) != 0  # no SYN of ours had no flags (RFC 3168 6.1.1)
    if is_accurate:
        _enter(tcb, syn, ace)


def _enter(tcb: TCB, syn: Segment, ace: int) -> None:
    """Enter the accurate mode, and judge what a SYN-ACK tells of our SYN, which was not ECN-capable."""
    has_ack = bool(syn.flags & ACK)
    accurate = tcb.accurate = AccurateECN(codepoint(syn), is_server=not has_ack)
    if not has_ack:
        return
    accurate.syn_ack_arrived(codepoint(syn))
    _limit(tcb, accurate)
    tcb.ect = ace in (REFLECTED[NOT_ECT], _RESERVED_ANSWER)  # section 3.2.2.3
    if ace == REFLECTED[CE]:
        _slow_down(tcb)
    kind, option = _option(syn)
    if kind:
        accurate.check_option(option)


def _slow_down(tcb: TCB) -> None:
    """Take a mark on our SYN or SYN-ACK as one on a window of data."""
    cc = tcb.snd.cc
    cc.repaired(tcb.heard_at, cc.cwnd)


def answer(tcb: TCB, options: bytes) -> tuple[int, bytes]:
    """Return the flags of a SYN-ACK, and its options.

    It is sent again without the option, and then without flags (RFC 9768 section 3.2.3.2.2).
    """
    accurate = tcb.accurate
    if accurate is None:
        return ECE, options
    again = tcb.snd.retransmits
    if again > 1:
        tcb.ect = False  # section 3.1.5
        return 0, options
    if not again:
        options += accurate.first_option(OPTIONS_MAX - len(options))
    return REFLECTED[accurate.answered] << ACE_SHIFT, options


def syn_again(tcb: TCB, syn: Segment) -> bool:
    """Process another SYN of the same handshake. Return whether it contradicts the first: it is reset."""
    if not tcb.ecn:
        return False
    ace, accurate = _ace(syn), tcb.accurate
    if not ace:
        tcb.ect = False
    if accurate is None:
        return tcb.config.ecn != "classic" and ace not in (0, _CLASSIC)
    if ace == _CLASSIC:
        return True
    accurate.answered = codepoint(syn)
    return False


def syn_ack_again(tcb: TCB, segment: Segment) -> None:
    """Have the acknowledgement of another SYN-ACK tell how that arrived (RFC 9768 section 3.2.2.1)."""
    accurate = tcb.accurate
    if accurate is not None and not accurate.is_server:
        accurate.syn_ack_arrived(codepoint(segment))
        _limit(tcb, accurate)


def established(tcb: TCB, segment: Segment, ack: int, *, of_syn: bool) -> None:
    """Process the first acknowledgement of our SYN-ACK (RFC 9768 section 3.2.2.1, table 4).

    of_syn: it tells of nothing else; if it does, heed() and told() follow.
    """
    accurate = tcb.accurate
    if of_syn:
        heed(tcb, segment)
    if accurate is None:
        return
    kind, option = _option(segment)
    if kind:
        accurate.check_option(option)
    if segment.length or segment.sack is not None:
        return
    ace = _ace(segment)
    accurate.is_read = ack > 1
    if accurate.third_ack(ace):
        _slow_down(tcb)
    if not ace or (ace in REFLECTED and ace != REFLECTED[NOT_ECT]):
        tcb.ect = False  # the peer is not in this mode, or our SYN-ACK was mangled (section 3.2.2.3)


# --- the receiver of data


def heed(tcb: TCB, segment: Segment) -> None:
    """Process the codepoint of an acceptable segment.

    Classic: a mark is echoed until the peer has reduced its window (RFC 3168 section 6.1.3).
    """
    accurate = tcb.accurate
    if accurate is None:
        if segment.flags & CWR:
            tcb.echo_due = False
        if segment.length and codepoint(segment) == CE:
            tcb.echo_due = tcb.ack_now = True
        return
    length = segment.length
    unacked = length > 0 or tcb.rcv.nxt > tcb.last_ack or tcb.rcv.has_gap
    if accurate.arrived(codepoint(segment), _packets(segment), length, unacked=unacked):
        tcb.ack_now = True
    _limit(tcb, accurate)


def _limit(tcb: TCB, accurate: AccurateECN) -> None:
    """Send no super-segment while ACE has the bit of CWR: links keep it in the first segment (3.3.4)."""
    tcb.snd.single = accurate.cep & 2 != 0


def is_unusual(tcb: TCB, segment: Segment) -> bool:
    """Return whether a segment of a connection with ECN tells of congestion, or may."""
    return tcb.accurate is not None or segment.flags & (ECE | CWR) != 0 or codepoint(segment) == CE


def is_alone(tcb: TCB) -> bool:
    """Return whether the next acknowledgement is to be sent without data.

    It reflects a SYN-ACK, or has an option, for which full segments have no room.
    """
    accurate = tcb.accurate
    if accurate is None:
        return False
    return accurate.reflects >= 0 or (accurate.is_due and tcb.snd.unsent >= tcb.snd.mss)


def feed_back(
    tcb: TCB, flags: int, options: bytes, blocks: list[tuple[int, int]] | None, length: int
) -> tuple[int, bytes, list[tuple[int, int]] | None]:
    """Return flags, options and SACK blocks of a segment with what the peer is to learn. length: of data."""
    accurate = tcb.accurate
    if accurate is None:
        return (flags | ECE if tcb.echo_due else flags), options, blocks
    reflects = accurate.reflects >= 0
    flags |= accurate.ace(pure=flags == ACK and not length and not blocks) << ACE_SHIFT
    if not (accurate.is_due or reflects):
        return flags, options, blocks
    room = OPTIONS_MAX - len(options)
    if length:
        room = min(room, tcb.snd.mss - length)
    least = 4 + 8 * min(_BLOCKS_FIRST, len(blocks)) if blocks else 0
    option = accurate.first_option(room - least) if reflects else accurate.option(room - least)
    if option and blocks:
        blocks = blocks[: (room - len(option) - 4) // 8]
    return flags, options + option, blocks


# --- the sender of data


def told(tcb: TCB, segment: Segment, octets: int) -> bool:
    """Process the feedback of an acknowledgement. Return whether data was marked.

    octets: newly acknowledged, SACKed included. Feedback that is not new by that or by its timestamp may be
    overtaken, and does not count (RFC 9768 appendix A.1). Nor does that of a peer to whom nothing was sent.
    """
    accurate = tcb.accurate
    if accurate is None:
        return segment.flags & ECE != 0
    if accurate.is_read:
        accurate.is_read = False
        return False
    stamps = segment.stamps
    newer = tcb.timestamps and stamps is not None and stamps[0] != tcb.ts_recent
    if (octets <= 0 and not newer) or tcb.snd.max <= 1 or segment.flags & SYN:
        return False
    kind, option = _option(segment)
    more = accurate.told(_ace(segment), kind, option, octets, tcb.snd.mss)
    if accurate.mangled or not accurate.heeds:
        tcb.ect = False
    return more > 0
