"""What goes wrong with vtl-freeze is told in one line; and its verbs between services, unprivileged."""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lab.wait import PATIENCE_S
from tests.cmd.tools import BIN, ROOT
from tests.unit.freeze.freeze_talk import Talk
from vtl_tools.services.freeze import state

MAC = "52:54:00:00:00:01"
OVERLAY = ("--iface", "channel:{tmp}/x,server")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory with a short name, since the path of a socket has 107 octets at most."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name)


@contextmanager
def freezing(tmp: Path, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    """Run vtl-freeze with what it keeps in tmp, until killed."""
    environment = {**os.environ, "VTL_RUN": str(tmp)}
    pipe = subprocess.PIPE
    command = [BIN / "vtl-freeze", *arguments]
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()  # so that it waits for the copy that writes its state


def ran(tmp: Path, *arguments: str | Path) -> tuple[int, str, str]:
    with freezing(tmp, *arguments) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, err


@contextmanager
def service(tmp: Path, name: str = "a", *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    link = ("--iface", f"channel:{tmp}/{name},server", "--mac", MAC, "--vm", name, "--json")
    with freezing(tmp, *link, *arguments) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert first["event"] == "ready", first
        yield process


def exported() -> bytes:
    """What another host says of a VM that is away."""
    talk = Talk().open().freeze()
    talk.peer(".", 1001, 201, 1000)
    return "".join(state.dump(talk.freezer, "a", talk.now)).encode()


LINES = {
    "no link": (2, [], "give --iface: the interface that the VM is behind"),
    "no such interface": (3, ["--iface", "nope0"], "nope0: no such network interface; list"),
    "no MAC of an overlay": (2, [*OVERLAY], "give --mac: on a link"),
    "no MAC at all": (2, ["--iface", "eth0", "--mac", "5"], "'5' is not an Ethernet address"),
    "a group's MAC": (2, ["-i", "eth0", "--mac", "ff:ff:ff:ff:ff:ff"], "not the address of one machine"),
    "no service": (6, ["start"], "no service runs here; start one"),
    "no service there": (6, ["stop", "--link", "vnet9"], "vtl-freeze-vnet9.sock: no service answers"),
    "no state": (1, [*OVERLAY, "--mac", MAC, "--state", "{tmp}/no/x"], "{tmp}/no/x: No such file"),
}


@pytest.mark.parametrize(("code", "arguments", "said"), LINES.values(), ids=LINES)
def test_an_error_is_one_line_and_a_status(
    tmp_path: Path, code: int, arguments: list[str], said: str
) -> None:
    status, out, err = ran(tmp_path, *(word.format(tmp=tmp_path) for word in arguments))
    assert err.count("\n") == 1
    assert (status, out) == (code, ""), err
    assert err.startswith("vtl-freeze")
    assert said.format(tmp=tmp_path) in err


def test_start_twice_and_stop_without_start_say_so(tmp_path: Path) -> None:
    with service(tmp_path):
        said = [ran(tmp_path, verb, "--link", "a") for verb in ("stop", "start", "start", "stop")]
    assert [status for status, _, _ in said] == [0] * 4
    lines = [err for _, _, err in said]
    held = "0 of 0 connections held\n"
    assert lines[:3] == ["was not frozen\n", f"frozen: {held}", f"was frozen already: {held}"]
    assert lines[3].startswith("after ")


def test_a_state_goes_from_service_to_service(tmp_path: Path) -> None:
    (tmp_path / "in.json").write_bytes(exported())
    with service(tmp_path, "a") as first, service(tmp_path, "b"):
        assert ran(tmp_path, "import", tmp_path / "in.json", "--link", "a")[::2] == (
            0,
            "1 connections, frozen\n",
        )
        assert ran(tmp_path, "export", tmp_path / "out.json", "--link", "a")[0] == 0
        assert (tmp_path / "out.json").stat().st_mode & 0o777 == 0o600
        before, after = json.loads(exported()), json.loads((tmp_path / "out.json").read_bytes())
        for timed in "idle_s", "held_s":
            before["connections"][0].pop(timed)
            after["connections"][0].pop(timed)
        assert after["connections"] == before["connections"]
        out = ran(tmp_path, "report", "--link", "a", "--json")[1]
        told = json.loads(out)
        assert (told["risks"], told["not_held"]) == (["data-waits"], "unsure")
        told = json.loads(ran(tmp_path, "start", "--link", "a", "--json")[1])
        assert (told["connections"], told["can_hold"], told["cannot_hold"]) == (1, 0, {"unsure": 1})
        said = ran(tmp_path, "start", "--link", "a")[2]
        assert said.startswith(
            "was frozen already: 0 of 1 connections held\nnot held: 1 unsure: the VM's last"
        )
        assert ran(tmp_path, "import", tmp_path / "out.json")[::2] == (
            2, "vtl-freeze: several services run here; choose one with --link\n"
        )  # fmt: skip
        assert ran(tmp_path, "export", "--link", "c")[0] == 6
        first.kill()
        first.wait(PATIENCE_S)
        with service(tmp_path, "a"):  # picks up what was there
            (told,) = [json.loads(x) for x in ran(tmp_path, "status", "--json")[1].splitlines() if '"a"' in x]
            assert (told["freeze"]["frozen"], told["freeze"]["connections"]) == (True, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (exported()[:500], "not JSON, or truncated"),
        (exported().replace(b'"version": 1', b'"version": 7'), "version 7 instead of 1"),
        (b"[]", "not a state of vtl-freeze"),
    ],
    ids=["cut off", "another version", "another thing"],
)
def test_what_is_no_export_changes_nothing(tmp_path: Path, text: bytes, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text)
    with service(tmp_path):
        status, out, err = ran(tmp_path, "import", path)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"vtl-freeze: {path}: ")
        assert said in err
        (told,) = [json.loads(line) for line in ran(tmp_path, "status", "--json")[1].splitlines()]
        assert not told["freeze"]["frozen"]
    status, out, err = ran(tmp_path, "--iface", f"channel:{tmp_path}/z,server", "--mac", MAC, "--state", path)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert said in err
    assert path.read_bytes() == text


def test_the_scripts_of_the_documentation_are_sound() -> None:
    scripts = (ROOT / "docs/freeze.md").read_text().split("```sh\n")[1:]
    assert scripts
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script.partition("```")[0], text=True, check=True)
