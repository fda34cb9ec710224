"""Remedies: what to write instead of the words of iptables, nftables, ufw and pf, and of misspelt ones."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from vtl_tools.common.rules.keywords import UNITS
from vtl_tools.common.rules.service_names import SERVICE_PORTS

_LENGTH_MAX: Final = 32
"""Maximum characters of a word that is compared with others."""
_ALIKE: Final = 0.6
"""Minimum ratio of difflib for a suggestion."""

_SAME: Final = {
    "allow": "accept pass permit",
    "deny": "drop block discard",
    "deny any": "default policy",
    "any": "all * anywhere everything 0/0",
    "in": "input incoming inbound ingress",
    "out": "output outgoing outbound egress",
    "port": "dport dports ports --dport --dports --destination-port",
    "source port": "sport sports --sport --sports --source-port",
    "from": "saddr src -s --source --src",
    "to": "daddr dst -d --destination --dst",
    "from mac": "--mac-source",
    "ip": "ipv4 ip4 inet",
    "ip6": "ipv6 inet6",
    "icmp": "icmpv4 icmp4",
    "icmp6": "icmpv6 icmp-v6 ipv6-icmp",
    "protocol 47": "gre",
    "protocol 50": "esp",
    "protocol 132": "sctp",
    "type": "icmp-type icmp6-type icmpv6-type --icmp-type --icmpv6-type",
    "icmp, icmp6 type echo-request": "ping",
    "echo-request": "echo",
    "echo-reply": "pong",
    "unreachable": "destination-unreachable",
    "time-exceeded": "ttl-exceeded",
    "router-solicitation": "nd-router-solicit router-solicit",
    "router-advertisement": "nd-router-advert router-advert",
    "neighbour-solicitation": "nd-neighbor-solicit neighbor-solicit",
    "neighbour-advertisement": "nd-neighbor-advert neighbor-advert",
    "mld-query": "mld-listener-query",
    "mld-report": "mld-listener-report",
    "mld2-report": "mld2-listener-report",
    "set": "define",
    "domain": "dns",
    "guest-basics": "dhcp",
}
"""Words of this language, and the words of others for the same."""

_ADVICE: Final = {
    "a rule here is such as 'allow in tcp port 22'": "iptables ip6tables nft ufw pfctl -A -I -P -N -t add",
    "a file is a list of rules, without tables and chains": "table chain hook flush anchor scrub nat queue",
    "replies need no rule: leave this out": (
        "established related established,related related,established ct conntrack state new keep modulate"
        " flags -m --state --ctstate"
    ),
    "leave this out: a rule without 'in' or 'out' is for both": "both inout bidirectional",
    "there is no 'not': put the exception into a rule above": "not except ! !=",
    "leave this out: the first rule that matches decides": "quick",
    "leave this out: the links are those of --iface and --uplink": (
        "on iif oif iifname oifname interface -i -o --in-interface --out-interface"
    ),
    "write the protocol alone, such as 'tcp'": "proto -p --protocol meta l4proto nexthdr",
    "leave this out: the first word of a rule is its action": "-j --jump jump goto return continue with",
    "leave this out: each rule is counted": "counter",
    "a comment begins with '#'": "comment // /*",
    "a rule is one line without an end mark": "; \\",
    "the name of a set begins with '@'": "$ <",
    "write values with commas between, without brackets": "{ [ (",
    "write values with commas between": "or and | || & &&",
    "a range has '-' between its ends": "\u2013 \u2014 \u2212",
    "save the file without a byte order mark": "\ufeff",
    'write " before and behind the name': "\u201c \u201d \u2018 \u2019 '",
    "write the values right behind the word": "= ==",
    "a rate is such as 10/s, 10/min or 10/hour": "rate over packets",
    "leave this out: 'log' has no options": "prefix level --log-prefix",
    "names are not looked up: write addresses": "localhost",
}
"""Advice about words of others that this language does not have."""

_TOLD: Final = {
    **{known: f"write '{word}'" for word, all_known in _SAME.items() for known in all_known.split()},
    **{known: advice for advice, all_known in _ADVICE.items() for known in all_known.split()},
}

_PORT_OF: Final = r"(?ia)([\w-]+)/(tcp|udp)|(tcp|udp)[/:]([\w-]+)"
_END: Final = r"(?a)\[([\da-fA-F:.]+)\]:(\d+)|([\d.]+):(\d+)"
_PORTS: Final = r"(?a)(\d+)(?::|\.\.|--)(\d+)"
_RATE: Final = r"(?a)\d+/([A-Za-z]+)"
_NAME: Final = r"(?a)[A-Za-z\d-]+(?:\.[A-Za-z\d-]+)*\.?[A-Za-z]{2,}"
_WORDS: Final = r"(?a)[A-Za-z][\w-]*"


def remedy(text: str, words: Iterable[str] = ()) -> str:
    """Return what to write instead of a text, behind a semicolon; "" if nothing is known.

    words: those that may stand in its place.
    """
    found = _remedy(text, tuple(words))
    return f"; {found}" if found else ""


def for_address(text: str) -> str:
    """Return what remedy() does, for a text in the place of an address."""
    return remedy(text) or ("; names are not looked up: write addresses" if re.fullmatch(_NAME, text) else "")


def _remedy(text: str, words: tuple[str, ...]) -> str:
    lower = text.lower()
    if lower in words:
        return f"write '{lower}'"
    if lower == "ping" and "echo-request" in words:
        return "write 'echo-request'; its reply needs no rule"
    told = _TOLD.get(text) or _TOLD.get(lower)
    if told:
        return told
    if not re.fullmatch(_WORDS, text):
        return _of_shape(text)
    if len(text) > _LENGTH_MAX:
        return ""
    first, _, second = lower.partition("-")
    if first in SERVICE_PORTS and second in SERVICE_PORTS:
        return f"write '{SERVICE_PORTS[first]}-{SERVICE_PORTS[second]}'"
    if close := get_close_matches(lower, words, 1, _ALIKE):
        return f"did you mean '{close[0]}'?"
    return f"write 'tcp port {lower}', or 'udp'" if lower in SERVICE_PORTS else ""


def _of_shape(text: str) -> str:
    """Return the remedy for a text that is no word."""
    if match := re.fullmatch(_PORT_OF, text):
        protocol, port = match[2] or match[3], match[1] or match[4]
        if port.lower() in ("tcp", "udp"):
            return "write 'tcp, udp'"
        return f"write '{protocol.lower()} port {port.lower()}'"
    if match := re.fullmatch(_PORTS, text):
        return f"write '{match[1]}-{match[2]}'"
    if match := re.fullmatch(_END, text):
        return f"write '{match[1] or match[3]} port {match[2] or match[4]}'"
    if (match := re.fullmatch(_RATE, text)) and match[1] not in UNITS:
        return _TOLD["rate"]
    return _TOLD.get(text[:2]) or _TOLD.get(text[:1]) or ""
