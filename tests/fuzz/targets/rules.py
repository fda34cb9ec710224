"""Rule files, as text from anybody, and what is compiled from them.

Checked: RuleFileError and nothing else, with a line for each error, in order, at places that exist; the calls
that a file and its lines cost are bounded; the compiled policy judges packets as a slow reader
of the rules does, one after the other; the quick way of gather() finds the files that the parser asks for.
"""

import re
from pathlib import Path

from tests.fuzz.effort import at_most
from tests.fuzz.octets import Octets, blob
from vtl_tools.common.packet import ether, ip
from vtl_tools.common.rules.clauses import ICMP6
from vtl_tools.common.rules.keywords import KEYWORDS
from vtl_tools.common.rules.position import ERRORS_MAX, RuleFileError
from vtl_tools.common.rules.rule import IN, OUT, STACKED, UNTAGGED, Direction, Rule, Ruleset, Verdict
from vtl_tools.services.fw.explain import explain, unreachable
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy

ROOT = Path(__file__).parents[3]
LENGTH_MAX = 3000
CALLS_MAX = 400_000
WORDS = [word.encode() for word in sorted(KEYWORDS)]
WORDS += [b"allow out tcp from 10.0.0.0/8 to @a port 80, 443\n", b"set a = {1.2.3.4}\n", b"\ndeny any\n",
          b"0x86dd", b'include "two"\n', b"limit 10/s", b"vlan 7", b"from mac 02:00:00:00:00:01",
          b"10.0.0.1-10.0.0.9", b"https", b"@resolvers", b"@dhcp-servers", b"10/min", b"--dport",
          b"drop", b"22/tcp", b"!="]  # fmt: skip


def slow(rules: Ruleset, direction: Direction, fields: Fields) -> tuple[Verdict, Rule | None]:
    """Judge by going through the rules, as docs/fw.md has it; None: no rule of the file."""
    for rule in rules.rules:
        if direction in rule.directions and matches(rule, fields):
            return rule.verdict, rule
    if not fields.is_neighbour:
        return Verdict.DENY, None
    if fields.vlan == UNTAGGED or any(
        rule.verdict is Verdict.ALLOW and within(rule.vlan, fields.vlan) for rule in rules.rules
    ):
        return Verdict.ALLOW, None
    mine = [rule for rule in rules.rules if direction in rule.directions]
    last = next((at for at, rule in enumerate(mine) if rule.is_catch_all and rule.vlan is None), len(mine))
    if last == len(mine) or any(map(names_neighbours, mine[last:])):
        return Verdict.DENY, None
    return mine[last].verdict, mine[last]


def names_neighbours(rule: Rule) -> bool:
    return (ether.ARP, None) in rule.protocols or (
        (ether.IPV6, ip.ICMPV6) in rule.protocols and rule.icmp is not None
    )


def matches(rule: Rule, fields: Fields) -> bool:
    six = len(fields.src) == 16
    if fields.is_neighbour:  # only a rule that names it
        wanted = (ether.IPV6, ip.ICMPV6) if six else (ether.ARP, None)
        if wanted not in rule.protocols or (six and rule.icmp is None):
            return False
    elif rule.protocols and not any(
        (kind is None or kind == fields.ethertype)
        and (number is None or (fields.src and number == fields.protocol))
        for kind, number in rule.protocols
    ):
        return False
    if not fields.src and (rule.src is not None or rule.dst is not None):
        return False
    asked = ((rule.src, fields.src), (rule.dst, fields.dst))
    if fields.src and any(side is not None and not contains(side, end) for side, end in asked):
        return False
    if fields.dport >= 0 and not (within(rule.dport, fields.dport) and within(rule.sport, fields.sport)):
        return False
    if fields.icmp >= 0 and not within(rule.icmp, fields.icmp):
        return False
    if not within(rule.vlan, fields.vlan) or not within(rule.roles, fields.roles):
        return False
    macs = ((rule.src_mac, fields.src_mac), (rule.dst_mac, fields.dst_mac))
    return all(wanted is None or mac in wanted for wanted, mac in macs)


def contains(side: object, end: bytes) -> bool:
    return any(first <= end <= last for first, last in side.family(len(end)))  # type: ignore[attr-defined]


def within(ranges: tuple[tuple[int, int], ...] | None, number: int) -> bool:
    return ranges is None or any(first <= number <= last for first, last in ranges)


