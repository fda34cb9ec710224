"""Runs one stage and its links on an asyncio loop, until a signal or the end of the links.

It reads a bounded burst of frames, lets the stage settle once, and re-arms one timer lazily. It also runs
the guard, the control socket, systemd's readiness protocol, events as JSON lines, and a live table.
"""

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.record import Record, record_as
from vtl_tools.common.device.recording import CaptureLimits, Recording
from vtl_tools.common.errors import LinkLostError
from vtl_tools.common.host import broker, confinement, privilege, scribe
from vtl_tools.common.host.interfaces import Interfaces
from vtl_tools.common.host.outlet import say
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.events import Events, Write
from vtl_tools.common.runtime.pump import Pump
from vtl_tools.common.runtime.records import Records
from vtl_tools.common.runtime.run_record import RunRecordFile, record_of
from vtl_tools.common.stage import Stage

if TYPE_CHECKING:
    from vtl_tools.common.runtime.metrics import MetricsServer
    from vtl_tools.common.runtime.watch import Watch

log = logging.getLogger(__name__)

TURN_S: Final = 0.002
"""Seconds that frames may keep the loop from its timers and clients."""

DRAINED_MAX: Final = 2000
"""Batches that are taken in at once so that nothing waits: as many as a receive buffer holds."""

SPIN_S: Final = 100e-6
"""Seconds that an idle service polls before it sleeps: a wake-up costs both sides more than that."""


class Options(NamedTuple):
    """The values of the options that all services share."""

    service: str = "vtl"
    json: bool = False
    watch: bool = False
    pcap: Path | None = None
    captures: CaptureLimits = CaptureLimits()
    log: Path | None = None
    """The file of the log; None: standard error."""
    control: Path | None = None
    metrics: tuple[str, int] | str | None = None
    """Where Prometheus is answered: (host, port), or the path of a unix socket."""
    reconnect: bool = True
    spin_s: float = SPIN_S
    user: str | None = None
    """The user that the service changes to if root starts it; None: the first of privilege.USERS."""


