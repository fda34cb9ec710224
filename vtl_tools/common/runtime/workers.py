"""Runs a service in several processes: the kernel distributes the flows of an interface among them.

Each worker has its own socket on every interface, in one PACKET_FANOUT group per interface. The hash is of
the flow and symmetric, so that one worker gets both directions of a connection.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import privilege, scribe
from vtl_tools.common.host.interfaces import Interfaces
from vtl_tools.common.host.outlet import say
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.events import LINE_MAX, Events
from vtl_tools.common.runtime.records import Records
from vtl_tools.common.runtime.runner import (
    Options,
    Runner,
    confine,
    metrics_for,
    notify,
    printing,
    record_for,
    watch_for,
)
from vtl_tools.common.text import printable

if TYPE_CHECKING:
    from vtl_tools.common.runtime.watch import Watch

log = logging.getLogger(__name__)

_TALES = 64
"""Events of a worker that are read at once."""


class Workers:
    """Runs a service in `count` processes, which look like one service to users.

    make: returns a worker's Runner, given its number and the fanout number to use. interfaces: locked and
    guarded already, by this process, which watches them.
    """

    def __init__(
        self, count: int, make: Callable[[int], Runner], options: Options, interfaces: Interfaces, first: str
    ) -> None:
        self.count, self.make, self.options, self.first = count, make, options, first
        self.interfaces = interfaces
        self._fault: Exception | None = None
        self.fanout = os.getpid() & 0x7FFF
        self._buses = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        self._tales = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        self.events = Events(options.service, first, printing(options))
        self.records = Records(self.events.tell)
        self._streams: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._owed: Counter[int] = Counter()
        self._busy = asyncio.Lock()
        self._started = time.monotonic()
        self._exit_code: int | None = None
        for pair in (*self._buses, *self._tales):
            for end in pair:
                end.setblocking(False)

    def run(self) -> int:
        """Run until a signal, or until a worker ends. Return the exit status. Raises VTLError."""
        children: dict[int, socket.socket] = {}
        try:
            for number in range(self.count):
                pid, ours = self._fork(number, children.values())
                children[pid] = ours
            asyncio.run(self._main(children))
        except KeyboardInterrupt:
            self._exit_code = 130
        finally:
            for sock in children.values():  # this ends a worker, which we may not be permitted to signal
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for pid in children:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)
        if self._fault is not None:
            raise self._fault
        return self._exit_code or 0

    def _fork(self, number: int, others: Iterable[socket.socket]) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        if pid := os.fork():
            theirs.close()
            return pid, ours
        code = 1
        try:
            for sock in ours, *others:  # so that the others notice, too, when the parent ends
                sock.close()
            code = self._work(number, theirs)
        except VTLError as e:
            say(2, printable(f"{self.options.service}: {e}"))
            code = e.exit_code
        except BaseException:
            log.exception("worker %d", number)
        finally:
            os._exit(code)

    def _work(self, number: int, control_channel: socket.socket) -> int:
        scribe.become(number + 1)
        runner = self.make(number)
        runner.control_channel, runner.messages = control_channel, self._buses[number][0]
        others = [bus[1] for i, bus in enumerate(self._buses) if i != number]
        self._buses[number][1].close()
        for i, tale in enumerate(self._tales):
            tale[0].close()
            if i != number:
                tale[1].close()
        for i, bus in enumerate(self._buses):
            if i != number:
                bus[0].close()  # it is another worker's
        runner.events.write = partial(_tell, self._tales[number][1])
        runner.stage.broadcast = partial(_broadcast, others)
        os.environ.pop("NOTIFY_SOCKET", None)
        return runner.run()

    async def _main(self, children: dict[int, socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()

        def on_signal(code: int) -> None:
            self._exit_code = code
            ended.set()

        def on_exit(pid: int, pidfd: int) -> None:
            loop.remove_reader(pidfd)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if self._exit_code is None:
                self._exit_code = status if status > 0 else 1
            ended.set()

        loop.add_signal_handler(signal.SIGTERM, on_signal, 0)
        loop.add_signal_handler(signal.SIGINT, on_signal, 130)
        self.records.watch(loop, self._hang_up)
        for pid, sock in children.items():
            self._streams[pid] = await asyncio.open_connection(sock=sock, limit=control.ANSWER_MAX)
            pidfd = os.pidfd_open(pid)
            loop.add_reader(pidfd, on_exit, pid, pidfd)
        for number, (tale, _) in enumerate(self._tales):
            loop.add_reader(tale, self._on_tale, number, tale)
        if self.interfaces:

            def look() -> None:
                try:
                    self._tell_guards(self.interfaces.poll())
                except Exception as e:  # as in Runner
                    self._fault = e
                    ended.set()

            loop.add_reader(self.interfaces.fileno(), look)
            self._tell_guards(self.interfaces.check())
        path = self.options.control or control.path_for(self.options.service, self.first)
        record = record_for(path, self.options, [self.first], self.interfaces)
        verbs: dict[str, control.Verb] = {"status": self.status, "events": self.events.asked}
        server = control.ControlServer(path, verbs, record=record)
        await server.start()
        metrics = await metrics_for(self.options, lambda: self.status({}))
        watch = watch_for(self.options)
        confine({privilege.NET_ADMIN} if self.interfaces else set(), self.options.user)
        watching: asyncio.Task[None] | None = None
        try:
            if not ended.is_set():
                await self._ready(ended)
            if watch is not None:
                watching = asyncio.create_task(self._watch(watch))
            await ended.wait()
            if watching is not None:
                watching.cancel()
            self.events.finish()
            if self._exit_code in (0, 130):
                self.events.tell("stats", status=await self.status({}))
        finally:
            server.close()
            if metrics is not None:
                metrics.close()

    def _hang_up(self) -> None:
        self.records.reopen()
        self._passing_on = asyncio.ensure_future(self._pass_on())

    async def _pass_on(self) -> None:
        async with self._busy:
            with suppress(VTLError):  # a worker that ends ends the service
                await ask_all(self._streams, self._owed, verb="hang-up")

    def _tell_guards(self, raised: Sequence[tuple[str, str]]) -> None:
        for name, what in raised:
            self.events.tell("guard", interface=name, reason=what)

    def _on_tale(self, number: int, tale: socket.socket) -> None:
        """Take some events of a worker; guards and clients have their turn between."""
        with suppress(BlockingIOError):
            for _ in range(_TALES):
                self.events.forward(tale.recv(LINE_MAX), number)

    async def _watch(self, watch: "Watch") -> None:
        with watch:
            while True:
                watch.show([await self.status({})])
                await asyncio.sleep(watch.period_s)

    async def _ready(self, ended: asyncio.Event) -> None:
        """Notify that the service is ready once every worker answers."""
        ready = asyncio.ensure_future(self.status({}))
        stopped = asyncio.ensure_future(ended.wait())
        await asyncio.wait((ready, stopped), return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and ready.exception() is None:
            links = [link["link"] for link in ready.result()["links"]]
            self.events.tell("ready", pid=os.getpid(), links=links)
            notify("READY=1")
            self.records.is_ready()
        for task in (ready, stopped):
            task.cancel()

    async def status(self, request: control.Result) -> control.Result:
        """Ask every worker, and return the merged status."""
        async with self._busy:
            answers = await ask_all(self._streams, self._owed)
        total: control.Result = merge(answers)
        total.update(self.interfaces.status())
        for merged, own in zip(
            total.get("recordings", ()), self.records.status().get("recordings", ()), strict=True
        ):
            merged.update(file=own["file"], recording=own["recording"])
        total.update(pid=os.getpid(), workers=self.count, uptime_s=round(time.monotonic() - self._started, 3))
        return total


async def ask_all(
    streams: Mapping[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]],
    owed: Counter[int],
    patience_s: float = control.PATIENCE_S,
    verb: str = "status",
) -> list[Any]:
    """Ask workers, by process, by a verb; return their answers. Raises VTLError.

    owed: how many answers each worker owes. Answers to earlier requests come first and are outdated.
    """
    for pid, (_, writer) in streams.items():
        writer.write(json.dumps({"verb": verb}).encode() + b"\n")
        owed[pid] += 1
    answers = []
    for pid, (reader, _) in streams.items():
        try:
            while owed[pid]:
                line = await asyncio.wait_for(reader.readline(), patience_s)
                owed[pid] -= 1
            answers.append(json.loads(line)["result"])
        except TimeoutError:
            raise VTLError(f"worker {pid} does not answer; check whether it is stopped") from None
        except (ValueError, KeyError, TypeError, RecursionError, OSError):
            raise VTLError(f"worker {pid} ended, or its answer is no status; restart the service") from None
    return answers


def merge(answers: Sequence[Any]) -> Any:
    """Return several workers' statuses as one.

    Numbers are added, but of seconds ("..._s") the least is taken, and of all other values the first.
    """
    first = answers[0]
    if isinstance(first, dict):
        merged = {}
        for key in dict.fromkeys(key for answer in answers for key in answer):
            values = [answer[key] for answer in answers if key in answer]
            is_span = key.endswith("_s") and not isinstance(values[0], dict)
            merged[key] = min(values) if is_span else merge(values)
        return merged
    if isinstance(first, list) and all(len(answer) == len(first) for answer in answers):
        return [merge(items) for items in zip(*answers, strict=True)]
    if isinstance(first, bool):
        return all(answers)
    return round(sum(answers), 6) if isinstance(first, int | float) else first


def _tell(sock: socket.socket, line: str) -> bool:
    try:
        sock.send(line.encode())
    except OSError:  # its queue is full, the line is too long, or the first process has ended
        return False
    return True


def _broadcast(others: Sequence[socket.socket], message: bytes) -> None:
    for sock in others:
        with suppress(BlockingIOError, ConnectionError):  # its queue is full, or it has ended
            sock.send(message)
