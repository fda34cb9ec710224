"""Mistakes in the options of vtl-udt are told in one line; its keys are for one user."""

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cmd.tools import BIN

LINK = ("--iface", "channel:{tmp}/link,server")
KEY = ("--key-file", "{tmp}/udt.key")
PEER = ("--peer", "127.0.0.1:7700")
LINES = {
    "no link": (2, [*PEER, *KEY], "give --iface: the interface that the guest is behind"),
    "no peer": (2, [*LINK, *KEY], "give --peer or --listen"),
    "no key": (2, [*LINK, *PEER], "'vtl-udt keygen FILE' makes one"),
    "no such key": (2, [*LINK, *PEER, "--key-file", "{tmp}/no.key"], "{tmp}/no.key: No such file"),
    "a peer without a port": (2, [*LINK, *KEY, "--peer", "192.0.2.9"], "write HOST:PORT or PREFIX=HOST:PORT"),
    "a prefix with host bits": (2, [*LINK, *KEY, "--peer", "10.2.0.1/16=h:1"], "has host bits set"),
    "a prefix of two peers": (2, [*LINK, *KEY, *PEER, "--peer", "127.0.0.1:7701"], "a prefix is behind one"),
    "nowhere to listen": (2, [*LINK, *KEY, "--listen", "7700"], "write ADDRESS:PORT, such as 0.0.0.0:7700"),
    "a list without a door": (2, [*LINK, *KEY, *PEER, "--to", "10.2.0.0/16"], "--to is for a far module"),
    "a router of IPv6": (2, [*LINK, *KEY, "--listen", "[::]:1", "--to", "10.2.0.0/16=::1"], "no router of"),
    "UDT over IPv6": (2, [*LINK, *KEY, "--peer", "[::1]:1", "--transport", "udt"], "udt carries IPv4 only"),
    "no such host": (3, [*LINK, *KEY, "--peer", "nohost.invalid:1"], "nohost.invalid: "),
    "an address that is not ours": (
        3, [*LINK, *KEY, "--listen", "192.0.2.77:1", "--transport", "tcp"], "192.0.2.77:1: cannot listen",
    ),
}  # fmt: skip

WITHOUT_UDT4PY = """
import sys
sys.modules["udt4py"] = None
from vtl_tools.cmd.udt import main
main(prog_name="vtl-udt")
"""


def ran(tmp: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    words = [word.format(tmp=tmp) for word in arguments]
    environment = {"VTL_RUN": str(tmp)}
    return subprocess.run(
        [BIN / "vtl-udt", *words], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("status", "arguments", "said"), LINES.values(), ids=LINES)
def test_a_mistake_is_one_line_and_a_status(
    tmp_path: Path, status: int, arguments: list[str], said: str
) -> None:
    (tmp_path / "udt.key").write_bytes(bytes(range(32)))
    (tmp_path / "udt.key").chmod(0o600)
    done = ran(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("vtl-udt: ")
    assert said.format(tmp=tmp_path) in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_key_is_random_and_for_its_user_only_and_never_replaced(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("one", "other")]
    for path in paths:
        assert ran(tmp_path, "keygen", str(path)).returncode == 0
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert re.fullmatch("[0-9a-f]{64}\n", path.read_text())
    first = paths[0].read_text()
    assert first != paths[1].read_text()
    again = ran(tmp_path, "keygen", str(paths[0]))
    assert (again.returncode, paths[0].read_text()) == (1, first)
    assert "exists; a key is never replaced" in again.stderr


def test_without_udt4py_the_remedy_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "udt.key").write_bytes(bytes(range(32)))
    (tmp_path / "udt.key").chmod(0o600)
    words = [word.format(tmp=tmp_path) for word in (*LINK, *KEY, *PEER, "--transport", "udt")]
    command = [sys.executable, "-c", WITHOUT_UDT4PY, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'vtl-tools[udt]'" in done.stderr
    assert done.stderr.count("\n") == 1
