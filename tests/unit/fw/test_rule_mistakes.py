"""Mistakes in rule files: all of them at once, and with the remedy for those who know another firewall."""

import re
from pathlib import Path

import pytest
from fw import policy, rules

from vtl_tools.common.rules.position import ERRORS_MAX, RuleError
from vtl_tools.common.rules.rule import Rate
from vtl_tools.common.rules.service_names import SERVICE_PORTS


def mistakes(text, files=None):
    """The lines that a user sees."""
    with pytest.raises(RuleError) as caught:
        rules(text, files)
    return list(caught.value.lines)


def places(text, files=None):
    return [re.match(r"\S+?:\d+:\d+", line)[0] for line in mistakes(text, files)]


def last(text):
    return rules(f"{text}\ndeny").rules[-2]


# --- all at once


def test_all_errors_of_a_file_are_shown_at_once():
    text = "allow out tcp prot 80\nallow out tcp\nallow in tcp from 10.0.0.1/8\ndeny any\ndrop in\n"
    assert mistakes(text) == [
        "fw.rules:1:15: expected a clause such as 'from', 'to', 'port' or 'log', or the end of the line,"
        " not 'prot'; did you mean 'port'?",
        "fw.rules:3:19: expected an IP address, a prefix or a range: 10.0.0.1/8 has host bits set: write"
        " 10.0.0.0/8, or 10.0.0.1",
        "fw.rules:5:1: expected a rule (allow, deny or reject), 'set' or 'include', not 'drop'; write 'deny'",
    ]


def test_errors_of_included_files_are_among_them_each_once_and_in_order():
    files = {"a.rules": "alow\n\nalow\n", "b.rules": 'include "a.rules"\nalow\n'}
    text = 'alow\ninclude "b.rules"\ninclude "a.rules"\nalow\ndeny any\n'
    found = places(text, files)
    assert found == ["fw.rules:1:1", "fw.rules:4:1", "b.rules:2:1", "a.rules:1:1", "a.rules:3:1"]


def test_a_set_in_braces_shows_the_errors_of_each_line_and_causes_no_others():
    text = "set @a = { 10.0.0.0/8\n 10.0.0.1/8\n htp, 1.1.1.1\n10.0.0.2/8 }\nallow from @a\n"
    text += "set @b = nope\ndeny from @b\ndeny"
    assert places(text) == ["fw.rules:2:2", "fw.rules:3:2", "fw.rules:4:1", "fw.rules:6:10"]


def test_a_set_without_its_brace_ends_at_the_next_rule():
    (line,) = mistakes("set @a = {\n 10.0.0.0/8\nallow out to @a\ndeny any")
    assert line == "fw.rules:3:1: expected an item of the set, or '}' at its end, not 'allow'"


def test_a_file_that_cannot_be_read_hides_no_error_and_causes_none():
    found = mistakes('include "gone"\nallow from @defined-there\nalow\ndeny any')
    assert [line.partition(": ")[0] for line in found] == ["fw.rules:1:9", "fw.rules:3:1"]


def test_a_missing_last_rule_is_shown_beside_other_errors_unless_one_of_these_may_be_it():
    assert places("alow\nallow out tcp\n") == ["fw.rules:1:1", "fw.rules:3:1"]
    assert places("allow out tcp\ndney any\n") == ["fw.rules:2:1"]


def test_twenty_errors_are_shown_and_the_others_counted():
    found = mistakes("alow\n" * 25 + "deny any")
    assert len(found) == ERRORS_MAX + 1
    assert found[-1] == "fw.rules: and 5 more"
    assert mistakes("alow\n" * 100_000)[-1] == "fw.rules: and more than 1000 more"


def test_the_errors_are_values_for_programs():
    with pytest.raises(RuleError) as caught:
        rules("alow\n" * 22 + "deny any")
    assert caught.value.details["left_out"] == 2
    assert caught.value.details["errors"][1] == {
        "file": "fw.rules",
        "line": 2,
        "column": 1,
        "problem": (
            "expected a rule (allow, deny or reject), 'set' or 'include', not 'alow'; did you mean 'allow'?"
        ),
    }


# --- the words of others

