"""The choice of connections by conditions of the rule language, as --only has it."""

import pytest

from vtl_tools.common.packet import address
from vtl_tools.common.rules.connections import ConnectionChoice, FirstSegment
from vtl_tools.common.rules.position import RuleError
from vtl_tools.common.rules.rule import IN, OUT

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
FIRST = FirstSegment(OUT, address.ip("10.0.0.1"), address.ip("192.0.2.7"), 40000, 5001, *MACS)
SIX = FirstSegment(IN, address.ip("2001:db8::7"), address.ip("fd00::1"), 50000, 22, *MACS)


@pytest.mark.parametrize(
    ("conditions", "first", "six"),
    [
        ((), True, True),
        (("any",), True, True),
        (("dst port 5001",), True, False),
        (("port 5001",), True, False),
        (("tcp port ssh, 5000-5010",), True, True),
        (("port 80", "port 22"), False, True),
        (("in",), False, True),
        (("out to 192.0.2.0/24 port 5001",), True, False),
        (("in to 192.0.2.0/24",), False, False),
        (("from 2001:db8::/32",), False, True),
        (("src port 40000",), True, False),
        (("source port 1-1024",), False, False),
        (("from mac 02:00:00:00:00:01",), True, True),
        (("to mac 02:00:00:00:00:01",), False, False),
        (("vlan 7",), False, False),
        (("port 5001 # the transfer",), True, False),
    ],
)
def test_a_connection_is_chosen_by_its_first_segment(conditions, first, six):
    choice = ConnectionChoice.parse("--only", conditions)
    assert (FIRST in choice, SIX in choice) == (first, six)


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        ("udp port 53", "--only:1:1: expected 'tcp' or no protocol: the connections are TCP's"),
        ("port 80 log", "--only:1:9: expected only what chooses connections"),
        ("port 80 limit 5/s", "--only:1:9: expected only what chooses connections"),
        ("out to @resolvers", "--only:1:5: expected addresses: only a firewall knows this set"),
        ("dst 192.0.2.7", "write 'to'"),
        ("dport 80", "write 'port'"),
        ("port 80 port 81", "expected one 'port' in a rule, not two"),
        ("port 99999", "expected a port (0 to 65535)"),
        ("src port 1 src port 2 dst port", "expected"),
        ("allow port 80", "--only:1:1: expected"),
        ("\0", "--only:1:1: expected text"),
        ("to @admins", "expected a set that is defined above"),
    ],
)
def test_a_mistake_names_option_column_and_remedy(condition, told):
    with pytest.raises(RuleError) as found:
        ConnectionChoice.parse("--only", [condition])
    assert told in str(found.value)
