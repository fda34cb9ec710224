"""Rule files: what is right, what is wrong and where, and what is too much."""

import re
import time
from pathlib import Path

import pytest
from fw import rules
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.rules.keywords import ICMP6_TYPES, ICMP_TYPES, KEYWORDS, MARKS, UNITS
from vtl_tools.common.rules.position import RuleError
from vtl_tools.common.rules.roles import SETS
from vtl_tools.common.rules.rule import ConnectionLimit, Rate
from vtl_tools.services.fw import parser
from vtl_tools.services.fw.files import RuleReader

PAGE = (Path(__file__).resolve().parents[3] / "docs/fw.md").read_text()
GRAMMAR = "\n".join(re.findall(r"^```ebnf\n(.*?)^```$", PAGE, re.M | re.S))
EXAMPLES = re.findall(r"^```rules\n(.*?)^```$", PAGE, re.M | re.S)


def wrong(text, files=None):
    with pytest.raises(RuleError) as caught:
        rules(text, files)
    return caught.value


def last(text):
    return rules(f"{text}\ndeny").rules[-2]


def test_the_grammar_has_the_words_of_the_lexer_and_no_others():
    terminals = set(re.findall(r'"([^"\s]+)"', re.sub(r"\(\*.*?\*\)", "", GRAMMAR, flags=re.S)))
    assert terminals - {"/", "-", "."} - set(UNITS) - {"@", "0x", ":"} - set(SETS) == KEYWORDS | MARKS
    assert set(UNITS) | set(SETS) <= terminals


def test_every_name_in_the_grammar_is_defined_there():
    body = re.sub(r"\(\*.*?\*\)", "", GRAMMAR, flags=re.S)
    rhs = re.sub(r'"[^"]*"|\'[^\']*\'|\?[^?]*\?', "", body)
    defined = set(re.findall(r"^([a-z][a-z0-9-]*) *=", body, re.M))
    used = set(re.findall(r"\b([a-z][a-z0-9-]*)\b", rhs))
    assert used == defined


def test_the_page_names_the_types_of_icmp():
    named = re.findall(r"^\| `([a-z0-9-]+)` \| (\d*) \| (\d*) \|$", PAGE, re.M)
    assert {name: int(four) for name, four, _ in named if four} == ICMP_TYPES
    assert {name: int(six) for name, _, six in named if six} == ICMP6_TYPES


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_of_the_page_are_right(example):
    included = re.findall(r'include "(.*?)"', example)
    found = rules(example, dict.fromkeys(included, "set @office = 192.0.2.0/24\n"))
    assert found.rules


def test_there_are_examples():
    assert len(EXAMPLES) >= 2


def test_limits_say_how_many_and_how_often():
    assert last("allow in tcp limit 10/s").rate == Rate(10.0, 10, False)
    assert last("allow in tcp limit 6/m burst 3 per source").rate == Rate(0.1, 3, True)
    rule = last("allow in tcp limit 36/h limit 5 connections per source")
    assert (rule.rate, rule.cap) == (Rate(0.01, 36, False), ConnectionLimit(5, True))


def test_sets_hold_one_kind_and_other_sets():
    text = """
set @office = { 192.0.2.0/25   # one a line,
  192.0.2.128/25, 10.0.0.1 } # or several
set @all = @office, 2001:db8::/32
set @web = 80, 443, 8000-8010
set @vm = 52:54:00:00:00:01
allow in tcp from @all port @web, 22 to mac @vm
"""
    rule = last(text)
    assert str(rule.src) == "10.0.0.1, 192.0.2.0/24, 2001:db8::/32"
    assert rule.dport == ((22, 22), (80, 80), (443, 443), (8000, 8010))
    assert rule.dst_mac == {b"RT\0\0\0\x01"}
    assert rule.place.line == 7
    assert rule.text == "allow in tcp from @all port @web, 22 to mac @vm"


