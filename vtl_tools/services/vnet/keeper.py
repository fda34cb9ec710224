"""Runs the services that are links: a process beside vtl-vnet starts, supervises and ends them.

A running vtl-vnet may start no program (common/host/confinement.py). So it forks this process before, which
keeps the rights of the user who started vtl-vnet. It takes names and specs, and makes the command lines
itself, since vtl-vnet reads foreign octets and may be taken over: no other programs than VTL's, and no
interface, file of output, socket or user by option. Each service gives up its own rights as always. One that
ends is started again, later each time. All end when vtl-vnet does.
"""

import ctypes
import json
import logging
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host import privilege
from vtl_tools.common.host.privilege import Account
from vtl_tools.common.host.process import close_all_but, end
from vtl_tools.common.runtime import control
from vtl_tools.common.session.items import LINK_NAME

log = logging.getLogger(__name__)

SIDES: Final = {
    "ack": 2, "bridge": 2, "freeze": 2, "fw": 2, "split": 1, "subnet": 1, "tor": 1, "udt": 2, "wan": 2,
}  # fmt: skip
"""The services that can be a link, with the number of their links."""
ENDS_TCP: Final = frozenset(("ack", "split", "subnet", "tor", "udt"))
"""Those whose TCP connections do not outlast them."""
_OURS: Final = frozenset(
    (
        *(
            "iface",
            "uplink",
            "default",
            "direct",
            "control",
            "user",
            "guard",
            "log",
            "watch",
            "json",
            "metrics",
        ),
        *(
            "pcap",
            "pcap-size",
            "pcap-files",
            "pcap-overwrite",
            "pcap-rules",
            "pcap-dropped",
            "state",
            "version",
        ),
        *("no-reconnect", "help", "start-tor", "torrc", "workers", "realtime", "qmp"),
    )
)
"""Options that a user of vtl-vnet cannot give to a service."""
_SERVICES_MAX: Final = 256
_MESSAGE_MAX: Final = 1 << 16
_FIRST_S: Final = 0.25
_LONGEST_S: Final = 10.0
_STEADY_S: Final = 30.0
"""Life after which a service counts as started well."""
_LOOK_S: Final = 0.02
_PATIENCE_S: Final = 3.0
_PATIENCE_ASKED_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service that is a link: the spec, its name, its options as words, and the number of its links."""

    text: str
    name: str
    words: tuple[str, ...]
    sides: int


def parse_service(spec: str) -> ServiceSpec:
    """Return the service of service:NAME?option=value&flag. Raises SpecError."""
    name, mark, query = spec.removeprefix("service:").partition("?")
    if name not in SIDES:
        raise SpecError(f"{spec!r}: no service that can be a link; write one of {', '.join(SIDES)}")
    words: list[str] = []
    sides = SIDES[name]
    try:
        query = "&".join(word if "=" in word else f"{word}=" for word in query.split("&") if word)
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(mark), max_num_fields=64)
    except ValueError:
        raise SpecError(f"{spec!r}: cannot be read; write service:NAME?option=value&option=value") from None
    for option, value in pairs:
        if (name, option, value) == ("split", "uplink", ""):
            sides = 2
            continue
        if option in _OURS or not option.replace("-", "").isalnum() or not value.isprintable():
            raise SpecError(f"{spec!r}: {option!r} is not to be given; leave it out (vtl-vnet(1))")
        words += [f"--{option}={value}"] if value else [f"--{option}"]
    return ServiceSpec(spec, name, tuple(words), sides)


def _places(directory: Path, link: str) -> tuple[str, str, str]:
    base = f"{directory}/{link}"
    return f"{base}.vm", f"{base}.net", f"{base}.sock"


@dataclass
class _Kept:
    """A service in the keeper's process."""

    command: list[str]
    process: "subprocess.Popen[bytes] | None" = None
    pidfd: int = -1
    began_at: float = 0.0
    due: float = 0.0
    delay_s: float = _FIRST_S
    stdin: int = subprocess.DEVNULL
    """Or a descriptor of its key: no file is left if the keeper is killed."""
    unowned: list[str] = field(default_factory=list)
    """Sockets that it will listen on, and that vtl-vnet's user is to own."""


