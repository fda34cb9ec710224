"""Runs a tor process for the service: starts it, restarts it when it ends, and ends it with the service.

A keeper process starts and ends tor. It is forked before the service gives up its privileges, since starting
tor as another user and removing its files may take root, which the process that reads frames must not be.
"""

import grp
import logging
import os
import pwd
import re
import select
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import privilege
from vtl_tools.common.host.process import end

log = logging.getLogger(__name__)

USERS: Final = ("debian-tor", "tor", "_tor", "toranon")
"""Names of the user that distributions run tor as; used if the service is started by root."""

RETRY_S: Final = 1.0
"""Time before a tor that ended is restarted; doubled each time, up to RETRY_MAX_S."""
RETRY_MAX_S: Final = 60.0
_STEADY_S: Final = 300.0
"""After a run of so long the time is RETRY_S again."""
_END_S: Final = 5.0
_LINE_MAX: Final = 4096
_READ_MAX: Final = 65536

_BOOTSTRAPPED: Final = re.compile(r"Bootstrapped (\d+)%[^:]*: (.*)")
_COMPLAINT: Final = re.compile(r"\[(?:warn|err)\] (.*)")
_ABOVE: Final = "see warnings above"
"""The last line of tor about a wrong configuration; the lines before say what is wrong."""
_ENDED: Final = "vtl: ended with status "

_TORRC: Final = """
SocksPort unix:{sockets}/socks WorldWritable ExtendedErrors IsolateSOCKSAuth
DataDirectory {data}
ClientOnly 1
AvoidDiskWrites 1
SafeLogging 1
Log notice stdout
"""


class TorProcess:
    """A tor with a temporary directory and a unix socket for SOCKS; a source of a stage.

    torrc: further lines of its configuration. on_progress: called with tor's progress in percent, and its
    current step. socks: the socket's path, in a directory that only the service and tor may enter. door: a
    path to the socket that stays valid for this process when its user changes.
    """

    def __init__(
        self, torrc: str = "", on_progress: Callable[[int, str], object] = lambda percent, what: None
    ):
        program = shutil.which("tor", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
        if program is None:
            raise VTLError(
                "tor: not found; install it (Debian: apt-get install tor), or name one that runs with --socks"
            )
        self.on_progress = on_progress
        self.percent = 0
        self.restarts = 0
        self._held = b""
        self._complaint = "it did not say why"
        self._was_ready = False
        directory = Path(tempfile.mkdtemp(prefix="vtl-tor-"))
        self.socks = str(directory / "sockets/socks")
        for name in "data", "sockets":
            (directory / name).mkdir(mode=0o700)
        # Our later user may not pass the directory, and need not: tor's own lets it in.
        self._sockets = os.open(directory / "sockets", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.door = f"/proc/self/fd/{self._sockets}/socks"
        self._output, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        lifeline, self._lifeline = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(output, True)
        self._keeper = os.fork()
        if not self._keeper:
            status = 1
            try:
                _close_all_but(output, lifeline)
                _Keeper(program, directory, torrc, output, lifeline).run()
                status = 0
            finally:
                os._exit(status)
        os.close(output)
        os.close(lifeline)

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._output

    def poll(self, now: float) -> bool:
        """Read the log of tor.

        Raises VTLError if it ended before it ever was ready: then its configuration is wrong.
        """
        try:
            octets = os.read(self._output, _READ_MAX)
        except BlockingIOError:
            return False
        if not octets:
            raise VTLError("tor: its keeper has gone; start again")
        *lines, self._held = (self._held + octets).split(b"\n")
        self._held = self._held[:_LINE_MAX]
        for line in lines:
            self._hear(line[:_LINE_MAX].decode(errors="replace"))
        return True

    def _hear(self, line: str) -> None:
        log.debug("tor: %s", line)
        if line.startswith(_ENDED):
            self._ended(line.removeprefix("vtl: "))
        elif found := _COMPLAINT.search(line):
            if _ABOVE not in found[1]:
                self._complaint = found[1].rstrip(". ")
            log.info("tor: %s", found[1])
        elif found := _BOOTSTRAPPED.search(line):
            self.percent = int(found[1])
            self._was_ready = True
            self.on_progress(self.percent, found[2])

    def _ended(self, how: str) -> None:
        if not self._was_ready:
            raise VTLError(f"tor: {how}: {self._complaint}; see all that it says with -vv")
        log.warning("tor: %s; starting it again", how)
        self.percent = 0
        self.restarts += 1
        self.on_progress(0, how)

    def close(self) -> None:
        """End tor, and remove its directory. Idempotent."""
        if self._lifeline < 0:
            return
        os.close(self._lifeline)
        os.waitpid(self._keeper, 0)
        os.close(self._output)
        os.close(self._sockets)
        self._lifeline = -1


class _Keeper:
    """Runs tor until the lifeline breaks: the parent has closed it, or ended."""

    def __init__(self, program: str, directory: Path, torrc: str, output: int, lifeline: int) -> None:
        self._program, self._directory, self._output, self._lifeline = program, directory, output, lifeline
        self._data, self._sockets = directory / "data", directory / "sockets"
        self._torrc = torrc
        self._user = next((name for name in USERS if _exists(name)), None) if os.geteuid() == 0 else None

    def run(self) -> None:
        os.setsid()
        for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:  # ^C is for our parent to hear
            signal.signal(number, signal.SIG_IGN)
        try:
            self._prepare()
            self._keep()
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _prepare(self) -> None:
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self._directory, -1, account.pw_gid)
            self._directory.chmod(0o710)
            self._sockets.chmod(0o711)
            for path in self._data, self._sockets:
                os.chown(path, account.pw_uid, account.pw_gid)
        torrc = self._directory / "torrc"
        torrc.write_text(_TORRC.format(data=self._data, sockets=self._sockets) + self._torrc)
        torrc.chmod(0o644)

    def _keep(self) -> None:
        retry_s = RETRY_S
        while True:
            process = self._start()
            began = os.times().elapsed
            with_us = os.pidfd_open(process.pid)
            ready, _, _ = select.select([self._lifeline, with_us], [], [])
            os.close(with_us)
            if self._lifeline in ready:
                end(process, _END_S)
                return
            os.write(self._output, f"{_ENDED}{process.wait()}\n".encode())
            if os.times().elapsed - began > _STEADY_S:
                retry_s = RETRY_S
            if select.select([self._lifeline], [], [], retry_s)[0]:
                return
            retry_s = min(2 * retry_s, RETRY_MAX_S)

    def _start(self) -> "subprocess.Popen[bytes]":
        group = None if self._user is None else grp.getgrgid(pwd.getpwnam(self._user).pw_gid).gr_name
        return subprocess.Popen(
            [self._program, "--defaults-torrc", os.devnull, "-f", self._directory / "torrc"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            user=self._user,
            group=group,
            extra_groups=None if self._user is None else [],
            umask=0o077,
            preexec_fn=partial(privilege.keep_only, ()),  # tor has no business with them
        )


def _close_all_but(*kept: int) -> None:
    """Close the parent's descriptors, so that its locks and guards end with it."""
    edges = [2, *sorted(kept), os.sysconf("SC_OPEN_MAX")]
    for below, above in pairwise(edges):
        os.closerange(below + 1, above)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True
