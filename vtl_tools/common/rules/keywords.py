"""Keywords of the rule language, the terminals of the grammar in docs/fw.md."""

from typing import Final

from vtl_tools.common.packet import ether, ip

KEYWORDS: Final = frozenset(
    (
        "allow", "any", "arp", "asked", "burst", "code", "connections", "deny", "empty", "ethertype", "from",
        "guest-basics", "icmp", "icmp6", "in", "include", "ip", "ip6", "limit", "log", "mac", "none", "out",
        "pcap", "per", "port", "protocol", "reject", "resolver", "set", "source", "tcp", "to", "type", "udp",
        "vlan",
    )
)  # fmt: skip
MARKS: Final = frozenset(",={}")

UNITS: Final = {
    "s": 1.0, "sec": 1.0, "second": 1.0,
    "m": 60.0, "min": 60.0, "minute": 60.0,
    "h": 3600.0, "hour": 3600.0,
}  # fmt: skip
"""Time units of a rate, in seconds."""

Protocol = tuple[int | None, int | None]
"""EtherType and IP protocol number, None for any. With a number, None means either version of IP."""

PROTOCOLS: Final[dict[str, Protocol]] = {
    "tcp": (None, ip.TCP),
    "udp": (None, ip.UDP),
    "icmp": (ether.IPV4, ip.ICMP),
    "icmp6": (ether.IPV6, ip.ICMPV6),
    "ip": (ether.IPV4, None),
    "ip6": (ether.IPV6, None),
    "arp": (ether.ARP, None),
}

ICMP_TYPES: Final = {
    "echo-reply": 0,
    "unreachable": 3,
    "redirect": 5,
    "echo-request": 8,
    "router-advertisement": 9,
    "router-solicitation": 10,
    "time-exceeded": 11,
    "parameter-problem": 12,
    "timestamp-request": 13,
    "timestamp-reply": 14,
}

ICMP6_TYPES: Final = {
    "unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "echo-reply": 129,
    "mld-query": 130,
    "mld-report": 131,
    "mld-done": 132,
    "router-solicitation": 133,
    "router-advertisement": 134,
    "neighbour-solicitation": 135,
    "neighbour-advertisement": 136,
    "redirect": 137,
    "mld2-report": 143,
}
