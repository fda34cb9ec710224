"""Recipes of docs/recipes.md as tests: each command runs as it stands there, and prints what stands below.

A block of a recipe is a console. `# ` is the prompt of root on the host, `$ ` that of an ordinary user, and
`vm# ` and `vm2# ` are those of root in a guest. A command continues after a backslash at the end of a line.

The lines up to the next prompt are the output, in which `...` stands for any text. Without such lines, or
with `...` alone, the command must succeed. `cat FILE` shows a file that the reader writes; the test does it.
"""

import difflib
import os
import re
import select
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab import kernel
from lab.agent import Agent
from lab.dns import Names
from lab.guest import QEMU, Guest, machine_arguments
from lab.netns import Host, Lab
from lab.user import NOBODY, as_user
from lab.wait import PATIENCE_S
from tests.running import BIN

DOCUMENT = Path(__file__).parents[1] / "docs" / "recipes.md"
PROMPT = re.compile(r"^(# |\$ |vm2?# )")
ROUTER, SITE = "192.168.1.1", "203.0.113.80"
TOOLS = ("vtl-bridge", "vtl-freeze", "vtl-fw", "vtl-guard", "vtl-subnet", "vtl-tor")

# A person waits until a program has ended before typing on; the next line of a test would come too early.
KILL = """kill() {
    builtin kill "$@" || return
    for each; do
        case $each in
            -*) ;;
            %*) wait "$each" ;;
            *) while builtin kill -0 "$each" 2>/dev/null; do sleep 0.02; done ;;
        esac
    done
    return 0
}
"""
STATE = (
    ("ip", "-brief", "link"),
    ("ip", "-brief", "-4", "address"),
    ("ip", "route"),
    ("nft", "list", "ruleset"),
    ("sysctl", "net.ipv4.ip_forward"),
)


@dataclass(frozen=True)
class Step:
    """A command with its prompt, and its output as the document shows it."""

    prompt: str
    command: str
    output: str

    def check(self, status: int, got: str) -> None:
        """Fail unless the command printed that."""
        said = f"{self.prompt}{self.command}\n{got}(status {status})"
        if self.output.strip() in ("", "..."):
            assert status == 0, said
            return
        parts = (re.escape(part) for part in self.output.strip().split("..."))
        lines = "\n".join(line.rstrip() for line in got.strip().splitlines())
        assert re.fullmatch(".*".join(parts), lines, re.DOTALL), f"{said}\n--- the document:\n{self.output}"


def titles() -> list[str]:
    """The recipes of the document that have commands."""
    return [title for title, text in _sections() if "```console" in text]


def steps(title: str) -> list[Step]:
    """The commands of a recipe, in order."""
    text = next(text for name, text in _sections() if name == title)
    return [
        step for block in re.findall(r"^```console\n(.*?)^```", text, re.M | re.S) for step in _steps(block)
    ]


def _sections() -> list[tuple[str, str]]:
    parts = re.split(r"^## (.+)$", DOCUMENT.read_text(), flags=re.M)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _steps(block: str) -> Iterator[Step]:
    lines = block.splitlines()
    assert PROMPT.match(lines[0]), f"a console begins with a prompt: {lines[0]}"
    while lines:
        prompt, _, command = lines.pop(0).partition(" ")
        while command.endswith("\\"):
            command += "\n" + lines.pop(0)
        output = []
        while lines and not PROMPT.match(lines[0]):
            output.append(lines.pop(0) + "\n")
        yield Step(f"{prompt} ", command, "".join(output))


