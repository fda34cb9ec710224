"""Explains for an operator which rule judges a packet and why, and finds rules that are never reached."""

from itertools import groupby
from typing import Final, NamedTuple

from vtl_tools.common.packet import ether, ip
from vtl_tools.common.packet.address import format_ip, format_mac
from vtl_tools.common.rules.clauses import ICMP6
from vtl_tools.common.rules.position import RuleWarning
from vtl_tools.common.rules.roles import MEANINGS
from vtl_tools.common.rules.rule import IN, OUT, STACKED, UNTAGGED, Direction, Rule
from vtl_tools.common.rules.values import Addresses, Ranges, holds, ranges_cover
from vtl_tools.services.fw.fields import NONE, Fields
from vtl_tools.services.fw.policy import Judgement, Policy, RuleTable

_CANDIDATES_MAX: Final = 16
"""Maximum earlier rules that a rule is compared with; a missing warning is harmless."""


class Step(NamedTuple):
    """A rule that does not match, and the first reason for it."""

    rule: Rule
    why: str


class Explanation(NamedTuple):
    """judgement: the result of Policy.judge(). steps: the rules before that one, in order."""

    judgement: Judgement
    steps: tuple[Step, ...]


def explain(policy: Policy, direction: Direction, fields: Fields) -> Explanation:
    """Return the rule that judges a packet of no known connection, and why earlier ones do not match."""
    judgement = policy.judge(direction, fields)
    steps: list[Step] = []
    for rule in policy.rules:
        if rule is judgement.rule:
            break
        steps.append(Step(rule, mismatch(rule, direction, fields) or "matches"))
    return Explanation(judgement, tuple(steps))


def fields_of(
    protocol: str, src: bytes, dst: bytes, sport: int = 0, dport: int = 0, kind: int = 0, code: int = 0
) -> Fields:
    """Return the fields of a packet described by an operator. protocol: "tcp", "udp", "icmp", or a number.

    src, dst: 4 or 16 octets each, which define the IP version. kind, code: of ICMP. Raises ValueError for
    another protocol, or addresses of two versions.
    """
    if len(src) != len(dst):
        raise ValueError(f"{format_ip(src)} and {format_ip(dst)} are of different versions of IP")
    six = len(src) == 16
    ethertype = ether.IPV6 if six else ether.IPV4
    if protocol in ("tcp", "udp"):
        return Fields(ethertype, ip.TCP if protocol == "tcp" else ip.UDP, src, dst, sport, dport)
    if protocol in ("icmp", "icmp6"):
        number, message = (ip.ICMPV6, ICMP6) if six else (ip.ICMP, 0)
        return Fields(ethertype, number, src, dst, icmp=message | kind << 8 | code)
    if protocol.isdecimal() and int(protocol) < 256:
        return Fields(ethertype, int(protocol), src, dst)
    raise ValueError(f"{protocol!r} is not a protocol: write tcp, udp, icmp or a number up to 255")


def mismatch(rule: Rule, direction: Direction, fields: Fields) -> str | None:
    """Return the first reason why a rule does not match; None if it does."""
    if direction not in rule.directions:
        return f"is for {rule.directions[0].value}"
    return _protocol(rule, fields) or _network(rule, fields) or _link(rule, fields)


def _protocol(rule: Rule, fields: Fields) -> str | None:
    if fields.is_neighbour:
        number = (ether.ARP, None) if not fields.src else (ether.IPV6, ip.ICMPV6)
        if number not in rule.protocols or (fields.src and rule.icmp is None):
            return "does not name ARP or the type of neighbour discovery"
    elif rule.protocols and not any(
        kind in (None, fields.ethertype)
        and number in (None, fields.protocol)
        and (fields.src or number is None)
        for kind, number in rule.protocols
    ):
        return "is for another protocol"
    if rule.icmp is not None and not holds(rule.icmp, fields.icmp):
        kind, code = divmod(fields.icmp & 0xFFFF, 256)
        return f"type {kind} code {code} is not among its types"
    return None


def _network(rule: Rule, fields: Fields) -> str | None:
    sides: tuple[tuple[str, Addresses | None, bytes], ...]
    sides = ("source", rule.src, fields.src), ("destination", rule.dst, fields.dst)
    for name, asked, address in sides:
        if asked is None:
            continue
        if not address:
            return f"asks for a {name}, and this is not IP"
        if address not in asked:
            return f"the {name} {format_ip(address)} is not in {_short(str(asked))}"
    ports = ("source port", rule.sport, fields.sport), ("port", rule.dport, fields.dport)
    for name, numbers, port in ports:
        if numbers is not None and not holds(numbers, port):
            return f"the {name} {port} is not among its ports" if port != NONE else "asks for ports"
    if rule.roles is not None and not holds(rule.roles, fields.roles):
        return MEANINGS[rule.roles[0][0]]
    return None


