"""The systemd units: sound to systemd, confined, and with command lines that the tools take."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cmd.tools import BIN, ROOT, SERVICES, command

UNITS = sorted((ROOT / "contrib/systemd").glob("*.service"))
EXPOSURE_MAX = 30
"""Tenths of systemd's measure, from 0 (confined) to 100."""


def analyze(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run systemd-analyze where the executables are found as an installation has them."""
    script = 'mount --bind "$0" /usr/local/bin && exec systemd-analyze "$@"'
    words = ["unshare", "--mount", "sh", "-c", script, BIN, *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False)


def settings(unit: str) -> Iterator[tuple[str, str]]:
    """The variables of a unit, and those of the example at its head: name, value."""
    for line in re.findall(r"^(?:Environment=|#   )([A-Z]\w*=.*)$", unit, re.M):
        pairs = re.findall(r"([A-Z]\w*)=(.*?)(?=\s{2,}\(|$| [A-Z]\w*=)", line)
        yield from ((name, value.replace("INTERFACE", "vmnet1")) for name, value in pairs)


def words_of(unit: str, key: str) -> list[str]:
    """A command line of a unit as systemd passes it."""
    (line,) = re.findall(rf"^{key}=[-+]?(.*)$", unit, re.M)
    known = dict(settings(unit))
    words = []
    for word in line.replace("%I", "vmnet1").split():
        if word.startswith("${"):
            words.append(known[word[2:-1]])
        elif word.startswith("$"):
            words += shlex.split(known.get(word[1:], ""))
        else:
            words.append(word)
    return [word.replace("%S", "/var/lib").replace("%I", "vmnet1") for word in words]


def test_every_service_and_the_guard_have_a_unit() -> None:
    assert {path.name for path in UNITS} == {f"{tool}@.service" for tool in (*SERVICES, "vtl-guard")}


@pytest.mark.lab
def test_the_units_are_sound_to_systemd() -> None:
    ran = analyze("verify", "--man=no", *UNITS)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.lab
@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_confined(path: Path) -> None:
    ran = analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", path)
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_the_command_lines_of_a_unit_are_what_the_tool_takes(path: Path, tmp_path: Path) -> None:
    unit, key = path.read_text(), tmp_path / "udt.key"
    key.write_bytes(bytes(range(32)))  # read while the command line is
    tool, *words = [word.replace("/etc/vtl/udt.key", str(key)) for word in words_of(unit, "ExecStart")]
    assert tool == path.stem.removesuffix("@")
    group = command(tool)
    if tool == "vtl-guard":
        for verb, iface in words, words_of(unit, "ExecStop")[1:]:
            found = group.commands[verb].make_context(verb, [iface])
            assert found.params["iface"] == "vmnet1"
        return
    for extra in [], ["--mac", "52:54:00:00:00:01"] if "$VM_OPTIONS" in unit else []:
        params = group.make_context(tool, [*words, *extra]).params
        assert "vmnet1" in params["iface"]
        form = "process" if tool == "vortex-client" else "keep"  # its guard is on no guest's interface
        assert params.get("guard", form) == form
    assert words_of(unit, "ExecReload")[:2] == ["kill", "-HUP"]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_service_starts_with_the_interface_behind_a_guard(path: Path) -> None:
    unit, device = path.read_text(), "sys-subsystem-net-devices-%i.device"
    assert f"BindsTo={device}" in unit
    assert f"WantedBy={device}" in unit
    assert re.search(rf"^After=.*{re.escape(device)}", unit, re.M)
    if "--guard keep" in unit:
        assert "Requires=vtl-guard@%i.service" in unit
        assert re.search(r"^After=.*vtl-guard@%i.service", unit, re.M)