def test_an_include_is_found_beside_the_file_that_names_it():
    files = {"sub/a.rules": 'include "b.rules"\nallow out tcp\n', "sub/b.rules": "set @x = 1.2.3.4\n"}
    found = rules('include "sub/a.rules"\nallow in from @x\ndeny # all', files)
    assert [str(rule) for rule in found.rules] == [
        "sub/a.rules:2: allow out tcp",
        "fw.rules:2: allow in from @x",
        "fw.rules:3: deny",
    ]
    assert found.files == ("fw.rules", "sub/a.rules", "sub/b.rules")


AN_ADDRESS = "expected an IP address, a prefix or a range"
A_PORT = "expected a port (0 to 65535), a range or a set of them, not"
A_CLAUSE = "expected a clause such as 'from', 'to', 'port' or 'log', or the end of the line, not"
TCP_OR_UDP = "expected 'tcp' or 'udp' before ports, and no other protocol"


WRONG = {
    "alow out tcp": (
        "1:1: expected a rule (allow, deny or reject), 'set' or 'include', not 'alow'; did you mean 'allow'?"
    ),
    "allow out tcp to 10.0.0.1/8": (
        f"1:18: {AN_ADDRESS}: 10.0.0.1/8 has host bits set: write 10.0.0.0/8, or 10.0.0.1"
    ),
    "allow out to 2001:db8::1/32": (
        f"1:14: {AN_ADDRESS}: 2001:db8::1/32 has host bits set: write 2001:db8::/32, or 2001:db8::1"
    ),
    "allow out to 10.0.0.0/33": f"1:14: {AN_ADDRESS}: /33 is not a prefix length: use 0 to 32",
    "allow out to 10.0.0.010": f"1:14: {AN_ADDRESS}: 10.0.0.010 is no IP address",
    "allow out to fe80::1%eth0": f"1:14: {AN_ADDRESS}: fe80::1%eth0 is no IP address",
    "allow out to 10.0.0.9-10.0.0.1": f"1:14: {AN_ADDRESS}: 10.0.0.9-10.0.0.1 ends before it begins",
    "allow out to example.com": (
        f"1:14: {AN_ADDRESS}: example.com is no IP address; names are not looked up: write addresses"
    ),
    "allow out tcp port htt": f"1:20: {A_PORT} 'htt'; did you mean 'http'?",
    "allow out tcp port 65536": "1:20: expected a port (0 to 65535), not 65536",
    "allow out tcp port 90-80": "1:20: expected a range from the lower number to the higher, not 90-80",
    "allow out tcp port": f"1:19: {A_PORT} the end of the line",
    "allow out tcp port 80,": f"1:23: {A_PORT} the end of the line",
    "allow out port 80": f"1:11: {TCP_OR_UDP}",
    "allow out icmp port 80": f"1:16: {TCP_OR_UDP}",
    "allow out tcp, icmp port 80": f"1:21: {TCP_OR_UDP}",
    "allow out tcp type 8": "1:15: expected 'icmp' or 'icmp6' before 'type', and no other protocol",
    "allow out icmp code 8": "1:16: expected 'type' before 'code'",
    "allow out icmp, icmp6 type 8": (
        "1:28: expected a name: a number means one type in icmp and another in icmp6"
    ),
    "allow out icmp type neighbour-solicitation": (
        "1:21: expected 'icmp6' before the type neighbour-solicitation, which only that has"
    ),
    "allow out from 10.0.0.1 to ::1": (
        "1:25: expected an IPv4 address, as 'from' is IPv4's; here are only IPv6 addresses"
    ),
    "allow out icmp to ::1": (
        "1:16: expected an IPv4 address, as the protocol is IPv4's; here are only IPv6 addresses"
    ),
    "allow out arp from 10.0.0.1": "1:15: expected IP before addresses, not another ethertype",
    "allow from @who": "1:12: expected a set that is defined above; @who is not",
    "set @a = 1.1.1.1, @a": "1:19: expected another set, as @a cannot hold itself",
    "set @a =": (
        "1:9: expected what is in the set, or 'empty', which matches nothing, not the end of the line"
    ),
    "set @a = { }": "1:13: expected items in the braces; a set that is to match nothing is '= empty'",
    "set @a = { 1.1.1.1": "1:19: expected '}', not the end of the line",
    "set @a = 80\nset @a = 81": "2:5: @a is defined already; a set has one definition",
    "set @a = 80, 1.1.1.1": "1:14: expected a number or a range or a set of them, not '1.1.1.1'",
    "set @a = 80\nallow from @a": f"2:12: {AN_ADDRESS} or a set of them; @a holds a number or a range",
    "set @a = 4096\nallow vlan @a": "2:12: expected a VLAN (0 to 4095), not 4096",
    "allow tcp limit 0/s": "1:17: expected a rate of 1 to 1000000, not '0/s'",
    "allow tcp limit 10": "1:19: expected 'connections', or a rate such as 10/s, not the end of the line",
    "deny tcp limit 10/s": "1:10: expected a limit in a rule that allows only",
    "allow tcp log log": "1:15: expected one 'log' in a rule, not two",
    "allow tcp from 1.1.1.1 from 1.1.1.2": "1:24: expected one 'from' in a rule, not two",
    "allow tcp 80": f"1:11: {A_CLAUSE} '80'; write 'port 80'",
    "allow in tcp source 80": "1:21: expected 'port', not '80'",
    "allow protocol 256": "1:16: expected the number of an IP protocol (0 to 255), not '256'",
    "allow ethertype 0x5dc": "1:17: expected an ethertype (1536 to 65535), not '0x5dc'",
    "allow tcp port " + "9" * 5000: (
        "1:16: expected a smaller number, not '9999999999999999999999999999999999999999...'"
    ),
    "allow ;": f"1:7: {A_CLAUSE} ';'; a rule is one line without an end mark",
    'include "x': "1:9: expected a closing quote, not '\"'",
    "include x": "1:9: expected a file name in \"quotes\", not 'x'",
    'include "gone"': "1:9: expected a file that can be read: gone: No such file or directory",
    'deny "\x1b[2J"': "1:6: expected a file name of characters that can be printed",
    'include "\x1b[2J"': "1:9: expected a file name of characters that can be printed",
    'include "fw.rules"': "1:9: expected another file: fw.rules is the one that includes this",
    "allow out\ndeny out": "3:1: expected a last rule for all else that goes in, such as 'deny any'",
    "deny tcp\n": "2:1: expected a last rule for all else that goes out, such as 'deny any'",
    "": "1:1: expected a last rule for all else that goes out, such as 'deny any'",
}


