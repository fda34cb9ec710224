"""Rules of vtl-vnet (VNET routes): conditions of a frame, and the link that such a frame is sent to.

    on vmnet1 via fw
    from-mac 02:00:00:00:00:01 protocol tcp via tor
    to 10.2.0.0/16 via site2
    on vmnet1 protocol tcp keep-flows 60 via fw

All conditions of a rule must hold. ARP matches a prefix by its addresses, so that neighbours are found.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.fields import UNKNOWN, FrameFields

_PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "esp": 50, "icmp6": 58, "sctp": 132}
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_FORM: Final = (
    "[on LINK] [from-mac MAC] [to-mac MAC] [from PREFIX] [to PREFIX] [vlan N] [protocol NAME]"
    " [keep-flows SECONDS] via LINK"
)
_WORDS: Final = frozenset(("on", "from-mac", "to-mac", "from", "to", "vlan", "protocol", "keep-flows", "via"))
_KEEP_MAX_S: Final = 86_400
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class VnetRule:
    """One rule. via: the link's name. on: the link that a frame comes from; "": any.

    keep_s: of a service. For so long after the rule is added, TCP connections that were there before are
    noted, and go around the service until they end.
    """

    text: str
    via: str
    on: str = ""
    from_mac: bytes = b""
    to_mac: bytes = b""
    source: Network | None = None
    destination: Network | None = None
    vlan: int | None = None
    protocol: int | None = None
    keep_s: int = 0

    @property
    def has_direction(self) -> bool:
        """Whether a frame and the answer to it are told apart."""
        sides = self.on, self.from_mac, self.to_mac, self.source, self.destination
        return any(sides)

    def matches(self, fields: FrameFields, ingress: str) -> bool:
        """Return whether the rule is for a frame that came in at a link."""
        return (
            (not self.on or self.on == ingress)
            and (not self.from_mac or self.from_mac == fields.src)
            and (not self.to_mac or self.to_mac == fields.dst)
            and self._is_between(fields, fields.source, fields.destination)
        )

    def mirrors(self, fields: FrameFields, egress: str) -> bool:
        """Return whether the rule would match an answer to this frame. egress: where its destination is.

        "": it may be anywhere. A group has each station in it.
        """
        return (
            (not self.on or not egress or self.on == egress)
            and (not self.from_mac or fields.is_group or self.from_mac == fields.dst)
            and (not self.to_mac or self.to_mac == fields.src)
            and self._is_between(fields, fields.destination, fields.source)
        )

    def _is_between(self, fields: FrameFields, one: bytes, other: bytes) -> bool:
        return (
            (self.vlan is None or self.vlan == fields.vlan)
            and (self.protocol is None or fields.protocol in (self.protocol, UNKNOWN))
            and (self.source is None or _holds(self.source, one))
            and (self.destination is None or _holds(self.destination, other))
        )


def _holds(network: Network, address: bytes) -> bool:
    if len(address) * 8 != network.max_prefixlen:
        return False
    return int.from_bytes(address) & int(network.netmask) == int(network.network_address)


def parse_vnet_rule(text: str) -> VnetRule:
    """Return the rule of a text. Raises SpecError."""
    words = text.split()
    if not text.isprintable() or len(words) % 2 or not words:
        raise SpecError(f"rule {text!r}: not pairs of words; write {_FORM}")
    found = dict(zip(words[::2], words[1::2], strict=True))
    if len(found) * 2 != len(words) or not found.keys() <= _WORDS or "via" not in found:
        raise SpecError(f"rule {text!r}: a word is unknown, missing or given twice; write {_FORM}")
    return VnetRule(
        " ".join(words),
        found["via"],
        found.get("on", ""),
        _mac(text, found.get("from-mac")),
        _mac(text, found.get("to-mac")),
        _network(text, found.get("from")),
        _network(text, found.get("to")),
        _vlan(text, found.get("vlan")),
        _protocol(text, found.get("protocol")),
        _seconds(text, found.get("keep-flows")),
    )


def _mac(text: str, word: str | None) -> bytes:
    if word is None:
        return b""
    if not _MAC.fullmatch(word.lower()):
        raise SpecError(f"rule {text!r}: {word!r} is not a MAC; write it as 02:00:00:00:00:01")
    return bytes.fromhex(word.replace(":", ""))


def _network(text: str, word: str | None) -> Network | None:
    try:
        return None if word is None else ip_network(word)
    except ValueError:
        raise SpecError(f"rule {text!r}: {word!r} is not a prefix; write it as 10.2.0.0/16") from None


def _number(word: str, most: int) -> int | None:
    """Return a number; None: it is none, or greater than the most."""
    number = int(word) if word.isdecimal() and len(word) < 9 else most + 1
    return number if number <= most else None


def _vlan(text: str, word: str | None) -> int | None:
    if word is None:
        return None
    if (vlan := _number(word, 4094)) is None:
        raise SpecError(f"rule {text!r}: {word!r} is not a VLAN; write 0 (untagged) to 4094")
    return vlan


def _seconds(text: str, word: str | None) -> int:
    if word is None:
        return 0
    if not (seconds := _number(word, _KEEP_MAX_S)):
        raise SpecError(f"rule {text!r}: {word!r} is no time; write seconds, 1 to {_KEEP_MAX_S}")
    return seconds


def _protocol(text: str, word: str | None) -> int | None:
    if word is None or word in _PROTOCOLS:
        return None if word is None else _PROTOCOLS[word]
    if (protocol := _number(word, 255)) is None:
        known = ", ".join(_PROTOCOLS)
        raise SpecError(f"rule {text!r}: {word!r} is not a protocol; write a number, or one of {known}")
    return protocol