def _link(rule: Rule, fields: Fields) -> str | None:
    if rule.vlan is not None and not holds(rule.vlan, fields.vlan):
        names = {UNTAGGED: "an untagged frame is", STACKED: "a frame of several VLAN tags is"}
        return f"{names.get(fields.vlan, f'VLAN {fields.vlan} is')} not what it is for"
    macs = ("from", rule.src_mac, fields.src_mac), ("to", rule.dst_mac, fields.dst_mac)
    for name, asked, address in macs:
        if asked is not None and address not in asked:
            return f"it is not {name} one of its Ethernet addresses, but {format_mac(address)}"
    return None


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def unreachable(policy: Policy) -> list[RuleWarning]:
    """Return a warning for each rule that is never reached, as an earlier one matches all its packets.

    A preset has a warning if none of its rules is reached. A rule that earlier ones cover only together has
    none.
    """
    out: dict[Rule, RuleWarning] = {}
    for direction in OUT, IN:
        table = policy.table(direction)
        for bit, rule in enumerate(table.rules):
            if len(rule.directions) == 2 and direction is IN and rule not in out:
                continue  # it judges outgoing packets
            before = _covering(table, bit, rule)
            if before is not None:
                where = f"{before.place.file}:{before.place.line}"
                out[rule] = RuleWarning(rule.place, f"is never reached: {where} matches all that it does")
            else:
                out.pop(rule, None)
    statements = (list(rules) for _, rules in groupby(policy.rules, key=lambda rule: rule.place))
    return [out[rules[0]] for rules in statements if all(rule in out for rule in rules)]


def _covering(table: RuleTable, bit: int, rule: Rule) -> Rule | None:
    """Return an earlier rule that covers a rule. It must match any packet of that rule, so one is tried."""
    if (sample := _sample(rule)) is None:
        return None  # it matches nothing, of which the parser warns
    earlier = table.matching(sample) & ((1 << bit) - 1)
    for _ in range(_CANDIDATES_MAX):
        if not earlier:
            return None
        found = (earlier & -earlier).bit_length() - 1
        if _covers(table.rules[found], rule):
            return table.rules[found]
        earlier &= earlier - 1
    return None


def _sample(rule: Rule) -> Fields | None:
    """Return a packet that a rule matches; None if it matches none."""
    asked = (rule.src, rule.dst, rule.sport, rule.dport, rule.icmp, rule.vlan, rule.src_mac, rule.dst_mac)
    if any(value is not None and not value for value in asked):
        return None
    kind, number = rule.protocols[0] if rule.protocols else (None, None)
    sixes = [side for side in (rule.src, rule.dst) if side is not None and not side.v4]
    if kind is None:
        kind = ether.IPV6 if sixes else ether.IPV4
    if number is None and kind in (ether.IPV4, ether.IPV6):
        number = 255
    octets = {ether.IPV4: 4, ether.IPV6: 16}.get(kind, 0)
    if any(side is not None and not side.family(octets) for side in (rule.src, rule.dst)):
        return None

    def first(side: Addresses | None) -> bytes:
        return bytes(octets) if side is None else side.family(octets)[0][0]

    def lowest(numbers: Ranges | None, otherwise: int) -> int:
        return otherwise if numbers is None else numbers[0][0]

    ported, message = number in (ip.TCP, ip.UDP), number in (ip.ICMP, ip.ICMPV6)
    made = Fields(
        kind, NONE if number is None else number, first(rule.src), first(rule.dst),
        lowest(rule.sport, 0) if ported else NONE, lowest(rule.dport, 0) if ported else NONE,
        lowest(rule.icmp, ICMP6 if octets == 16 else 0) if message else NONE,
        min(rule.src_mac or (bytes(6),)), min(rule.dst_mac or (bytes(6),)), lowest(rule.vlan, UNTAGGED),
        kind == ether.ARP,
    )  # fmt: skip
    made.roles = lowest(rule.roles, 0)
    return made


def _covers(wide: Rule, narrow: Rule) -> bool:
    """Return whether a rule matches every packet of a direction that another matches."""
    if wide.protocols and not (narrow.protocols and all(_has(wide, *one) for one in narrow.protocols)):
        return False
    if not wide.protocols and any(kind == ether.ARP for kind, _ in narrow.protocols):
        return False
    if wide.icmp is None and narrow.icmp is not None and narrow.icmp[-1][0] >= ICMP6:
        return False  # it may name neighbour discovery, unlike the other
    addresses = (wide.src, narrow.src), (wide.dst, narrow.dst)
    numbers = (
        (wide.sport, narrow.sport),
        (wide.dport, narrow.dport),
        (wide.icmp, narrow.icmp),
        (wide.vlan, narrow.vlan),
        (wide.roles, narrow.roles),
    )
    macs = (wide.src_mac, narrow.src_mac), (wide.dst_mac, narrow.dst_mac)
    return (
        all(a is None or (b is not None and a.covers(b)) for a, b in addresses)
        and all(a is None or (b is not None and ranges_cover(a, b)) for a, b in numbers)
        and all(a is None or (b is not None and a >= b) for a, b in macs)
    )


def _has(rule: Rule, kind: int | None, number: int | None) -> bool:
    return any(k in (None, kind) and n in (None, number) for k, n in rule.protocols)