@dataclass(eq=False, repr=False)
class Runner:
    """One stage with its links, which are open while run() runs.

    The order of links is that of the stage's ports.
    """

    stage: Stage
    links: Sequence[Device]
    options: Options = field(default_factory=Options)
    interfaces: Interfaces | None = None
    """The links' interfaces, locked and guarded before, so that the host never gets a frame in between."""
    verbs: dict[str, control.Verb] = field(default_factory=dict)
    control_channel: socket.socket | None = None
    """In a worker: the socket on which it receives requests, instead of a control socket."""
    messages: socket.socket | None = None
    """In a worker: the socket on which it receives the messages of the others."""

    recording: Recording | None = None
    """Records the frames of all links. Its owner closes it."""

    def __post_init__(self) -> None:
        self.events = Events(self.options.service, self.links[0].spec, printing(self.options))
        self.records = Records(self.event)
        self.exit_code = 0
        self._started = time.monotonic()
        self._up: list[bool] = []
        self._occupants: dict[int, str] = {}
        self._polled = False
        self._alarm: asyncio.TimerHandle | None = None
        self._end: asyncio.Future[None] | None = None

    def run(self) -> int:
        """Run until SIGTERM (returns 0), SIGINT (returns 130), or the end of all links (returns 0).

        Raises VTLError if a link cannot be opened, or is lost while `options.reconnect` is false.
        """
        with ExitStack() as stack:
            if (recording := self.recording) is not None:
                self.links = [Record(link, recording, number) for number, link in enumerate(self.links)]
                self.stage.record = partial(record_as, recording)
            for link in self.links:
                stack.enter_context(link)
            with suppress(KeyboardInterrupt):
                asyncio.run(self._main())
        return self.exit_code

    async def _main(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._end = loop.create_future()
        loop.add_signal_handler(signal.SIGTERM, self.stop, 0)
        loop.add_signal_handler(signal.SIGINT, self.stop, 130)
        self.records.watch(loop, self._hang_up)
        for port, link in enumerate(self.links):
            self.stage.out[port] = _output(link)
            self.stage.out_pieces[port] = link.write_pieces
            self.stage.on_mtu(port, link.mtu)
        self.stage.event = self.event
        self.stage.drain, self.stage.occupant = self._drain, lambda port: self.links[port].occupant()
        if self.interfaces:
            loop.add_reader(self.interfaces.fileno(), self._look_at_interfaces)
            self._tell_guards(self.interfaces.poll())
        self._look_at_occupants()
        server = self._control()
        await server.start()
        metrics = await metrics_for(self.options, self.status)
        watch = watch_for(self.options)
        confine(self._capabilities(), self.options.user)
        for link in self.links:
            loop.add_reader(link.fileno(), self._on_readable)
        for source in self.stage.sources:
            loop.add_reader(source.fileno(), self._on_readable)
        if self.messages is not None:
            loop.add_reader(self.messages, self._on_message, self.messages)
        self._up = [True] * len(self.links)
        self._frames = Pump(self.stage, self.links, self.options.spin_s)
        watching = asyncio.ensure_future(self._watch(watch)) if watch is not None else None
        self.event("ready", pid=os.getpid(), links=[link.spec for link in self.links])
        notify("READY=1")
        self.records.is_ready()
        if sys.stderr.isatty() and not (self.options.json or self.options.watch or self.control_channel):
            joined = " - ".join(link.spec for link in self.links)
            say(2, f"{joined}: running; '{self.options.service} status' tells more, ^C ends it")
        gc.freeze()  # without gc.collect(): 5 ms at the start, and the imports leave little garbage
        loop.call_soon(self._pump)
        try:
            try:
                await self._end
            finally:  # also after a failure: the guest, or the peers, are to know
                self.stage.on_stop(loop.time())
        finally:
            notify("STOPPING=1")
            for link in self.links:
                loop.remove_reader(link.fileno())
            for source in self.stage.sources:
                loop.remove_reader(source.fileno())
                source.close()
            if watching is not None:
                watching.cancel()
                with suppress(asyncio.CancelledError):
                    await watching
            self._tell_end()
            server.close()
            if metrics is not None:
                metrics.close()

    def _tell_end(self) -> None:
        self.events.finish()
        if self._end is None or not self._end.done():
            return
        error = self._end.exception()
        if error is None:
            self.event("stats", status=self.status())
        else:  # which the command prints
            self.events.write = None
            self.event("error", error=str(error), exit=getattr(error, "exit_code", 1))

    def _capabilities(self) -> set[int]:
        kept = {c for link in self.links for c in link.capabilities} | self.stage.capabilities
        return kept | {privilege.NET_ADMIN} if self.interfaces else kept

    def _control(self) -> control.ControlServer:
        verbs: dict[str, control.Verb] = {
            "status": lambda _: self.status(),
            "events": self.events.asked,
            **self.verbs,
        }
        if self.control_channel is not None:
            verbs["hang-up"] = self._hang_up
        path = self.options.control or control.path_for(self.options.service, self.links[0].spec)
        if self.control_channel is not None:
            return control.ControlServer(self.control_channel, verbs, self.stop)
        record = record_for(path, self.options, [link.spec for link in self.links], self.interfaces)
        return control.ControlServer(path, verbs, self.stop, record)

    def _hang_up(self, request: control.Result | None = None) -> control.Result:
        """Do what SIGHUP asks for: open files again, and what the stage adds."""
        if self.control_channel is None:  # else the first process has done it
            self.records.reopen()
        try:
            self.stage.on_hang_up(self._loop.time())
        except Exception:  # our own bug, and no reason to end
            log.exception("SIGHUP")
        return {}

    def stop(self, exit_code: int = 0) -> None:
        """Let run() return exit_code."""
        if self._end is not None and not self._end.done():
            self.exit_code = exit_code
            self._end.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Let run() raise error."""
        if self._end is not None and not self._end.done():
            self._end.set_exception(error)

    def _on_readable(self) -> None:
        if not self._polled:  # else the next turn is scheduled already
            self._pump()

    def _pump(self) -> None:
        """Process the waiting frames of all links, for at most one turn.

        A turn that leaves frames waiting starts polling, as NAPI does for a network card: the links stop
        signalling, which saves their senders work, and turn follows turn until none finds a frame for spin_s.
        """
        try:
            pump = self._frames
            pump.turn(TURN_S)
            idle = pump.idle
            if self._polled == idle:
                self._polled = not idle
                for link in self.links:
                    link.signal(idle)
            if not idle:
                self._loop.call_soon(self._pump)
            self._look_at_links(pump.now)
            self._rearm()
        except Exception as e:  # our own bug: end, with the guard up
            self.fail(e)

    def _look_at_links(self, now: float) -> None:
        all_finished = True
        for port, link in enumerate(self.links):
            all_finished = all_finished and (link.finished or link.silent)
            if link.up == self._up[port]:
                continue
            self._up[port] = link.up
            if link.up:
                self._tell_guards(self.interfaces.check() if self.interfaces else ())
                self._look_at_occupants()
            elif not self.options.reconnect and link.losses:
                self.fail(LinkLostError(f"{link.spec}: link lost; not waiting for it, as requested"))
            self.stage.on_link(port, link.up, now)
            self.event("link", changed=link.spec, up=link.up)
        if all_finished:
            self.stop()

    def _look_at_interfaces(self) -> None:
        assert self.interfaces is not None
        try:
            self._tell_guards(self.interfaces.poll())
            self._look_at_occupants()
        except Exception as e:  # without a guard the guest would reach the host: end
            self.fail(e)

    def _look_at_occupants(self) -> None:
        for port, link in enumerate(self.links):
            occupant = link.occupant()
            if occupant and occupant != self._occupants.get(port):
                self._occupants[port] = occupant
                self.stage.on_occupant(port, occupant, time.monotonic())

    def _drain(self, port: int) -> None:
        """Process the frames that wait at a link: a full receive buffer at most, and not what follows."""
        for _ in range(DRAINED_MAX):
            batch = self.links[port].read()
            if not batch.count:
                break
            self.stage.on_batch(port, batch, time.monotonic())

    def _tell_guards(self, raised: Sequence[tuple[str, str]]) -> None:
        for name, what in raised:
            self.event("guard", interface=name, reason=what)

    def _on_message(self, messages: socket.socket) -> None:
        with suppress(BlockingIOError):
            self.stage.on_message(messages.recv(64), self._loop.time())

    def _rearm(self) -> None:
        due = self.stage.deadline()
        if due is None or (self._alarm is not None and self._alarm.when() <= due):
            return
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.call_at(due, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None
        now = self._loop.time()
        try:
            self.stage.wake(now)
            self.stage.settle(now)
            self._rearm()
        except Exception as e:  # as in _pump
            self.fail(e)

    def status(self) -> dict[str, Any]:
        """Return the reply to `status`, which --json prints."""
        now, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        return {
            "schema": f"{self.options.service}.status/1",
            "service": self.options.service,
            "pid": os.getpid(),
            "uptime_s": round(now - self._started, 3),
            "cpu_s": {"user": round(used.ru_utime, 3), "system": round(used.ru_stime, 3)},
            "links": [link.status() for link in self.links],
            "drops": dict(self.stage.drops),
            **(self.interfaces.status() if self.interfaces else {}),
            **self.records.status(),
            **self.stage.status(now),
        }

    def event(self, name: str, /, **fields: Any) -> None:
        """Tell an event; see Events.tell()."""
        self.events.tell(name, **fields)

    async def _watch(self, watch: "Watch") -> None:
        with watch:
            while True:
                watch.show([self.status()])
                await asyncio.sleep(watch.period_s)


def confine(capabilities: set[int], user: str | None) -> None:
    """Give up, irreversibly, all rights that a running service does not need.

    A service of root's changes to another user, with a broker for the operations that still need root. Raises
    VTLError.
    """
    _notifying(os.environ.get("NOTIFY_SOCKET", ""))
    become = privilege.account(user)
    if become is not None:
        broker.start()
    privilege.drop_privileges(capabilities, become)
    confinement.keep_memory_private()
    if become is not None:
        confinement.deny_writing()
    confinement.deny_calls(("bpf",) if privilege.BPF in capabilities else ())
    broker.await_start()  # which has given up its rights meanwhile, as the scribes have
    for one in scribe.live():
        one.await_start()


def record_for(
    path: Path, options: Options, links: Sequence[str], interfaces: Interfaces | None
) -> RunRecordFile:
    """Return the record that tells of the service when it was killed. path: its control socket."""
    forms = interfaces.forms() if interfaces else {}
    return RunRecordFile(record_of(path), options.service, links, forms)


def printing(options: Options) -> Write | None:
    """Return what prints events on standard output, if --json is given."""
    return partial(say, sys.stdout.fileno()) if options.json else None


def watch_for(options: Options) -> "Watch | None":
    """Return the live table if --watch is given. Imports its modules, which the later user may not read."""
    if not options.watch:
        return None
    from vtl_tools.common.runtime.watch import Watch

    return Watch(sys.stderr)


async def metrics_for(options: Options, status: Callable[[], Any]) -> "MetricsServer | None":
    """Return the server for Prometheus, which listens, if --metrics is given. Raises VTLError."""
    if options.metrics is None:
        return None
    from vtl_tools.common.runtime.metrics import MetricsServer

    server = MetricsServer(options.metrics, status)
    await server.start()
    return server


def _output(link: Device) -> Any:
    write = link.write
    return lambda batch, now: write(batch)


def notify(state: str) -> None:
    """Send a state to systemd (sd_notify(3)), if NOTIFY_SOCKET is set."""
    if (sock := _notifying(os.environ.get("NOTIFY_SOCKET", ""))) is not None:
        try:
            sock.send(state.encode())
        except OSError as e:
            log.warning("notify: %s", e.strerror)


@cache
def _notifying(address: str) -> socket.socket | None:
    """Return a socket connected to systemd, made while the service may still reach it."""
    if not address:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
    except OSError as e:
        log.warning("notify: %s: %s", address, e.strerror)
        sock.close()
        return None
    return sock