class ServiceKeeper:
    """The process, as vtl-vnet sees it; a Source. on_change: is called with a link's name, its PID (0: it has
    ended) and its exit status. on_answer: with a link's name and the answer to ask(), {} if there was none.

    program: returns the command line of an executable of VTL. become: the user that vtl-vnet changes to.
    evpn: the evpn: links from the start.
    """

    def __init__(
        self, program: Callable[[str], list[str]], become: Account | None, evpn: Iterable[str] = ()
    ) -> None:
        self.on_change: Callable[[str, int, int], object] = lambda name, pid, status: None
        self.on_answer: Callable[[str, dict[str, Any]], object] = lambda name, answer: None
        self.directory = Path(tempfile.mkdtemp(prefix="vtl-vnet-"))
        self.directory.chmod(0o711)  # only its owner can place a file there
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            try:
                close_all_but(2, theirs.fileno())
                _Keeping(theirs, self.directory, program, become, evpn).run()
            finally:
                os._exit(1)
        theirs.close()
        self._channel.setblocking(False)

    def places(self, link: str) -> tuple[str, str, str]:
        """Return the paths of the channels at both sides of a service, and of its control socket."""
        return _places(self.directory, link)

    def start(self, link: str, spec: ServiceSpec, secret: bytes = b"") -> None:
        """Start a service. secret: what its --key-file is to have, if anything. Raises VTLError."""
        self._tell({"start": link, "service": spec.text, "secret": secret.hex()})

    def ask(self, link: str, *, take: bool | None = None) -> None:
        """Ask a service with --on-demand what it carries. take: whether it takes connections from now on.

        Raises VTLError.
        """
        self._tell({"ask": link, "take": take})

    def stop(self, link: str) -> None:
        """End a service. Raises VTLError."""
        self._tell({"stop": link})

    def watch_routes(self, spec: str, *, wanted: bool) -> None:
        """Let the routes of an evpn: link be withdrawn when vtl-vnet has ended in any way, or not any more.

        Raises VTLError.
        """
        self._tell({"evpn": spec, "wanted": wanted})

    def _tell(self, message: dict[str, object]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as e:
            raise VTLError(f"services: {e.strerror}; start vtl-vnet again") from None

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._channel.fileno()

    def poll(self, now: float) -> bool:
        """Take what the process tells. Raises VTLError if it has ended: with it, all services have."""
        try:
            octets = self._channel.recv(_MESSAGE_MAX)
        except OSError:
            return False
        if not octets:
            raise VTLError("services: the process that runs them has ended; start vtl-vnet again")
        told = json.loads(octets)
        if "answer" in told:
            self.on_answer(told["link"], told["answer"])
            return True
        self.on_change(told["link"], told["pid"], told["status"])
        return True

    def close(self) -> None:
        """End the process, and all services. Idempotent."""
        self._channel.close()
        if self._pid:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


class _Keeping:
    """The process itself."""

    def __init__(
        self,
        channel: socket.socket,
        directory: Path,
        program: Callable[[str], list[str]],
        become: Account | None,
        evpn: Iterable[str],
    ) -> None:
        self._channel, self._directory, self._become = channel, directory, become
        self._evpn, self._evpn_from_start = set[str](), frozenset(evpn)
        self._program = program
        self._kept: dict[str, _Kept] = {}

    def run(self) -> None:
        """Serve until vtl-vnet has ended."""
        signal.set_wakeup_fd(-1)
        os.setsid()
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)
        with suppress(OSError):
            Path("/proc/self/comm").write_text("vtl-keeper")
        while self._turn():
            pass
        for kept in self._kept.values():
            if kept.process is not None:
                kept.process.terminate()
        for link in list(self._kept):
            self._stop(link)
        for path in self._directory.iterdir():
            path.unlink(missing_ok=True)
        self._directory.rmdir()
        self._withdraw()
        os._exit(0)

    def _withdraw(self) -> None:
        """Withdraw the routes of vtl-vnet. For a link that came later, with the rights of vtl-vnet only."""
        if not self._evpn:
            return
        from vtl_tools.services.vnet.evpn.spec import parse_evpn
        from vtl_tools.services.vnet.evpn.withdrawal import withdraw_all

        later = self._evpn - self._evpn_from_start
        for links in self._evpn - later, later:
            if links is later and self._become is not None:
                privilege.drop_privileges((), self._become)
            for spec in links:
                asked = parse_evpn(spec)
                withdraw_all(spec, asked.gobgp, asked.network)

    def _turn(self) -> bool:
        """Wait for something and do it. Return False when vtl-vnet has ended."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        for kept in self._kept.values():
            if kept.process is not None:
                poll.register(kept.pidfd, select.POLLIN)
        dues = [kept.due for kept in self._kept.values() if kept.process is None]
        patience_s = max(0.0, min(dues) - time.monotonic()) if dues else None
        if any(self._hand_over(kept) for kept in self._kept.values()):
            patience_s = _LOOK_S
        ready = {fd for fd, _ in poll.poll(None if patience_s is None else patience_s * 1000 + 1)}
        for link, kept in self._kept.items():
            if kept.process is not None and kept.pidfd in ready:
                self._on_end(link, kept)
            elif kept.process is None and time.monotonic() >= kept.due:
                self._start(link, kept)
        return self._channel.fileno() not in ready or self._serve()

    def _hand_over(self, kept: _Kept) -> bool:
        """Give new sockets to vtl-vnet's user. Return whether some are not there yet."""
        if self._become is None or kept.process is None:
            return False
        for path in list(kept.unowned):
            with suppress(FileNotFoundError):
                os.chown(path, self._become.uid, self._become.gid, follow_symlinks=False)
                kept.unowned.remove(path)
        return bool(kept.unowned)

    def _serve(self) -> bool:
        """Do what vtl-vnet asks for. Return False if it has ended, or asks for what it never would."""
        try:
            octets = self._channel.recv(_MESSAGE_MAX)
            if not octets:
                return False
            asked = json.loads(octets)
            if "stop" in asked:
                self._stop(asked["stop"])
                return True
            if "evpn" in asked:
                (self._evpn.add if asked["wanted"] else self._evpn.discard)(str(asked["evpn"]))
                return len(self._evpn) <= _SERVICES_MAX
            if "ask" in asked:
                self._ask(asked["ask"], asked.get("take"))
                return True
            link, secret = asked["start"], bytes.fromhex(asked["secret"])
            command = self._command(link, parse_service(asked["service"]))
        except (OSError, AttributeError, KeyError, TypeError, ValueError, SpecError):
            return False
        if link in self._kept or len(self._kept) >= _SERVICES_MAX:
            return False
        kept = self._kept[link] = _Kept(command)
        if secret:
            kept.stdin = _hidden(secret.hex())
            command.append("--key-file=/dev/stdin")
        self._start(link, kept)
        return True

    def _ask(self, link: str, take: bool | None) -> None:
        """Have a service begin or cease to take connections, and pass on what it says of them."""
        answer: control.Result = {}
        if link in self._kept:
            path = Path(_places(self._directory, link)[2])
            with suppress(VTLError):
                answer = control.ask(path, "carry", patience_s=_PATIENCE_ASKED_S, take=take)
        told = json.dumps({"link": link, "answer": answer}).encode()
        if len(told) > _MESSAGE_MAX:  # it has read foreign octets
            told = json.dumps({"link": link, "answer": {}}).encode()
        with suppress(OSError):
            self._channel.send(told)

    def _command(self, link: str, spec: ServiceSpec) -> list[str]:
        if not LINK_NAME.fullmatch(link):
            raise SpecError(f"link {link!r}: not a name")
        vm, net, control = _places(self._directory, link)
        sides = ["--iface", f"channel:{vm},server"]
        if spec.sides > 1:
            sides += ["--uplink", f"channel:{net},server"]
        return [*self._program(f"vtl-{spec.name}"), *sides, *spec.words, "--control", control]

    def _start(self, link: str, kept: _Kept) -> None:
        kept.began_at = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if k not in ("NOTIFY_SOCKET", "VTL_RUN")}
        environment["VTL_RUN"] = str(self._directory)
        kept.unowned = [
            word.removeprefix("channel:").removesuffix(",server")
            for word in kept.command
            if word.startswith("channel:")
        ]
        for path in kept.unowned:
            Path(path).unlink(missing_ok=True)  # of a service that was killed
        try:
            kept.process = subprocess.Popen(
                kept.command, stdin=kept.stdin, stdout=subprocess.DEVNULL, env=environment,
                preexec_fn=_die_with_parent,
            )  # fmt: skip
        except OSError:  # no process, memory or descriptor left: the other services go on
            self._retry(link, kept, os.EX_OSERR)
            return
        kept.pidfd = os.pidfd_open(kept.process.pid)
        self._say(link, kept.process.pid, 0)

    def _on_end(self, link: str, kept: _Kept) -> None:
        assert kept.process is not None
        status = kept.process.wait()
        os.close(kept.pidfd)
        self._retry(link, kept, status)

    def _retry(self, link: str, kept: _Kept, status: int) -> None:
        """Start a service again, later each time."""
        now = time.monotonic()
        kept.delay_s = _FIRST_S if now > kept.began_at + _STEADY_S else min(2 * kept.delay_s, _LONGEST_S)
        kept.process, kept.due = None, now + kept.delay_s
        self._say(link, 0, status)

    def _stop(self, link: str) -> None:
        kept = self._kept.pop(link, None)
        if kept is not None and kept.stdin >= 0:
            os.close(kept.stdin)
        if kept is not None and kept.process is not None:
            end(kept.process, _PATIENCE_S)
            os.close(kept.pidfd)

    def _say(self, link: str, pid: int, status: int) -> None:
        with suppress(OSError):
            self._channel.send(json.dumps({"link": link, "pid": pid, "status": status}).encode())


def _hidden(text: str) -> int:
    """Return the descriptor of a file that has no name."""
    fd = os.memfd_create("vtl-vnet-key")
    os.fchmod(fd, 0o600)
    os.write(fd, text.encode())
    return fd


def _die_with_parent() -> None:
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        signal.signal(number, signal.SIG_DFL)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
