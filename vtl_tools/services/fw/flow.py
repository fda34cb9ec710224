"""A flow: one connection in the table. Compact, as there may be 100,000 of them."""

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.common.rules.rule import OUT, UNTAGGED, Direction, Rule, Verdict

if TYPE_CHECKING:
    from vtl_tools.common.model.source_shares import SourceShare

Ends = tuple[TcpEnd, TcpEnd]
"""The VM's end of a TCP connection, and the other."""

BEGUN, ANSWERED, ASSURED = range(3)
"""Use of a flow: the first packet; the other side has answered; both sides are known to receive."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds of silence after which a connection ends.

    TCP: opening and closing are transitory (RFC 5382 REQ-5: 4 minutes at least), established is for
    2 hours and 4 minutes (the same), closed for late segments. UDP (RFC 4787 REQ-5: 2 minutes at least), echo
    (RFC 5508 REQ-2: 60 seconds), other protocols. assured: once both sides have used it.
    """

    opening: float = 240.0
    established: float = 7440.0
    closing: float = 240.0
    closed: float = 10.0
    udp: float = 120.0
    udp_assured: float = 300.0
    echo: float = 60.0
    other: float = 600.0


class Opening(NamedTuple):
    """Properties of a connection's first packet: direction, Ethernet addresses, and VLAN as in Fields."""

    initiator: Direction
    src_mac: bytes
    dst_mac: bytes
    vlan: int


_STATES: Final = tuple(State)
_NUMBER: Final = {state: number for number, state in enumerate(_STATES)}
_END: Final = struct.Struct("=BBB10I")
_HEARD, _ISS, _FIN, _STAMPS, _RECENT = 1, 2, 4, 8, 16
_NO_SCALE: Final = 255
_SIX: Final = 2 * 16 + 4 + 1
"""Minimum octets of a key with IPv6 addresses; one with IPv4 addresses is much shorter."""
_NAMES: Final = {ip.TCP: "tcp", ip.UDP: "udp", ip.ICMP: "icmp", ip.ICMPV6: "icmp6"}


class Decision(NamedTuple):
    """The decision on a packet, and its reason.

    verdict: None for a fragment that waits for the others. rule: the rule that decided; None if no rule was
    asked. why: one word, the name of a counter. frames: for reassembled fragments, all frames of the packet,
    to be sent or dropped instead of this one. whole: the reassembled packet, for inspection and for refusals.
    """

    verdict: Verdict | None
    rule: Rule | None
    why: str
    frames: tuple[bytes, ...] = ()
    whole: bytearray | None = None


class Flow:
    """A connection: TCP, UDP, an echo, or any other protocol between two addresses.

    key: as flow_key() returns it. decision: for each packet of the flow. opening: shared by many flows.
    until: when the flow ends without further packets; seconds. use: BEGUN, ANSWERED or ASSURED. ends: of TCP
    only; packed while it is quiet.
    """

    __slots__ = (
        "before", "behind", "bucket", "decision", "ends", "key", "opening", "share", "until", "use",
    )  # fmt: skip

    def __init__(self, key: bytes, decision: Decision, opening: Opening, ends: Ends | None) -> None:
        self.key = key
        self.decision = decision
        self.opening = opening
        self.ends: Ends | bytes | None = ends
        self.until = 0.0
        self.bucket = 0
        self.use = BEGUN
        self.share: SourceShare[Flow] | None = None
        self.before: Flow | None = None
        self.behind: Flow | None = None

    @property
    def initiator(self) -> Direction:
        """The direction of the first packet."""
        return self.opening.initiator

    @property
    def addresses(self) -> tuple[bytes, bytes]:
        """The VM's address, and the other end's."""
        size = _address_octets(self.key)
        return self.key[:size], self.key[size : 2 * size]

    @property
    def ports(self) -> tuple[int, int]:
        """The VM's port, and the other end's; an echo's identifier twice; 0 for other protocols."""
        at = 2 * _address_octets(self.key)
        return int.from_bytes(self.key[at : at + 2], "big"), int.from_bytes(self.key[at + 2 : at + 4], "big")

    @property
    def protocol(self) -> int:
        """The IP protocol number."""
        return protocol_of(self.key)

    @property
    def source(self) -> bytes:
        """The address that opened the connection; of IPv6 the first 64 bits, as one host owns all of them."""
        key, is_here = self.key, self.opening.initiator is OUT
        if len(key) < _SIX:
            return key[:4] if is_here else key[4:8]
        return key[:8] if is_here else key[16:24]

    @property
    def states(self) -> tuple[State, State] | None:
        """The state of the VM's end and of the other end of a TCP connection."""
        if self.ends is None:
            return None
        local, remote = unpack(self.ends) if isinstance(self.ends, bytes) else self.ends
        return local.state, remote.state

    def __str__(self) -> str:
        (here, there), (sport, dport) = self.addresses, self.ports
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        local, remote = f"{format_ip(here)} {sport}", f"{format_ip(there)} {dport}"
        ends = (local, remote) if self.initiator is OUT else (remote, local)
        vlan = "" if self.opening.vlan == UNTAGGED else f" vlan {self.opening.vlan}"
        return f"{self.initiator.value} {name} {ends[0]} to {ends[1]}{vlan}"


