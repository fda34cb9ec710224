"""The process that runs the services that are links: it starts, supervises and ends them.

A running vtl-vnet may start no program (common/host/confinement.py). So it forks this process before, which
keeps the rights of the user who started vtl-vnet. It takes names and specs, and makes the command lines
itself, since vtl-vnet reads foreign octets and may be taken over: no other programs than VTL's, and no
interface, file of output, socket or user by option. Each service gives up its own rights as always. One that
ends is started again, later each time. All end when vtl-vnet does.
"""

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host import privilege
from vtl_tools.common.host.privilege import Account
from vtl_tools.common.host.process import end
from vtl_tools.common.runtime import control
from vtl_tools.common.session.items import LINK_NAME
from vtl_tools.services.vnet.service_spec import ServiceSpec, parse_service

_SERVICES_MAX: Final = 256
MESSAGE_MAX: Final = 1 << 16
_FIRST_S: Final = 0.25
_LONGEST_S: Final = 10.0
_STEADY_S: Final = 30.0
"""Life after which a service counts as started well."""
_LOOK_S: Final = 0.02
_PATIENCE_S: Final = 3.0
_PATIENCE_ASKED_S: Final = 0.5
_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


def places_of(directory: Path, link: str) -> tuple[str, str, str]:
    """Return the paths of the channels at both sides of a service, and of its control socket."""
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


class Keeping:
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
            octets = self._channel.recv(MESSAGE_MAX)
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
            path = Path(places_of(self._directory, link)[2])
            with suppress(VTLError):
                answer = control.ask(path, "carry", patience_s=_PATIENCE_ASKED_S, take=take)
        told = json.dumps({"link": link, "answer": answer}).encode()
        if len(told) > MESSAGE_MAX:  # it has read foreign octets
            told = json.dumps({"link": link, "answer": {}}).encode()
        with suppress(OSError):
            self._channel.send(told)

    def _command(self, link: str, spec: ServiceSpec) -> list[str]:
        if not LINK_NAME.fullmatch(link):
            raise SpecError(f"link {link!r}: not a name")
        vm, net, control = places_of(self._directory, link)
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