class Shell:
    """A shell with job control, in which a user of a host types."""

    def __init__(self, lab: Lab, host: Host, home: Path, user: int | None, bins: list[Path]) -> None:
        self.home = home
        self._files = lab.dir / f"typed-{home.name}"
        self._typed = 0
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify = lab.dir / f"notify-{home.name}"
        self._notify.bind(str(notify))
        notify.chmod(0o777)
        lab.defer(self._notify.close)
        self._files.mkdir(mode=0o755)
        home.mkdir(mode=0o700)
        if user is not None:
            os.chown(home, user, user)
            os.chown(self._files, user, user)
        path = ":".join([*map(str, bins), "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        environment = {"PATH": path, "HOME": str(home), "NOTIFY_SOCKET": str(notify), "LC_ALL": "C.UTF-8"}
        environment |= {} if user is None else {"XDG_RUNTIME_DIR": str(home)}
        who = {} if user is None else {"user": user, "group": user}
        pipe = subprocess.PIPE
        self._bash = host.popen(
            "bash",
            "--norc",
            "--noprofile",
            cwd=home,
            env=environment,
            stdin=pipe,
            stdout=pipe,
            bufsize=0,
            **who,
        )
        self._answers = b""
        self._say("set -m\n" + KILL)

    def type(self, command: str) -> tuple[int, str]:
        """Run a command, and return its status and its output. A service in the background is ready then."""
        self._typed += 1
        out = self._files / str(self._typed)
        while select.select([self._notify], [], [], 0)[0]:
            self._notify.recv(4096)
        self._say(f"{{ {command}\n}} >{out} 2>&1 </dev/null; echo $?\n")
        status = self._answer()
        if command.endswith("&") and command.startswith("vtl-"):
            self._wait_until_ready(command, out)
        return status, out.read_text(errors="replace")

    def jobs(self) -> str:
        """The jobs that still run."""
        return self.type("jobs -r")[1]

    def _wait_until_ready(self, command: str, out: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if select.select([self._notify], [], [], 0.1)[0]:
                if b"READY=1" in self._notify.recv(4096):
                    return
                continue
            self._say("builtin kill -0 $!; echo $?\n")
            alive = self._answer() == 0
            assert alive, f"{command}\n{out.read_text()}"
            assert time.monotonic() < deadline, f"{command}: not ready\n{out.read_text()}"

    def _say(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text.encode())

    def _answer(self) -> int:
        assert self._bash.stdout is not None
        while b"\n" not in self._answers:
            ready = select.select([self._bash.stdout], [], [], PATIENCE_S)[0]
            octets = self._bash.stdout.read(4096) if ready else b""
            assert octets, "the shell gives no answer"
            self._answers += octets
        line, _, self._answers = self._answers.partition(b"\n")
        return int(line)


class Booted:
    """The guest that a recipe boots with QEMU. Like any distribution, it asks for a lease."""

    def __init__(self, lab: Lab, bins: Path) -> None:
        self._path = lab.dir / "agent"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._path.chmod(0o777)
        self._listener.listen()
        self._listener.settimeout(PATIENCE_S)
        lab.defer(self._listener.close)
        self._lab = lab
        self._agent: Agent | None = None
        self._leased = False
        log = lab.dir / "boot.log"
        log.touch()
        log.chmod(0o666)
        arguments = [*machine_arguments(log), "-chardev", f"socket,id=agent,path={self._path}"]
        program = bins / QEMU
        program.write_text(f'#!/bin/sh\nexec /usr/bin/{QEMU} {shlex.join(arguments)} "$@"\n')
        program.chmod(0o755)

    def boot(self) -> None:
        """Wait until the guest that QEMU was started for has booted."""
        connection = self._listener.accept()[0]
        self._lab.defer(connection.close)
        self._agent, self._leased = Agent(connection), False
        self._run("for each in /sys/class/net/eth*; do ip link set ${each##*/} up; done")

    def type(self, command: str) -> tuple[int, str]:
        """Run a command in the guest, once it has an address."""
        if not self._leased:
            status, out = self._run("udhcpc -i eth0 -n -q -f -t 60 -T 1 -A 1")
            assert status == 0, out
            self._leased = True
        return self._run(command)

    def _run(self, command: str) -> tuple[int, str]:
        assert self._agent is not None, "no guest was started"
        result = self._agent.sh(command, b"", PATIENCE_S)
        return result.status, result.out + result.err


Type = Callable[[str], tuple[int, str]]


class Operator:
    """Someone who types at a host, in a shell of root and in one of an ordinary user."""

    def __init__(self, lab: Lab, host: Host) -> None:
        self.lab, self.host = lab, host
        run = Path("/run/vtl")
        run.mkdir(mode=0o755, exist_ok=True)
        host.call(kernel.mount, "tmpfs", str(run), "tmpfs")  # this host's own
        bins = {name: lab.dir / f"bin-{name}" for name in ("all", "user")}
        for path in bins.values():
            path.mkdir(mode=0o755)
        for tool in TOOLS:
            program = bins["user"] / tool
            program.write_text(f'#!/bin/sh\nexec {shlex.join(as_user(lab, host, tool))} "$@"\n')
            program.chmod(0o755)
        self.root = Shell(lab, host, lab.dir / "root", None, [bins["all"], BIN])
        self.user = Shell(lab, host, lab.dir / "user", NOBODY, [bins["all"], bins["user"]])
        self.booted = Booted(lab, bins["all"])

    def follow(
        self,
        title: str,
        guests: Mapping[str, Type] | None = None,
        after: Callable[[Step], None] = lambda step: None,
    ) -> None:
        """Type every command of a recipe, and check that nothing of it is left on the host.

        guests: those that run already, by the prompts "vm# " and "vm2# ". after: called after each step.
        """
        homes = {"# ": self.root.home, "$ ": self.user.home}
        types: dict[str, Type] = {"# ": self.root.type, "$ ": self.user.type, "vm# ": self.booted.type}
        types |= guests or {}
        before = self._state()
        for step in steps(title):
            shown = re.fullmatch(r"cat ([\w.-]+)", step.command)
            if shown and step.prompt in homes:
                file = homes[step.prompt] / shown[1]
                file.write_text(step.output)
                file.chmod(0o644)
            status, output = types[step.prompt](step.command)
            print(f"{step.prompt}{step.command}\n{output}", end="")  # shown when the test fails
            step.check(status, output)
            if step.command.startswith(QEMU):
                self.booted.boot()
            after(step)
        left = "".join(difflib.ndiff(before, self._state()))
        assert not re.search("^[-+]", left, re.M), f"the recipe leaves something on the host:\n{left}"
        assert self.root.jobs() + self.user.jobs() == "", "the recipe leaves something running"

    def _state(self) -> list[str]:
        return [
            line for command in STATE for line in self.host.run(*command).stdout.splitlines(keepends=True)
        ]


def resolve(lab: Lab, host: Host, server: str) -> None:
    """Let the programs of a host ask a name server."""
    conf = lab.dir / f"resolv-{host.name}"
    conf.write_text(f"nameserver {server}\n")
    host.call(kernel.mount, str(conf), str(Path("/etc/resolv.conf").resolve()), None, kernel.MS_BIND)


def at_home(lab: Lab, uplink: str = "wlan0") -> Operator:
    """Make a host, 192.168.1.10, behind a router with a name server, and a web server on the Internet."""
    host, world = lab.host("host", ipv6=False), lab.host("world", ipv6=False)
    lab.veth(host, uplink, world, "eth0")
    host.addr(uplink, "192.168.1.10/24")
    world.addr("eth0", f"{ROUTER}/24", f"{SITE}/32")
    host.route("default", ROUTER)
    for port in 80, 8080:
        lab.http(world, port, {"index.html": b"hello\n"})
    lab.defer(Names(world, ROUTER, {"www.example.com": (SITE,)}).close)
    resolve(lab, host, ROUTER)
    return Operator(lab, host)


def in_guest(guest: Guest) -> Type:
    """Return what types in a guest of the lab."""

    def type_in_guest(command: str) -> tuple[int, str]:
        result = guest.sh(command)
        return result.status, result.out + result.err

    return type_in_guest
