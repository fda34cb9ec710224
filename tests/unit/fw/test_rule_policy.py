"""Compiled rules against a reading of the rules one by one, and what explains them."""

import ipaddress
import re

import pytest
from fw import IN, OUT, policy, rules
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.packet import address
from vtl_tools.services.fw import bitmaps
from vtl_tools.services.fw.bitmaps import Spans, bitmap
from vtl_tools.services.fw.explain import explain, fields_of, mismatch, unreachable
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.policy import Policy

HOSTS4 = ["10.0.0.1", "10.0.0.200", "10.1.2.3", "192.0.2.1", "255.255.255.255", "0.0.0.0"]
HOSTS6 = ["2001:db8::1", "2001:db8:1::2", "fe80::1", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
NETS4 = ["10.0.0.0/8", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0", "192.0.2.0-192.0.2.9", "128.0.0.0/1"]
NETS6 = ["2001:db8::/32", "::/0", "fe80::/10", "2001:db8::1", "8000::/1"]
PORTS = ["22", "80", "443", "1-1023", "0", "65535", "1024-65535"]
MACS = ["52:54:00:00:00:01", "52:54:00:00:00:02"]
TYPES = {"icmp": ["echo-request", "echo-reply", "unreachable"], "icmp6": ["echo-request", "packet-too-big"]}
NUMBERS = {
    "icmp": {"echo-request": 8, "echo-reply": 0, "unreachable": 3},
    "icmp6": {"echo-request": 128, "packet-too-big": 2},
}


def some(values):
    return st.lists(st.sampled_from(values), min_size=1, max_size=3).map(", ".join)


@st.composite
def lines(draw):
    """One rule as text."""
    words = [draw(st.sampled_from(["allow", "deny", "reject"])), draw(st.sampled_from(["in", "out", ""]))]
    family = draw(st.sampled_from([4, 6]))
    protocols = ["tcp", "udp", "tcp, udp", "protocol 47", "", "", "ip" if family == 4 else "ip6"]
    protocols.append("icmp" if family == 4 else "icmp6")
    protocol = draw(st.sampled_from(protocols))
    words.append(protocol)
    nets = NETS4 if family == 4 else NETS6
    if draw(st.booleans()):
        words.append(f"from {draw(some(nets))}")
    if draw(st.booleans()):
        words.append(f"to {draw(some(nets))}")
    if "tcp" in protocol or "udp" in protocol:
        if draw(st.booleans()):
            words.append(f"port {draw(some(PORTS))}")
        if draw(st.integers(0, 3)) == 0:
            words.append(f"source port {draw(some(PORTS))}")
    if protocol in TYPES and draw(st.booleans()):
        words.append(f"type {draw(some(TYPES[protocol]))}")
    if draw(st.integers(0, 5)) == 0:
        words.append(f"vlan {draw(st.sampled_from(['any', 'none', '7', '5-9, 12', 'none, 7']))}")
    if draw(st.integers(0, 5)) == 0:
        words.append(f"from mac {draw(some(MACS))}")
    if draw(st.integers(0, 5)) == 0:
        words.append(f"to mac {draw(some(MACS))}")
    return " ".join(words)


@st.composite
def packets(draw):
    six = draw(st.booleans())
    src, dst = (address.ip(draw(st.sampled_from(HOSTS6 if six else HOSTS4))) for _ in range(2))
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp", "47"]))
    port = st.sampled_from([0, 22, 80, 81, 443, 1023, 1024, 65535])
    kind = draw(st.sampled_from([0, 1, 2, 3, 8, 128]))
    fields = fields_of(protocol, src, dst, draw(port), draw(port), kind, draw(st.sampled_from([0, 4])))
    fields.vlan = draw(st.sampled_from([-1, -1, -1, 0, 5, 7, 10, 12, 4096]))
    fields.src_mac, fields.dst_mac = (address.mac(draw(st.sampled_from(MACS))) for _ in range(2))
    return draw(st.sampled_from([IN, OUT])), fields


def naive(text, direction, fields):
    """Read rules as a person does, word by word; return the number of the first line that matches."""
    for number, line in enumerate(text, 1):
        if matches(line, direction, fields):
            return number, line.split()[0]
    return 0, "deny"


def matches(line, direction, fields):
    values = {}
    if line.split()[1:2] == [direction.other.value]:
        return False
    rest = re.sub(r"^(allow|deny|reject) *(in|out)? *", "", line)
    pieces = re.split(r"(?:^| )(from mac|to mac|from|to|source port|port|type|vlan) ", f" {rest}")
    protocols = [name.strip() for name in pieces[0].split(",") if name.strip()]
    for key, value in zip(pieces[1::2], pieces[2::2], strict=True):
        values[key] = [item.strip() for item in value.split(",")]
    version = 4 if len(fields.src) == 4 else 6
    numbers = {"tcp": 6, "udp": 17, "icmp": 1, "icmp6": 58, "protocol 47": 47}
    if protocols and not any(
        (name == "ip" and version == 4)
        or (name == "ip6" and version == 6)
        or (numbers.get(name) == fields.protocol and (name != "icmp" or version == 4))
        for name in protocols
    ):
        return False
    for key, mine in ("from", fields.src), ("to", fields.dst):
        if key in values and not any(inside(mine, item) for item in values[key]):
            return False
    for key, mine in ("port", fields.dport), ("source port", fields.sport):
        if key in values and not any(between(mine, item) for item in values[key]):
            return False
    if "type" in values:
        names = NUMBERS["icmp" if version == 4 else "icmp6"]
        if not any(names[name] == fields.icmp >> 8 & 0xFF for name in values["type"]):
            return False
    for key, mac in ("from mac", fields.src_mac), ("to mac", fields.dst_mac):
        if key in values and address.format_mac(mac) not in values[key]:
            return False
    vlans = values.get("vlan", ["none"] if line.startswith("allow") else ["any"])
    return any(
        item == "any" or (fields.vlan == -1 if item == "none" else between(fields.vlan, item))
        for item in vlans
    )


def inside(octets, item):
    mine = ipaddress.ip_address(octets)
    if "-" in item:
        low, high = (ipaddress.ip_address(end) for end in item.split("-"))
        return mine.version == low.version and low <= mine <= high
    return mine in ipaddress.ip_network(item)


def between(number, item):
    low, _, high = item.partition("-")
    return int(low) <= number <= int(high or low)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(lines(), max_size=25), st.lists(packets(), min_size=1, max_size=20))
def test_compiled_rules_judge_as_rules_read_one_by_one(text, sent):
    compiled = policy("\n".join([*text, "deny"]))
    for direction, fields in sent:
        number, verdict = naive([*text, "deny"], direction, fields)
        judgement = compiled.judge(direction, fields)
        assert (judgement.rule.place.line, judgement.verdict.value) == (number, verdict)
        told = explain(compiled, direction, fields)
        assert told.judgement == judgement
        assert [step.rule.place.line for step in told.steps] == list(range(1, number))
        assert all(step.why != "matches" for step in told.steps)
        assert mismatch(judgement.rule, direction, fields) is None


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.lists(lines(), max_size=12), st.lists(packets(), min_size=1, max_size=30))
def test_a_rule_that_is_said_to_be_unreachable_never_judges(text, sent):
    compiled = policy("\n".join([*text, "deny"]))
    dead = {remark.place.line for remark in unreachable(compiled)}
    for direction, fields in sent:
        assert compiled.judge(direction, fields).rule.place.line not in dead


