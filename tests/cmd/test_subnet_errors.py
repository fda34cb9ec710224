"""What is wrong with what a user of vtl-subnet wrote is told in one line, with status 2."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cmd.tools import BIN

LINKS = ("--iface", "a", "--default", "b", "--direct", "c")
ALLOW = ("--allow", "10.0.0.0/8")

LINES = {
    "no links": ([], "give --iface: the interface that the VM is behind"),
    "no default link": (["-i", "a", "-d", "c", *ALLOW], "give --default: the link to its network"),
    "no direct link": (["-i", "a", "-u", "b", *ALLOW], "give --direct: the link to the LAN that it shares"),
    "nobody allowed": (
        [*LINKS],
        "give --allow or --peer: the addresses that the direct link may be used for",
    ),
    "the same twice": (["-i", "a", "-u", "b", "-d", "a", *ALLOW], "a: given twice"),
    "no prefix": ([*LINKS, "--allow", "10.0.0.5/8"], "10.0.0.5/8 has host bits set; write 192.0.2.5 or"),
    "a peer without a place": ([*LINKS, "--peer", "10.0.0.5"], "write IP=MAC, such as 192.0.2.7=52:54:"),
    "a peer without an address": ([*LINKS, "--peer", "=52:54:00:00:00:01"], "write IP=MAC"),
    "a group": (
        [*LINKS, "--peer", "224.0.0.1=52:54:00:00:00:01"],
        "224.0.0.1=52:54:00:00:00:01: not the addresses of one machine",
    ),
    "a link-local peer": (
        [*LINKS, "--peer", "fe80::1=52:54:00:00:00:01"],
        "not the addresses of one machine",
    ),
    "a peer at a group": (
        [*LINKS, "--peer", "10.0.0.5=ff:ff:ff:ff:ff:ff"],
        "not the addresses of one machine",
    ),
    "no MAC address": ([*LINKS, *ALLOW, "--mac", "52:54"], "'52:54' is not an Ethernet address"),
    "a group's MAC address": (
        [*LINKS, *ALLOW, "--mac", "01:00:5e:00:00:01"],
        "not the address of one machine",
    ),
    "no address of the VM": (
        [*LINKS, *ALLOW, "--address", "vm"],
        "'vm' does not appear to be an IPv4 or IPv6",
    ),
    "a key that vouches for what is learned": (
        [*LINKS, *ALLOW, "--key", "{tmp}/long"],
        "give --address with --key: peers trust the key",
    ),
    "no such key": ([*LINKS, *ALLOW, "--key", "{tmp}/none"], "No such file or directory; make one with"),
    "a short key": ([*LINKS, *ALLOW, "--key", "{tmp}/short"], "{tmp}/short: shorter than 16 octets"),
}


@pytest.fixture
def tmp() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        (Path(name) / "short").write_text("  secret \n            ")
        (Path(name) / "long").write_text("a secret of the operator")
        for key in "short", "long":
            (Path(name) / key).chmod(0o600)
        yield Path(name)


@pytest.mark.parametrize(("arguments", "said"), LINES.values(), ids=LINES)
def test_an_error_is_one_line_and_status_2(tmp: Path, arguments: list[str], said: str) -> None:
    words = [word.format(tmp=tmp) for word in arguments]
    ran = subprocess.run([BIN / "vtl-subnet", *words], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("vtl-subnet: ")
    assert said.format(tmp=tmp) in ran.stderr
    assert ran.stderr.count("\n") == 1
