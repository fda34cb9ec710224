"""Parses an operator's description of a packet or connection: out tcp 10.0.0.5:40000 1.2.3.4:443."""

from collections.abc import Sequence
from string import hexdigits
from typing import Final, NamedTuple

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import ether, ip, nd
from vtl_tools.common.packet.address import format_ip, mac
from vtl_tools.common.packet.address import ip as parse_ip
from vtl_tools.common.packet.packet import PORTS
from vtl_tools.common.rules.clauses import ICMP6
from vtl_tools.common.rules.keywords import ICMP6_TYPES, ICMP_TYPES
from vtl_tools.common.rules.rule import IN, OUT, UNTAGGED, Direction
from vtl_tools.services.fw.explain import fields_of
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.flow import Flow, flow_key
from vtl_tools.services.fw.neighbours import is_of_link

_FORM: Final = "write such as: out tcp 10.0.0.5:40000 1.2.3.4:443"
NAMES: Final = {ip.TCP: "tcp", ip.UDP: "udp", ip.ICMP: "icmp", ip.ICMPV6: "icmp"}
_DIGITS_MAX: Final = 5
_WORDS_MAX: Final = 4 + 3 * 2 + 2 * 3


class PacketQuery(NamedTuple):
    """protocol: as for fields_of(), or "" if not IP. src, dst: then empty.

    sport, dport: of an echo, its identifier; None if not given. ethertype: of a packet that is not IP.
    """

    direction: Direction
    protocol: str
    src: bytes
    sport: int | None
    dst: bytes
    dport: int | None
    kind: int
    code: int
    vlan: int
    src_mac: bytes
    dst_mac: bytes
    ethertype: int = 0

    def fields(self) -> Fields:
        """Return the fields of the first packet of such a connection."""
        if self.protocol:
            fields = fields_of(
                self.protocol, self.src, self.dst, self.sport or 0, self.dport or 0, self.kind, self.code
            )
            fields.is_neighbour = fields.icmp >= ICMP6 and self.kind in nd.MESSAGES and self.code == 0
            if self.direction is OUT and (self.kind == nd.ROUTER_ADVERT or not is_of_link(self.dst)):
                fields.is_neighbour = False
        else:
            fields = Fields(self.ethertype, is_neighbour=self.ethertype == ether.ARP)
        fields.vlan, fields.src_mac, fields.dst_mac = self.vlan, self.src_mac, self.dst_mac
        return fields

    def key(self) -> bytes:
        """Return the key of the connection whose first packet is described; b"" if it belongs to none."""
        if not self.protocol:
            return b""
        ports = PORTS.pack(self.sport or 0, self.dport or 0)
        number = self.fields().protocol
        return flow_key(self.direction, number, self.src, self.dst, ports, self.vlan, self.direction)


def read(words: Sequence[str]) -> PacketQuery:
    """Parse the description of a packet. Raises SpecError.

    DIRECTION PROTOCOL SOURCE DESTINATION, or DIRECTION arp, or DIRECTION ethertype N; then, as needed,
    type NAME, code N, vlan N, from mac MAC, to mac MAC.
    """
    parts = " ".join(words).split()
    if not 2 <= len(parts) <= _WORDS_MAX:
        raise SpecError(f"{' '.join(parts)[:80]!r}: not a packet; {_FORM}")
    if parts[0] not in ("in", "out"):
        raise SpecError(f"{parts[0][:40]!r}: not a direction as the VM sees it; write in or out")
    direction = OUT if parts[0] == "out" else IN
    if parts[1] in ("arp", "ethertype"):
        used = 2 if parts[1] == "arp" else 3
        more = _more(parts[used:])
        kind = ether.ARP if used == 2 else _number("type of a frame", "".join(parts[2:3]), 0xFFFF)
        if kind in (ether.IPV4, ether.IPV6) or {"type", "code"} & set(more):
            raise SpecError(f"{' '.join(parts)[:80]!r}: of IP, write the protocol and addresses; {_FORM}")
        return PacketQuery(direction, "", b"", None, b"", None, 0, 0, *_ethernet(more), kind)
    if len(parts) < 4:
        raise SpecError(f"{' '.join(parts)[:80]!r}: not a packet; {_FORM}")
    return _of_ip(direction, parts[1], parts[2:4], _more(parts[4:]))


