"""A packet or a connection in words, as an operator names it: out tcp 10.0.0.5:40000 1.2.3.4:443."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed, SpecError
from vtl_tools.common.firewall.explain import fields_of
from vtl_tools.common.firewall.fields import Fields
from vtl_tools.common.firewall.flow import Flow, flow_key
from vtl_tools.common.firewall.names import ICMP6_TYPES, ICMP_TYPES
from vtl_tools.common.firewall.rule import IN, OUT, UNTAGGED, Direction
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.address import format_ip, format_mac
from vtl_tools.common.packet.address import ip as parse_ip
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer

_FORM: Final = "write such as: out tcp 10.0.0.5:40000 1.2.3.4:443"
_NAMES: Final = {ip.TCP: "tcp", ip.UDP: "udp", ip.ICMP: "icmp", ip.ICMPV6: "icmp"}
_DIGITS_MAX: Final = 5


class Question(NamedTuple):
    """protocol: as fields_of() takes it. sport, dport: of an echo, its identifier; None if not said."""

    direction: Direction
    protocol: str
    src: bytes
    sport: int | None
    dst: bytes
    dport: int | None
    kind: int
    code: int
    vlan: int

    def fields(self) -> Fields:
        """Return what a policy asks of a first packet of this."""
        fields = fields_of(
            self.protocol, self.src, self.dst, self.sport or 0, self.dport or 0, self.kind, self.code
        )
        fields.vlan = self.vlan
        return fields

    def key(self) -> bytes:
        """Return the key of the connection whose first packet is meant."""
        ports = PORTS.pack(self.sport or 0, self.dport or 0)
        number = self.fields().protocol
        return flow_key(self.direction, number, self.src, self.dst, ports, self.vlan, self.direction)


def read(words: Sequence[str]) -> Question:
    """Take DIRECTION PROTOCOL SOURCE DESTINATION [type NAME] [code N] [vlan N]. Raises SpecError."""
    parts = " ".join(words).split()
    more = dict(zip(parts[4::2], parts[5::2], strict=False))
    if not 4 <= len(parts) <= 4 + 2 * 3 or len(parts) % 2 or set(more) - {"type", "code", "vlan"}:
        raise SpecError(f"{' '.join(parts)[:80]!r}: not a packet; {_FORM}")
    if parts[0] not in ("in", "out"):
        raise SpecError(f"{parts[0][:40]!r}: not a direction as the VM sees it; write in or out")
    direction = OUT if parts[0] == "out" else IN
    protocol = parts[1]
    (src, sport), (dst, dport) = _end(parts[2]), _end(parts[3])
    if protocol in ("tcp", "udp") and dport is None:
        raise SpecError(f"{parts[3]}: {protocol} needs a port; {_FORM}")
    names = ICMP6_TYPES if len(dst) == 16 else ICMP_TYPES
    kind = names.get(more.get("type", "echo-request"))
    made = Question(
        direction, protocol, src, sport, dst, dport,
        _number("type", more.get("type", ""), 255) if kind is None else kind,
        _number("code", more.get("code", "0"), 255),
        _number("vlan", more["vlan"], 4095) if "vlan" in more else UNTAGGED,
    )  # fmt: skip
    try:
        made.fields()
    except ValueError as e:
        raise SpecError(f"{e}; {_FORM}") from None
    return made


def name(flow: Flow) -> str:
    """Return a connection's name, which read() takes."""
    (here, there), (near, far) = flow.addresses, flow.ports
    number = flow.protocol
    ends = [_text(here, near, number), _text(there, far, number)]
    if flow.initiator is IN:
        ends.reverse()
    vlan = "" if flow.opening.vlan == UNTAGGED else f" vlan {flow.opening.vlan}"
    return f"{flow.initiator.value} {_NAMES.get(number, number)} {ends[0]} {ends[1]}{vlan}"


def _text(octets: bytes, port: int, protocol: int) -> str:
    text = format_ip(octets)
    if protocol not in _NAMES:
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
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MAX and int(text) <= most):
        raise SpecError(f"{text[:40]!r}: not a {what}; write a number up to {most}")
    return int(text)


def describe(frame: Buffer) -> dict[str, object]:
    """Return what a packet is, for a line of a log. Nothing is raised for foreign octets."""
    told: dict[str, object] = {}
    try:
        pkt = Packet.at(frame)
        told |= {"src_mac": format_mac(pkt.eth.src), "dst_mac": format_mac(pkt.eth.dst)}
        told["ethertype"] = f"{pkt.ethertype:#06x}"
        if (net := pkt.ip) is not None:
            told |= {"src": format_ip(net.src), "dst": format_ip(net.dst)}
            told["protocol"] = _NAMES.get(net.protocol, net.protocol)
        inner = pkt.transport
        if isinstance(inner, TCP | UDP):
            told |= {"sport": inner.sport, "dport": inner.dport}
        elif inner is not None:
            told |= {"type": inner.type, "code": inner.code}
    except Malformed:
        pass  # so far it could be read
    return told