REMEDIES = {
    # nothing but a misspelt word
    "alow out tcp": "did you mean 'allow'?",
    "allow otu tcp": "did you mean 'out'?",
    "allow out tpc": "did you mean 'tcp'?",
    "allow out tcp form 10.0.0.1": "did you mean 'from'?",
    "allow out tcp port htpps": "did you mean 'https'?",
    "allow in icmp type echo-requst": "did you mean 'echo-request'?",
    "ALLOW out tcp": "write 'allow'",
    "allow out TCP port 80": "write 'tcp'",
    # iptables
    "iptables -A INPUT -p tcp --dport 22 -j ACCEPT": "a rule here is such as 'allow in tcp port 22'",
    "-A INPUT -p tcp --dport 22 -j ACCEPT": "a rule here is such as 'allow in tcp port 22'",
    "ACCEPT in tcp": "write 'allow'",
    "allow in tcp --dport 22": "write 'port'",
    "allow in tcp --sport 22": "write 'source port'",
    "allow in -p tcp": "write the protocol alone, such as 'tcp'",
    "allow in tcp -s 10.0.0.1": "write 'from'",
    "allow in tcp -m state --state ESTABLISHED": "replies need no rule: leave this out",
    "allow in tcp ! 10.0.0.1": "there is no 'not': put the exception into a rule above",
    "deny in tcp log --log-prefix x": "leave this out: 'log' has no options",
    # nftables
    "tcp dport 80 accept": "expected allow, deny or reject before 'tcp'",
    "accept in tcp": "write 'allow'",
    "drop in tcp": "write 'deny'",
    "allow in tcp dport 80": "write 'port'",
    "allow in ip saddr 10.0.0.1": "write 'from'",
    "ct state established,related accept": "replies need no rule: leave this out",
    "allow in tcp established": "replies need no rule: leave this out",
    "allow out tcp to != 10.0.0.1": "there is no 'not': put the exception into a rule above",
    "allow out tcp port { 80, 443 }": "write values with commas between, without brackets",
    "table inet filter {": "a file is a list of rules, without tables and chains",
    "allow out tcp limit rate 10/second": "a rate is such as 10/s, 10/min or 10/hour",
    "allow out tcp limit 10/day": "a rate is such as 10/s, 10/min or 10/hour",
    "allow in icmp6 type nd-neighbor-solicit": "write 'neighbour-solicitation'",
    "allow in icmp type destination-unreachable": "write 'unreachable'",
    "allow in icmpv6": "write 'icmp6'",
    "deny any counter": "leave this out: each rule is counted",
    # ufw
    "ufw allow 22/tcp": "a rule here is such as 'allow in tcp port 22'",
    "allow 22/tcp": "write 'tcp port 22'",
    "allow udp/53": "write 'udp port 53'",
    "allow ssh": "write 'tcp port ssh', or 'udp'",
    "allow in proto tcp": "write the protocol alone, such as 'tcp'",
    "default deny incoming": "write 'deny any'",
    "allow outgoing": "write 'out'",
    "deny all": "write 'any'",
    # pf
    "pass in proto tcp": "write 'allow'",
    "block all": "write 'deny'",
    "allow in quick tcp": "leave this out: the first rule that matches decides",
    "allow in on eth0 tcp": "leave this out: the links are those of --iface and --uplink",
    "allow in tcp port 80 keep state": "replies need no rule: leave this out",
    "allow in tcp port 80:90": "write '80-90'",
    "allow in inet6 tcp": "write 'ip6'",
    "deny in tcp from <bad>": "the name of a set begins with '@'",
    # values in other places, or of other forms
    "allow out tcp 80": "write 'port 80'",
    "allow out tcp port 80 443": "write 'port 443', or a comma before it",
    "allow out tcp 10.0.0.1": "write 'to 10.0.0.1'",
    "allow out tcp to 10.0.0.1:443": "write '10.0.0.1 port 443'",
    "allow out tcp to [2001:db8::1]:443": "write '2001:db8::1 port 443'",
    "allow out tcp to 10.0.0.0/255.0.0.0": "/255.0.0.0 is a mask: write 10.0.0.0/8",
    "allow out tcp to example.com": "names are not looked up: write addresses",
    "allow out tcp to $WEB": "the name of a set begins with '@'",
    "allow out tcp port http-https": "write '80-443'",
    "allow out udp port dns": "write 'domain'",
    "allow out udp port = 53": "write the values right behind the word",
    "allow tcp out port 80": "expected 'out' before the clauses, as in 'allow out tcp port 80'",
    "allow out tcp port 80;": "a rule is one line without an end mark",
    "deny any // all else": "a comment begins with '#'",
    "allow in icmp type ping": "write 'echo-request'; its reply needs no rule",
    "allow in ping": "write 'icmp, icmp6 type echo-request'",
    "allow in icmp type neighbour-solicitation": "expected 'icmp6' before the type neighbour-solicitation",
    "allow out tcp limit 10 per second": "expected 'connections', or a rate such as 10/s, not 'per'",
    "allow in tcp 10.0.0.1": "write 'from 10.0.0.1'",
    "allow in tcp @admins": "expected 'from', 'to' or 'port' before '@admins'",
    "allow out tcp/udp port 53": "write 'tcp, udp'",
    "allow out tcp port 80 or 443": "write values with commas between",
    "allow out tcp port 80\u201390": "a range has '-' between its ends",
    "allow out tcp port any": "leave the clause out, so that it tests nothing",
    "allow both tcp port 80": "leave this out: a rule without 'in' or 'out' is for both",
    "allow out tcp to intranet": "names are not looked up: write addresses",
    "set web = 80": "write '@web'",
    "set all = 80": "write '@all'",
    "include “web.rules”": 'expected a file name in "quotes", not \'“web.rules”\'',
    "include web.rules": "expected a file name in \"quotes\", not 'web.rules'",
    "\ufeffallow out tcp": "save the file without a byte order mark",
    "allow\u00a0out tcp": r"not '\xa0out'",
    "allow dhcp": "write 'guest-basics'",
    "deny guest-basics": "expected 'allow guest-basics' alone in its line",
}  # fmt: skip