def packet(take: Octets) -> Fields:
    """Make what a packet could have; addresses are often of the few that files are likely to name."""
    kind = take.number() % 8
    vlan = (UNTAGGED, UNTAGGED, STACKED, take.number(2) % 4096)[take.number() % 4]
    macs = {
        "src_mac": take.pick((b"\2\0\0\0\0\1", bytes(6))),
        "dst_mac": take.pick((b"\2\0\0\0\0\1", bytes(6))),
    }
    if kind == 0:
        return Fields(ether.ARP, is_neighbour=True, vlan=vlan, **macs)
    if kind == 1:
        return Fields(take.number(2) | 0x8000 if take.flag() else 0x88CC, vlan=vlan, **macs)
    size = 16 if kind & 1 else 4
    ends = [
        take.pick((bytes((10, 0, 0, 1)), bytes((1, 2, 3, 4)), take.take(4).ljust(4, b"\0"))) for _ in "ab"
    ]
    src, dst = (end.rjust(size, b"\x20") if size == 16 else end for end in ends)
    ethertype = ether.IPV6 if size == 16 else ether.IPV4
    if kind < 4:
        number = take.pick((ip.TCP, ip.UDP))
        ports = {"sport": take.number(2), "dport": take.pick((80, 443, 22, take.number(2)))}
        return Fields(ethertype, number, src, dst, **ports, vlan=vlan, **macs)
    if kind < 6:
        message = (ICMP6 if size == 16 else 0) | take.number(2)
        number = ip.ICMPV6 if size == 16 else ip.ICMP
        neighbour = size == 16 and 133 <= (message >> 8 & 0xFF) <= 136 and not message & 0xFF
        return Fields(ethertype, number, src, dst, icmp=message, vlan=vlan, is_neighbour=neighbour, **macs)
    return Fields(ethertype, take.pick((47, 50, 132)), src, dst, vlan=vlan, **macs)


def wrong(err: RuleFileError, files: dict[str, bytes]) -> None:
    """Check what a user sees of a file with errors."""
    with at_most(CALLS_MAX):
        lines = err.lines
    assert len(err.errors) == ERRORS_MAX or not err.left_out
    assert len(lines) == len(err.errors) + bool(err.left_out)
    assert str(err) == lines[0]
    places = [error.place for error in err.errors]
    assert len(set(places)) == len(places) <= ERRORS_MAX
    for name in files:
        mine = [(place.line, place.column) for place in places if place.file == name]
        assert mine == sorted(mine)
    for line, place in zip(lines, places, strict=False):
        assert place.file in files
        assert 1 <= place.line <= files[place.file].count(b"\n") + 2
        assert place.column >= 1
        assert line.startswith(f"{place.file}:{place.line}:{place.column}: ")
        assert line.isprintable(), "what the file has reaches the terminal"


def one(data: bytes) -> None:
    take = Octets(data)
    text, other = take.blob(), take.blob()
    files = {"rules": text, "two": other}

    def read(name: str, octets: int) -> bytes:
        if name not in files:
            raise FileNotFoundError(2, "No such file or directory")
        return files[name][:octets]

    try:
        with at_most(CALLS_MAX):
            rules = parse("rules", read)
            policy = Policy(rules)
    except RuleFileError as err:
        wrong(err, files)
        return
    assert set(rules.files) <= set(files)
    with at_most(CALLS_MAX):
        remarks = [*rules.remarks, *unreachable(policy)]
    assert all(str(remark) for remark in remarks)
    for _ in range(6):
        direction, fields = take.pick((IN, OUT)), packet(take)
        fields.roles = take.number() % 8
        verdict, rule = policy.judge(direction, fields)
        expected, by = slow(rules, direction, fields)
        assert (verdict, rule if rule in rules.rules else None) == (expected, by), (
            "the compiled policy differs"
        )
        told = explain(policy, direction, fields)
        assert told.judgement.rule is rule
        assert "matches" not in [step.why for step in told.steps], "what it says matches comes earlier"


def seeds() -> list[bytes]:
    texts = (
        "allow out tcp port 80\ndeny any\n",
        "set web = {80, 443}\nset hosts = { 10.0.0.1, 10.0.0.0/24,\n  2001:db8::/32 }\n"
        "allow out tcp to @hosts port @web log\nreject in udp port 1-1023\ndeny any\n",
        'include "two"\nallow in icmp type echo-request code 0 from 1.2.3.4 limit 10/s burst 5 per source\n'
        "deny any\n",
        "allow out arp\nallow icmp6 type neighbor-solicit\nallow out vlan 5 tcp from mac 02:00:00:00:00:01\n"
        "allow out ethertype 0x88cc\nallow protocol 47 pcap\nallow in max 5 tcp port 22\ndeny any # end\n",
        "allow\n",
        "allow guest-basics\nallow guest-basics resolver 10.0.0.1, @a\nallow in udp asked\ndeny any\n",
        "set @a = {\n10.0.0.1/8\nhtp, 80\n!\nallow out to @a\n\x1b[2J\n\"\ndrop in\nallow tcp 22/tcp\n",
        "alow\n" * 30, 'alow\ninclude "two"\ninclude "two"\nallow in tcp prot htpps\ndeny any',
        "deny out to @resolvers\nallow any",
        "deny any\nallow any\n", "allow out tcp port 99999\n", "\ufeffdeny any\n", "deny \x1b[31m\n",
    )  # fmt: skip
    told = (ROOT / "docs/fw.md").read_text()
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", told, re.DOTALL | re.MULTILINE)
    packets = bytes(range(0, 200, 3))
    made = [*texts, *(block[: LENGTH_MAX // 2] + "deny any\n" for block in blocks)]
    made += [f"{line}\ndeny any\n" for block in blocks for line in block.splitlines() if line.strip()]
    return [blob(text.encode()) + blob(b"allow out udp port 53\n") + packets for text in made]
