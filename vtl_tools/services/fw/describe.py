"""Describes a packet for logs."""

from collections.abc import Mapping

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.address import format_ip, format_mac
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.services.fw.question import NAMES


def describe(frame: Buffer) -> dict[str, object]:
    """Return the fields of a packet for a log entry. Raises nothing, whatever the octets."""
    told: dict[str, object] = {}
    try:
        pkt = Packet.at(frame)
        told |= {"src_mac": format_mac(pkt.eth.src), "dst_mac": format_mac(pkt.eth.dst)}
        told["ethertype"] = f"{pkt.ethertype:#06x}"
        if pkt.vlans:
            told["vlan"] = pkt.vlans[0].vid
        if (net := pkt.ip) is not None:
            told |= {"src": format_ip(net.src), "dst": format_ip(net.dst)}
            told["protocol"] = NAMES.get(net.protocol, str(net.protocol))
        inner = pkt.transport
        if isinstance(inner, TCP | UDP):
            told |= {"sport": inner.sport, "dport": inner.dport}
        elif inner is not None:
            told |= {"type": inner.type, "code": inner.code}
    except Malformed:
        pass  # keep the fields parsed so far
    return told


def as_words(told: Mapping[str, object]) -> str:
    """Return the result of describe() as one line, in the words that question.read() accepts.

    Repeats of a packet have no source port.
    """
    at = f" vlan {told['vlan']}" if "vlan" in told else ""
    if "protocol" not in told:
        macs = f"from mac {told.get('src_mac')} to mac {told.get('dst_mac')}"
        return f"ethertype {told.get('ethertype')} {macs}{at}"
    ends = _end(told["src"], told.get("sport")), _end(told["dst"], told.get("dport"))
    message = f" type {told['type']} code {told.get('code', 0)}" if "type" in told else ""
    return f"{told['protocol']} {ends[0]} {ends[1]}{message}{at}"


def _end(address: object, port: object) -> str:
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