def test_a_shadowed_rule_is_a_warning_that_names_both():
    text = """allow out tcp to 10.0.0.0/8 port 1-1000
allow out tcp to 10.1.0.0/16 port 80, 443
allow in tcp to 10.1.0.0/16 port 80
allow out udp to 10.1.0.0/16
allow tcp to 10.2.0.0/16 port 9
deny
reject"""
    found = [str(remark) for remark in unreachable(policy(text))]
    assert found == [
        "fw.rules:2:1: is never reached: fw.rules:1 matches all that it does",
        "fw.rules:7:1: is never reached: fw.rules:6 matches all that it does",
    ]


@pytest.mark.parametrize("limit", [bitmaps.MEMORY_OCTETS, 2000, 1])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_map_that_keeps_few_bitmaps_gives_the_same(limit, data):
    bounds = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)
    groups = data.draw(st.lists(st.tuples(bounds, st.sets(st.integers(0, 99), min_size=1)), max_size=20))
    sparse = data.draw(st.sampled_from([0, bitmaps._SPARSE, 100]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitmaps, "MEMORY_OCTETS", limit)
        patch.setattr(bitmaps, "_FEW", 3)
        patch.setattr(bitmaps, "_SPARSE", sparse)
        taken = set()
        own = []
        for (low, high), bits in groups:
            own.append(([(low, high + 1)], sorted(bits - taken)))
            taken |= bits
        own = [(spans, bits) for spans, bits in own if bits]
        spans = Spans(1 << 100, own, 101)
        for value in range(-1, 62):
            wanted = {bit for ranges, bits in own for bit in bits if ranges[0][0] <= value < ranges[0][1]}
            assert spans[value] == bitmap(wanted, 100) | 1 << 100


def test_a_code_is_asked_of_each_type_also_of_neighbouring_ones():
    compiled = policy("allow icmp type 12, 11 code 1\ndeny")
    allowed = [
        (kind, code)
        for kind in range(10, 14)
        for code in range(3)
        if compiled.judge(OUT, fields_of("icmp", bytes(4), bytes(4), kind=kind, code=code)).rule.place.line
        == 1
    ]
    assert allowed == [(11, 1), (12, 1)]


def test_all_of_ipv6_is_not_all():
    compiled = policy("allow out to ::/0\ndeny")
    assert compiled.judge(OUT, fields_of("tcp", bytes(4), bytes(4))).rule.place.line == 2
    assert compiled.judge(OUT, fields_of("tcp", bytes(16), bytes(16))).rule.place.line == 1
    compiled = policy("allow out to 0.0.0.0/0\ndeny")
    assert compiled.judge(OUT, fields_of("tcp", bytes(16), bytes(16))).rule.place.line == 2
    assert compiled.judge(OUT, Fields(0x88CC)).rule.place.line == 2


def test_an_empty_set_matches_nothing_and_is_remarked():
    ruleset = rules(
        "set @nobody = empty\nallow from @nobody\nallow tcp port @nobody\nallow vlan @nobody\ndeny"
    )
    assert [remark.place.line for remark in ruleset.remarks] == [2, 3, 4]
    compiled = Policy(ruleset)
    for direction in IN, OUT:
        assert compiled.judge(direction, fields_of("tcp", bytes(4), bytes(4), 1, 1)).rule.place.line == 5
        assert compiled.judge(direction, Fields(0x88CC)).rule.place.line == 5


def test_other_ethertypes_are_matched_by_name_or_by_any():
    compiled = policy("allow out ethertype 0x88cc\nallow in ethertype 0x0800\nallow in ip6\ndeny")
    assert compiled.judge(OUT, Fields(0x88CC)).rule.place.line == 1
    assert compiled.judge(OUT, Fields(0x88CD)).rule.place.line == 4
    assert compiled.judge(IN, fields_of("47", bytes(4), bytes(4))).rule.place.line == 2
    assert compiled.judge(IN, fields_of("47", bytes(16), bytes(16))).rule.place.line == 3


def test_explain_tells_why_earlier_rules_do_not_match():
    compiled = policy(
        "allow in tcp\nallow out udp\nallow out tcp to 10.0.0.0/8\nallow out tcp port 80\n"
        "allow out vlan 5\nallow out from mac 52:54:00:00:00:09\ndeny any log"
    )
    fields = fields_of("tcp", address.ip("10.0.0.5"), address.ip("1.2.3.4"), 40000, 443)
    told = explain(compiled, OUT, fields)
    assert str(told.judgement.rule) == "fw.rules:7: deny any log"
    assert [step.why for step in told.steps] == [
        "is for in",
        "is for another protocol",
        "the destination 1.2.3.4 is not in 10.0.0.0/8",
        "the port 443 is not among its ports",
        "an untagged frame is not what it is for",
        "it is not from one of its Ethernet addresses, but 00:00:00:00:00:00",
    ]