@pytest.mark.parametrize(("text", "said"), WRONG.items())
def test_what_is_wrong_is_named_with_its_place(text, said):
    error = wrong(text)
    assert str(error) == f"fw.rules:{said}"
    assert error.exit_code == 2


def test_an_excerpt_shows_the_place_and_nothing_that_a_terminal_obeys():
    error = wrong("allow out tcp\tto 1.2.3.4/99 # \x1b[2J")
    assert error.excerpt == "allow out tcp to 1.2.3.4/99 # ?[2J\n" + " " * 17 + "^"
    long = wrong(f"allow from {'1.1.1.1, ' * 100}nonsense to any\ndeny").excerpt.split("\n")
    assert long[0][long[1].index("^") :].startswith("nonsense")
    assert len(long[0]) <= 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"deny\nallow \0", "2:7"),
        (bytes(1 << 20), "1:1"),
        (b"\0" * (64 << 20), "1:1"),
        (b"deny\n# \xff", "2:3"),
        ("# ä".encode() + b"\xc3", "1:4"),
        (b"deny " + b"#" * 20_000, "1:16385"),
        (b"deny\n" * 100_001, "100001:1"),
        (b"\n" * 2_000_000, "1:1"),
        (b"# much\n" * (10 << 20), "1:1"),
        (b"set @a = {" + b"\n1.2.3.4" * 500_001, "500002:1"),
        (b"set @a = {" + b"\n{" * 1000, "2:1"),
    ],
)
def test_too_much_is_one_error_soon(data, place):
    began = time.process_time()
    error = wrong(data)
    assert str(error).startswith(f"fw.rules:{place}: expected")
    assert "\n" not in str(error)
    assert time.process_time() - began < 30


