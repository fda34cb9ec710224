"""`allow guest-basics`: rules for what a guest needs of its network, beside ARP and neighbour discovery.

None of them reaches further than the link, but for DNS to the VM's resolvers.
"""

from dataclasses import replace
from typing import Final

from vtl_tools.common.rules.clauses import take_rule
from vtl_tools.common.rules.cursor import Cursor
from vtl_tools.common.rules.lexer import RuleSource
from vtl_tools.common.rules.rule import Rule
from vtl_tools.common.rules.sets import Sets

NAME: Final = "guest-basics"

LINK_RULES: Final = (
    "allow out udp source port 68 to 255.255.255.255 port 67",
    "allow out udp source port 68 to @dhcp-servers port 67",
    "allow in udp source port 67 port 68 asked",
    "allow out udp from fe80::/10 source port 546 to ff02::1:2 port 547",
    "allow in udp from fe80::/10 source port 547 to fe80::/10 port 546 asked",
    "allow out icmp6 type mld-report, mld-done, mld2-report to ff02::/16",
    "allow in icmp6 type mld-query from fe80::/10 to ff02::/16",
)
"""DHCP, DHCPv6 and MLD, without which a switch that snoops sends no neighbour discovery to the VM."""
DNS_RULE: Final = "allow out tcp, udp to @resolvers port 53"


def take_preset(cursor: Cursor, sets: Sets) -> list[Rule]:
    """Parse `allow guest-basics`, and return the rules that it stands for. Raises RuleError.

    They have the place of the statement, and a number and a text of their own.
    """
    place = cursor.place
    cursor.next()
    cursor.next()
    rules = [_rule(text, sets) for text in (*LINK_RULES, DNS_RULE)]
    if cursor.accept("resolver"):
        given = sets.addresses(cursor)
        text = DNS_RULE.replace("@resolvers", str(given))
        rules[-1] = replace(rules[-1], text=text, dst=given, roles=None)
    return [replace(rule, place=place, part=part) for part, rule in enumerate(rules, 1)]


def _rule(text: str, sets: Sets) -> Rule:
    return take_rule(Cursor(RuleSource(NAME, text.encode()), 1), sets)[0]
