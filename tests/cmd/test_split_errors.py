"""Options of vtl-split: what they mean, and the errors of those that mean nothing."""

from ipaddress import ip_address

import pytest
from click.testing import CliRunner

from vtl_tools.cmd.split import main
from vtl_tools.common.cli.parameters import ForwardParam

LOOPBACK = ip_address("127.0.0.1")

FORWARDS = {
    "tcp:8080:80": ("tcp", LOOPBACK, 8080, None, 80),
    "udp:0.0.0.0:5353:53": ("udp", ip_address("0.0.0.0"), 5353, None, 53),
    "tcp:80:10.0.2.16:8080": ("tcp", LOOPBACK, 80, ip_address("10.0.2.16"), 8080),
    "tcp:[::]:80:[fd76:746c:0:1::15]:80": ("tcp", ip_address("::"), 80, ip_address("fd76:746c:0:1::15"), 80),
}

WRONG = {
    "--forward 8080:80": "'8080:80' is no port to forward; write tcp:8080:80",
    "--forward sctp:8080:80": "is no port to forward",
    "--forward tcp:8080": "is no port to forward",
    "--forward tcp:0:80": "0 is no port",
    "--forward tcp:80:65536": "65536 is no port",
    "--forward tcp:1.2.3:80:80": "'1.2.3' does not appear to be an IPv4 or IPv6 address",
    "--forward tcp:80:224.0.0.1:80": "224.0.0.1 is not the address of a host",
    "--search a..b": "'a..b' is no domain; write a domain such as lab.example, or none",
    "--dns 1.2.3": "write an address such as 192.0.2.1",
    "--dns ::1 --dns ::2 --dns ::3 --dns ::4": "4 servers; give 3 at most",
    "--uplink eth0 --forward tcp:80:80": "--forward is for connections through sockets",
    "--uplink eth0 --search a": "--search is for connections through sockets",
}


@pytest.mark.parametrize("text", FORWARDS)
def test_a_forwarded_port_is_read(text: str) -> None:
    assert ForwardParam().convert(text, None, None) == FORWARDS[text]


@pytest.mark.parametrize("words", WRONG)
def test_a_wrong_option_is_told_with_its_remedy(words: str) -> None:
    ran = CliRunner().invoke(main, ["--iface", "vmnet1", *words.split()])
    assert (ran.exit_code, WRONG[words] in ran.output) == (2, True), ran.output
