"""Answers of the backend as the volunteer's own stack sends them: TTL, identification, options, windows.

It also hides the backend's sequence numbers. Each flow has an offset that only the client knows, so that who
acknowledges a SYN-ACK has received it: no backend can tell the number to somebody who forges a source.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.packet import tcp
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.seq import seq_add
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.services.vortex.flows import WormholeFlow

GUESSES_MAX: Final = 64
"""Wrong acknowledgements after which a flow proves nothing any more."""
_HEADERS: Final = {4: 40, 16: 60}
"""Octets of IP and TCP header, by the size of an address."""
_TIMESTAMPS: Final = 12
"""Octets of a timestamps option with its padding."""
_WINDOW_MAX: Final = 0xFFFF
_SYN_ACK: Final = tcp.SYN | tcp.ACK


@dataclass(slots=True)
class StackTraits:
    """The traits of the volunteer's stack that others can see. The defaults are those of Linux.

    window_scale: its shift; None: it offers none. space: octets of a receive buffer that the first window
    tells. mtu: of the interface.
    """

    ttl4: int = 64
    ttl6: int = 64
    mtu: int = 1500
    window_scale: int | None = 7
    timestamps: bool = True
    sack: bool = True
    ecn: bool = True
    space: int = 65536

    def initial_window(self, mss: int, *, timestamps: bool) -> int:
        """Return the window of a SYN-ACK: whole segments, as tcp_select_initial_window() of Linux has it."""
        data = max(1, mss - (_TIMESTAMPS if timestamps else 0))
        space = self.space // data * data if self.space > data else self.space
        return min(space, _WINDOW_MAX)


class Disguise:
    """Rewrites the packets of flows in both directions. draw: returns a random number of 32 bits."""

    def __init__(self, traits: StackTraits, draw: Callable[[], int]) -> None:
        self.traits, self._draw = traits, draw

    # --- inward

    def undo(self, segment: TCP, flow: WormholeFlow) -> bool:
        """Let the backend see its own numbers, and no option that the volunteer's stack would not take.

        Return whether the segment proves that its source receives what is sent to it.
        """
        if segment.flags & _SYN_ACK == tcp.SYN:
            self._limit_offer(segment)
        is_proof = False
        if segment.flags & tcp.ACK and not flow.is_open:
            if segment.ack != flow.expected_ack or flow.guesses >= GUESSES_MAX:
                flow.guesses += flow.expected_ack >= 0  # the backend must not see by how much it is wrong
                return False
            is_proof = flow.is_open = not segment.flags & tcp.RST
        if flow.offset and segment.flags & tcp.ACK:
            segment.ack = seq_add(segment.ack, -flow.offset)
            blocks = segment.sack
            if blocks and segment.find_option(tcp.SACK, 2 + 8 * len(blocks)):
                segment.sack = [
                    (seq_add(left, -flow.offset), seq_add(right, -flow.offset)) for left, right in blocks
                ]
        return is_proof

    def _limit_offer(self, segment: TCP) -> None:
        traits = self.traits
        for is_taken, kind in (
            (traits.window_scale is not None, tcp.WINDOW_SCALE),
            (traits.timestamps, tcp.TIMESTAMPS),
            (traits.sack, tcp.SACK_PERMITTED),
        ):
            if not is_taken:
                segment.erase_option(kind)
        segment.ae = 0  # the answer to an offer of RFC 9768 tells which kernel gives it
        if not traits.ecn:
            segment.flags &= ~(tcp.ECE | tcp.CWR)

    # --- outward

    def put_on(self, pkt: Packet, net: IPv4 | IPv6, flow: WormholeFlow) -> None:
        """Let a packet be one that the volunteer's stack sends, but for its source address."""
        segment = pkt.tcp
        if isinstance(net, IPv4):
            net.ttl = self.traits.ttl4
            if segment is not None and segment.flags & (tcp.SYN | tcp.RST):
                net.identification = 0  # as Linux sends a SYN-ACK, and a RST of no connection
                net.dont_fragment = 1
        else:
            net.hop_limit = self.traits.ttl6
        if segment is None:
            return
        if segment.flags & _SYN_ACK == _SYN_ACK:
            self._offer(segment, len(net.src), flow)
        elif flow.scale is not None:
            theirs, ours = flow.scale
            segment.window = min(segment.window << theirs >> ours, _WINDOW_MAX)
        self._shift(segment, flow)

    def _shift(self, segment: TCP, flow: WormholeFlow) -> None:
        """Hide the backend's number, but in a RST that repeats a number of the attacker's, or has none."""
        if segment.flags & tcp.RST and (not flow.is_open or not segment.seq):
            return
        segment.seq = seq_add(segment.seq, flow.offset)

    def _offer(self, segment: TCP, version: int, flow: WormholeFlow) -> None:
        """Replace the options of a SYN-ACK, and its window, by those of the volunteer's stack."""
        flow.offset = flow.offset or self._draw()
        flow.expected_ack = seq_add(segment.seq, flow.offset + 1)
        traits = self.traits
        mss, shift, sack, stamps = segment.offered()
        own = max(1, traits.mtu - _HEADERS[version])
        segment.window = traits.initial_window(own, timestamps=stamps is not None)
        ours = shift if traits.window_scale is None else traits.window_scale
        flow.scale = None if shift is None or ours is None else (min(shift, 14), ours)
        options = _options(None if mss is None else own, sack, stamps, None if shift is None else ours)
        if len(options) == segment.header_length - TCP.SIZE:
            segment.write(TCP.SIZE, options)
            return
        if mss is not None:
            segment.mss = own
        if shift is not None and ours is not None:
            segment.window_scale = ours


def _options(mss: int | None, sack: bool, stamps: tuple[int, int] | None, shift: int | None) -> bytes:
    """Return the options of a SYN-ACK as tcp_options_write() of Linux places them."""
    out = b"" if mss is None else struct.pack("!BBH", tcp.MSS, 4, mss)
    if stamps is not None:
        out += bytes((tcp.SACK_PERMITTED, 2) if sack else (tcp.NOP, tcp.NOP))
        out += struct.pack("!BBII", tcp.TIMESTAMPS, 10, *stamps)
    elif sack:
        out += bytes((tcp.NOP, tcp.NOP, tcp.SACK_PERMITTED, 2))
    return out if shift is None else out + bytes((tcp.NOP, tcp.WINDOW_SCALE, 3, shift))