def flow_key(
    direction: Direction, protocol: int, src: bytes, dst: bytes, ports: bytes, vlan: int, initiator: Direction
) -> bytes:
    """Return a key that is the same for a packet and its answer, the VM's side first.

    ports: source and destination, 4 octets. Echoes from both sides with the same identifier are two flows, so
    the key of an echo, and no other, includes the initiator.
    """
    if direction is OUT:
        key = src + dst + ports + bytes((protocol,))
    else:
        key = dst + src + ports[2:] + ports[:2] + bytes((protocol,))
    if protocol in (ip.ICMP, ip.ICMPV6):
        key += b"o" if initiator is OUT else b"i"
    return key if vlan == UNTAGGED else key + vlan.to_bytes(2, "big")


def protocol_of(key: bytes) -> int:
    """Return the IP protocol number of a key."""
    return key[2 * _address_octets(key) + 4]


def _address_octets(key: bytes) -> int:
    return 4 if len(key) < _SIX else 16


def pack(ends: Ends) -> bytes:
    """Return the variables of both ends that judging needs, in an eighth of the memory.

    Ports are in the key.
    """
    return _pack(ends[0]) + _pack(ends[1])


def _pack(end: TcpEnd) -> bytes:
    flags = (
        end.heard * _HEARD
        | (end.iss is not None) * _ISS
        | (end.fin is not None) * _FIN
        | end.timestamps * _STAMPS
        | (end.ts_recent is not None) * _RECENT
    )
    return _END.pack(
        _NUMBER[end.state], flags, _NO_SCALE if end.wscale is None else end.wscale,
        end.snd_nxt, end.snd_una, end.snd_wl1, end.max_snd_wnd, end.rcv_nxt, end.rcv_wnd,
        end.iss or 0, end.fin or 0, end.tsval, end.ts_recent or 0,
    )  # fmt: skip


def unpack(packed: bytes) -> Ends:
    """Return both ends, restored from the result of pack()."""
    local, remote = (_unpack(*fields) for fields in _END.iter_unpack(packed))
    local.snd_wnd, remote.snd_wnd = remote.rcv_wnd, local.rcv_wnd  # one end's offer is the other's window
    return local, remote


def _unpack(state: int, flags: int, scale: int, *numbers: int) -> TcpEnd:
    end = TcpEnd(0, state=_STATES[state], timestamps=flags & _STAMPS != 0)
    (
        end.snd_nxt, end.snd_una, end.snd_wl1, end.max_snd_wnd, end.rcv_nxt, end.rcv_wnd,
        iss, fin, end.tsval, recent,
    ) = numbers  # fmt: skip
    end.heard = flags & _HEARD != 0
    end.wscale = None if scale == _NO_SCALE else scale
    end.iss = iss if flags & _ISS else None
    end.fin = fin if flags & _FIN else None
    end.ts_recent = recent if flags & _RECENT else None
    return end