@pytest.mark.parametrize(("text", "remedy"), REMEDIES.items())
def test_the_remedy_for_what_users_of_other_firewalls_write_is_told(text, remedy):
    (line,) = mistakes(f"{text}\ndeny any")
    assert line.startswith("fw.rules:1:")
    assert remedy in line


@pytest.mark.parametrize(
    "text",
    ["allow from any", "allow out tcp from any to any port 80-90", "allow icmp", "allow out to 10.0.0.0/8"],
)
def test_what_others_write_and_is_right_here_is_taken(text):
    assert last(text).text == text


FORMS = (
    "{}", "{} in", "allow {}", "allow in {}", "allow in {} tcp", "allow in tcp {}", "allow in tcp {} 80",
    "allow in tcp {} 10.0.0.1", "allow in tcp to {}", "allow in tcp port {}", "allow in icmp6 type {}",
    "set {} = 80",
)  # fmt: skip
"""Rules with a place for what a remedy shows."""


def test_what_a_remedy_shows_is_right():
    written = [found for remedy in REMEDIES.values() for found in re.findall(r"write '([^']+)'", remedy)]
    for found in written:
        assert any(is_right(form.format(found)) for form in FORMS), found


def is_right(text):
    try:
        rules(f"{text}\ndeny any")
    except RuleError:
        return False
    return True


def test_a_hostile_word_is_shown_without_what_a_terminal_obeys():
    (line,) = mistakes("allow \x1b[31m\u202e\ndeny any")
    assert line.isprintable()
    assert r"\x1b[31m\u202e" in line


# --- what is taken


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("10/sec", Rate(10.0, 10, False)),
        ("10/second", Rate(10.0, 10, False)),
        ("6/min", Rate(0.1, 6, False)),
        ("6/minute", Rate(0.1, 6, False)),
        ("36/h", Rate(0.01, 36, False)),
        ("36/hour", Rate(0.01, 36, False)),
    ],
)
def test_a_rate_has_the_units_that_people_write(text, rate):
    assert last(f"allow in tcp limit {text}").rate == rate


def test_ports_have_names():
    assert last("allow out tcp port https").dport == ((443, 443),)
    assert last("allow in udp source port domain, 1024-65535 port bootpc").sport == ((53, 53), (1024, 65535))
    found = last("set @web = http, https\nset @all = {\n @web\n 8080\n}\nallow out tcp port @all, ssh")
    assert found.dport == ((22, 22), (80, 80), (443, 443), (8080, 8080))
    assert "expected a VLAN" in mistakes("allow vlan http\ndeny")[0]


def test_the_names_are_those_of_the_host_where_it_has_them():
    table: dict[str, set[int]] = {}
    for row in Path("/etc/services").read_text().splitlines():
        name, port, *aliases = row.partition("#")[0].split() or ["", "0/"]
        for word in name, *aliases:
            table.setdefault(word, set()).add(int(port.partition("/")[0]))
    known = {name: port for name, port in SERVICE_PORTS.items() if name in table}
    assert len(known) > 30
    assert {name: {port} for name, port in known.items()} == {name: table[name] for name in known}
    assert len(set(SERVICE_PORTS.values())) == len(SERVICE_PORTS)


def test_a_name_judges_as_its_port():
    assert len(policy("allow out tcp port https\ndeny any").rules) == 2
