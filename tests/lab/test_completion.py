"""Completion at TAB in a real bash, zsh and fish, by the files that the package installs."""

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import setup
from lab.netns import Host, Lab
from lab.wait import PATIENCE_S
from tests.cmd.tools import BIN, ROOT, TOOLS

pytestmark = pytest.mark.lab

TYPED = {
    "vtl-fw --upl": "vtl-fw --uplink ",
    "vtl-fw expl": "vtl-fw explain ",
    "vtl-fw explain --ru": "vtl-fw explain --rules ",
    "vtl-fw --iface vmn": "vtl-fw --iface vmnet1 ",
    "vtl-guard raise vmn": "vtl-guard raise vmnet1 ",
    "vtl-fw --rules offi": "vtl-fw --rules office.rules ",
    "vtl-fw status --link tap": "vtl-fw status --link tap7 ",
    "vtl-bridge --iface qemu:unix:/run/vm1 --half": "vtl-bridge --iface qemu:unix:/run/vm1 --half-duplex ",
}
"""The words typed before TAB, and the line after it."""
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ". /usr/share/bash-completion/bash_completion"),
    "zsh": (["zsh", "-f", "-i"], "fpath=($PWD/zsh $fpath); autoload -Uz compinit; compinit -u -D"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The completion of all tools, a rule file, and the socket of a service."""
    where = tmp_path_factory.mktemp("completion")
    setup.write_completions(ROOT, where)
    (where / "bash-completion").mkdir()
    (where / "bash-completion/completions").symlink_to(where / "bash")
    (where / "office.rules").touch()
    (where / "vtl-fw-tap7.sock").touch()
    return where


@pytest.fixture
def host(lab: Lab) -> Host:
    host = lab.host("host")
    lab.veth(host, "vmnet1", host, "peer")
    return host


def environment(files: Path) -> dict[str, str]:
    return {
        "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(files),
        "XDG_DATA_HOME": str(files),
        "VTL_RUN": str(files),
        "TERM": "dumb",
        "PS1": "$ ",
        "LC_ALL": "C.UTF-8",
    }


class Terminal:
    """A shell on a terminal."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.shown = ""

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._fd, text.encode())

    def shows(self, text: str) -> None:
        """Wait until the terminal shows a text after what was typed last."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.shown!r}"
            if select.select([self._fd], [], [], left)[0]:
                self.shown += os.read(self._fd, 4096).decode(errors="replace")


@contextmanager
def shell(host: Host, name: str, files: Path) -> Iterator[Terminal]:
    command, prepare = SHELLS[name]
    ours, theirs = pty.openpty()
    process = host.popen(
        *command, cwd=files, env=environment(files), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    try:
        terminal = Terminal(ours)
        terminal.type(f"{prepare}; echo prep''ared\n")
        terminal.shows("prepared\r\n")
        yield terminal
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        os.close(ours)


@pytest.mark.parametrize("name", SHELLS)
def test_tab_completes_options_verbs_interfaces_files_and_services(
    host: Host, files: Path, name: str
) -> None:
    with shell(host, name, files) as terminal:
        for typed, line in TYPED.items():
            terminal.type(f"{typed}\t")
            terminal.shows(line)
            terminal.type("\x15echo clea''red\n")  # Ctrl-U
            terminal.shows("cleared\r\n")


def test_fish_completes_the_same(host: Host, files: Path) -> None:
    for typed, line in TYPED.items():
        script = f"set -p fish_complete_path {files}/fish; complete -C '{typed}'"
        run = host.popen(
            "fish",
            "--no-config",
            "-c",
            script,
            cwd=files,
            env=environment(files),
            stdout=subprocess.PIPE,
            text=True,
        )
        candidates, _ = run.communicate(timeout=PATIENCE_S)
        assert [each.split("\t")[0] for each in candidates.splitlines()] == [line.split()[-1]], typed


def test_every_tool_has_a_completion_for_every_shell(files: Path) -> None:
    for tool in TOOLS:
        for shell, pattern in setup.FILES.items():
            assert tool in (files / shell / pattern.format(tool)).read_text()
