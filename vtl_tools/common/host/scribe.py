"""A process that writes records to a file, so that a disk that is full, slow or gone delays no frame.

The service puts octets into a queue in shared memory and never waits. The process is started before the
service gives up its rights, keeps those that creating the next file takes, and is confined to the directory
of its files. It writes what is in the queue even after kill -9 of the service.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import confinement, privilege
from vtl_tools.common.host.octet_queue import OctetQueue
from vtl_tools.common.host.process import close_all_but
from vtl_tools.common.host.record_file import Target

RETRY_S: Final = 1.0
"""Time until a write that failed is tried again; doubled each time, up to RETRY_MAX_S."""
RETRY_MAX_S: Final = 60.0
PAUSE_S: Final = 0.02
"""Time in which records gather, so that a busy service does not wake the process for each."""
PATIENCE_S: Final = 2.0
"""Time that the process has at the end of the service to write the rest."""
_DAC_OVERRIDE: Final = 1
_REOPEN: Final = b"reopen"


class Scribe:
    """The service's end. producers: processes of the service that write, each with a queue of so many octets.

    is_writing: whether the last write succeeded, as far as poll() has told.
    """

    def __init__(self, target: Target, octets: int, producers: int = 1, pause_s: float = PAUSE_S) -> None:
        self.name = target.name
        self.is_writing = True
        self.status: Callable[[], dict[str, object]] | None = None
        """Returns the part of the service's status that is about these records; None: there is none."""
        self._queues = [OctetQueue(octets) for _ in range(producers)]
        self.queue: OctetQueue | None = self._queues[0]
        """The queue of this process; None in a process that is none of the producers."""
        self.is_own = True
        """Whether this process is the first of the service, which poll() is for."""
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        self._pid = os.fork()
        if not self._pid:
            try:
                _be_scribe(target, self._queues, theirs, pause_s)
            finally:
                os._exit(1)
        theirs.close()
        self._has_started = False
        if target.places:
            os.close(target.fd)
        _live.append(self)

    def await_start(self) -> None:
        """Wait until the process has given up its rights. Idempotent. If it has ended, poll() tells."""
        if self.is_own and not self._has_started:
            self._has_started = True
            self._channel.recv(1)
            self._channel.setblocking(False)

    def become(self, number: int) -> None:
        """Use the queue of a producer by its number, in a process that was forked."""
        self.is_own = False
        self.queue = self._queues[number]

    def put(self, octets: bytes) -> bool:
        """Hand over octets as a whole. False: there is no room."""
        queue = self.queue
        if queue is None or not queue.has_room(len(octets)):
            return False
        queue.put(octets)
        queue.publish(len(octets))
        return True

    def reopen(self) -> None:
        """Have a file that was renamed or removed created again, and a failed write tried again."""
        with contextlib.suppress(OSError):
            self._channel.send(_REOPEN)

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to tell."""
        return self._channel.fileno()

    def poll(self) -> list[dict[str, Any]]:
        """Return what happened: `what` is stopped, resumed, next or ended; `file`; perhaps `why`."""
        self.await_start()
        told = []
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    octets = self._channel.recv(8192)
                except OSError as e:
                    if isinstance(e, BlockingIOError):
                        raise
                    octets = b""
                if not octets:
                    told.append({"what": "ended", "file": self.name, "why": "its process has ended"})
                    break
                told.append(json.loads(octets))
        for one in told:
            self.name = one["file"]
            if one["what"] != "next":
                self.is_writing = one["what"] == "resumed"
        return told

    def close(self, patience_s: float = PATIENCE_S) -> bool:
        """Let the process write the rest and end. Return whether it has. Idempotent.

        A process that a slow disk holds up longer than patience_s is left to itself.
        """
        if self not in _live:
            return True
        _live.remove(self)
        self.queue = None
        self.await_start()
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        pidfd = os.pidfd_open(self._pid)
        try:
            has_ended = bool(select.select([pidfd], [], [], patience_s)[0])
        finally:
            os.close(pidfd)
        if has_ended:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
        self._channel.close()
        for queue in self._queues:
            queue.close()
        return has_ended


_live: list[Scribe] = []


def live() -> list[Scribe]:
    """Return the scribes of this service."""
    return list(_live)


def become(number: int) -> None:
    """Make this process, which was forked, a producer of all scribes."""
    for scribe in _live:
        scribe.become(number)


def close_all() -> None:
    """Close all scribes. Idempotent."""
    for scribe in live():
        scribe.close()


def _forget() -> None:
    """A forked process is no producer, unless it becomes one: two on a queue would garble it."""
    for scribe in _live:
        scribe.queue = None


os.register_at_fork(after_in_child=_forget)


def _close_own() -> None:
    if os.getpid() == _owner:
        close_all()


_owner = os.getpid()
atexit.register(_close_own)


# --- the process


def _be_scribe(target: Target, queues: list[OctetQueue], channel: socket.socket, pause_s: float) -> None:
    signal.set_wakeup_fd(-1)
    os.setsid()
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE:  # it ends after the service
        signal.signal(number, signal.SIG_IGN)
    target.fd = os.dup(target.fd)
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):  # a reader of our standard error learns of the end of the service
        os.dup2(nothing, fd)
    used = [fd for queue in queues for fd in queue.descriptors()]
    close_all_but(0, 1, 2, target.fd, channel.fileno(), *used)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(target.process)
    try:
        privilege.keep_only((_DAC_OVERRIDE,) if target.places else ())
        confinement.keep_memory_private()
        confinement.deny_writing(target.places)
        confinement.deny_calls()
    except VTLError:
        pass  # an old kernel: the service says so
    with contextlib.suppress(OSError):  # the service may be gone: what it put is written
        channel.send(b"1")
    _Writer(target, queues, channel, pause_s).run()
    os._exit(0)


class _Writer:
    def __init__(
        self, target: Target, queues: list[OctetQueue], channel: socket.socket, pause_s: float
    ) -> None:
        self._target, self._queues, self._channel, self._pause_s = target, queues, channel, pause_s
        self._has_ended = self._is_full = self._has_failed = self._must_reopen = False
        self._retry_s, self._retry_at, self._resumed_at = RETRY_S / 2, 0.0, -RETRY_MAX_S
        channel.setblocking(False)

    def run(self) -> None:
        self._try(self._target.begin)
        while not self._has_ended:
            self._wait()
            for queue in self._queues:
                queue.collect()
            if self._has_ended or time.monotonic() >= self._retry_at:
                self._write_all()
        deadline = time.monotonic() + PATIENCE_S / 2
        while self._is_full and time.monotonic() < deadline:  # a pipe whose reader is slow
            time.sleep(0.01)
            self._write_all()
        with contextlib.suppress(OSError):
            self._target.finish()

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        for queue in self._queues:
            poll.register(queue, select.POLLIN)
        timeout = None
        if self._has_failed:
            timeout = max(0.0, self._retry_at - time.monotonic()) * 1000 + 1
        elif self._is_full:
            poll.register(self._target.fd, select.POLLOUT)
        for fd, _ in poll.poll(timeout):
            if fd == self._channel.fileno():
                self._hear()
        if self._pause_s and not self._has_ended:
            time.sleep(self._pause_s)

    def _hear(self) -> None:
        try:
            octets = self._channel.recv(64)
        except BlockingIOError:
            return
        except OSError:
            octets = b""
        if not octets:
            self._has_ended = True
            return
        self._retry_at, self._must_reopen = 0.0, True

    def _restore(self) -> None:
        """Have a file again, after a failure or when it shall be opened by its name."""
        if self._must_reopen:
            self._target.reopen()
            self._must_reopen = False
        self._target.begin()
        if not any(queue.waiting for queue in self._queues):
            self._note_success()

    def _note_success(self) -> None:
        if self._has_failed:
            self._has_failed = False
            self._resumed_at = time.monotonic()
            self._tell("resumed")

    def _write_all(self) -> None:
        """Write all that waits, or as much as there is room for."""
        if (self._has_failed or self._must_reopen) and not self._try(self._restore):
            return
        self._is_full = False
        for queue in self._queues:
            while (queue.waiting or self._target.owes) and not self._is_full:
                if not self._try(partial(self._step, queue)):
                    return

    def _step(self, queue: OctetQueue) -> None:
        self._is_full = not self._target.write(queue)
        if not self._is_full:
            self._note_success()

    def _try(self, step: Callable[[], object]) -> bool:
        before = self._target.name
        try:
            step()
        except OSError as e:
            now = time.monotonic()
            is_first = not self._has_failed and now - self._resumed_at > RETRY_MAX_S
            self._retry_s = RETRY_S if is_first else min(2 * self._retry_s, RETRY_MAX_S)
            self._retry_at = now + self._retry_s
            if not self._has_failed:
                self._tell("stopped", e.strerror or str(e))
            self._has_failed = True
            return False
        if self._target.name != before:
            self._tell("next")
        return True

    def _tell(self, what: str, why: str | None = None) -> None:
        told = {"what": what, "file": self._target.name} | ({"why": why} if why else {})
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(told).encode())