def test_a_file_without_end_is_read_to_the_bound_only():
    asked = []

    def endless(_name, octets):
        asked.append(octets)
        return b"#" * octets

    with pytest.raises(RuleError, match="at most 16 MiB"):
        parser.parse("-", endless)
    assert asked == [parser.OCTETS_MAX + 1]


def test_includes_are_bounded_in_depth_and_number():
    deep = {f"{i}.rules": f'include "{i + 1}.rules"' for i in range(30)}
    assert "at most 16 files within each other" in str(wrong('include "0.rules"', deep))
    cycle = {"a.rules": 'include "x/../b.rules"', "b.rules": 'include "a.rules"'}
    assert str(wrong('include "a.rules"', cycle)).startswith("b.rules:1:9: expected another file: a.rules")
    wide = {f"{i}.rules": f'include "{i + 1}.rules"\n' * 2 for i in range(14)} | {"14.rules": ""}
    assert "at most 1000 files" in str(wrong('include "0.rules"', wide))


def test_sets_of_sets_do_not_grow_unseen():
    text = "set @s0 = { " + ", ".join(f"10.{i >> 8}.{i & 255}.1" for i in range(400)) + " }\n"
    text = text.replace(", ", ",\n")
    text += "".join(f"set @s{i + 1} = {', '.join([f'@s{i}'] * 100)}\n" for i in range(30))
    assert "at most 500000 items" in str(wrong(text))


VALUES = [
    "10.0.0.0/8",
    "::/0",
    "@a",
    "80",
    "1-2",
    '"x"',
    "10/s",
    "aa:bb:cc:dd:ee:ff",
    "echo-request",
    "#",
    "\n",
]
SOUP = st.lists(st.sampled_from([*sorted(KEYWORDS | MARKS), *VALUES]), max_size=40)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=200), SOUP.map(lambda words: " ".join(words).encode())))
def test_whatever_is_in_a_file_it_is_rules_or_a_rule_error(data):
    error = None
    try:
        assert rules(data).rules
    except RuleError as raised:
        error = raised
    if error is not None:
        assert re.match(r"\S+:\d+:\d+: ", str(error))
        assert "\n" not in str(error)
        assert error.excerpt.count("\n") == 1


def test_what_is_gathered_to_be_sent_is_what_the_parser_asks_for(tmp_path):
    (tmp_path / "sub").mkdir()
    main, sub, last = tmp_path / "fw.rules", tmp_path / "sub" / "a.rules", tmp_path / "b.rules"
    main.write_text(
        'set @a = {\n10.0.0.0/8\n}\n \tinclude"sub/a.rules" # allow what it says\n#include "x"\ndeny'
    )
    sub.write_text('include "../b.rules"\n')
    last.write_text("allow out udp")
    gathered, asked = RuleReader(), RuleReader()
    gathered.gather(str(main))
    asked.load(str(main))
    assert gathered.files == asked.files
    assert set(asked.files) == {str(main), str(sub), str(last)}


def test_what_is_gathered_is_bounded(tmp_path):
    main = tmp_path / "fw.rules"
    main.write_text('include "fw.rules"\ninclude "gone"\ninclude "\\0"\ninclude "."\n')
    reader = RuleReader()
    reader.gather(str(main))
    assert list(reader.files) == [str(main)]
    assert len(reader.files[str(main)]) == main.stat().st_size