def _of_ip(direction: Direction, protocol: str, ends: list[str], more: dict[str, str]) -> PacketQuery:
    (src, sport), (dst, dport) = map(_end, ends)
    if protocol in ("tcp", "udp") and dport is None:
        raise SpecError(f"{ends[1]}: {protocol} needs a port; {_FORM}")
    names = ICMP6_TYPES if len(dst) == 16 else ICMP_TYPES
    kind = names.get(more.get("type", "echo-request"))
    made = PacketQuery(
        direction, protocol, src, sport, dst, dport,
        _number("type", more.get("type", ""), 255) if kind is None else kind,
        _number("code", more.get("code", "0"), 255), *_ethernet(more),
    )  # fmt: skip
    try:
        made.fields()
    except ValueError as e:
        raise SpecError(f"{e}; {_FORM}") from None
    return made


def _more(parts: list[str]) -> dict[str, str]:
    """Return the values after the addresses, by keyword."""
    found: dict[str, str] = {}
    rest = list(parts)
    while rest:
        word = rest.pop(0)
        if word in ("from", "to") and rest[:1] == ["mac"]:
            rest.pop(0)
        elif word not in ("type", "code", "vlan"):
            raise SpecError(
                f"{word[:40]!r}: not a part of a packet: write type, code, vlan, from mac or to mac"
            )
        if word in found or not rest:
            raise SpecError(f"{word}: needs a value, and may occur once; {_FORM}")
        found[word] = rest.pop(0)
    return found


def _ethernet(more: dict[str, str]) -> tuple[int, bytes, bytes]:
    """Return the VLAN and the Ethernet addresses."""
    macs = []
    for word in "from", "to":
        try:
            macs.append(mac(more[word]) if word in more else bytes(6))
        except ValueError as e:
            raise SpecError(str(e)) from None
    return _number("vlan", more["vlan"], 4095) if "vlan" in more else UNTAGGED, macs[0], macs[1]


def name(flow: Flow) -> str:
    """Return the description of a connection, in the form that read() parses."""
    (here, there), (near, far) = flow.addresses, flow.ports
    number = flow.protocol
    ends = [_text(here, near, number), _text(there, far, number)]
    if flow.initiator is IN:
        ends.reverse()
    vlan = "" if flow.opening.vlan == UNTAGGED else f" vlan {flow.opening.vlan}"
    return f"{flow.initiator.value} {NAMES.get(number, number)} {ends[0]} {ends[1]}{vlan}"


def _text(octets: bytes, port: int, protocol: int) -> str:
    text = format_ip(octets)
    if protocol not in NAMES:
        return text
    return f"{text}:{port}" if len(octets) == 4 else f"[{text}]:{port}"


def _end(text: str) -> tuple[bytes, int | None]:
    address, port = text, ""
    if text.startswith("["):
        address, _, port = text[1:].partition("]")
        if port[:1] not in ("", ":"):
            raise SpecError(f"{text!r}: not an address; {_FORM}")
        port = port[1:]
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        return parse_ip(address), _number("port", port, 0xFFFF) if port else None
    except ValueError:
        raise SpecError(f"{text[:80]!r}: not an address; write 10.0.0.5:443 or [2001:db8::5]:443") from None


def _number(what: str, text: str, most: int) -> int:
    if text[:2] == "0x" and 2 < len(text) <= 2 + 4 and set(text[2:]) <= set(hexdigits):
        text = str(int(text, 16))
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and int(text) <= most):
        raise SpecError(f"{text[:40]!r}: not a {what}; write a number up to {most}")
    return int(text)
