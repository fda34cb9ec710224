"""Serves a service's status to Prometheus over HTTP, if --metrics asks for it.

The client library makes the text. HTTP is a few lines of our own: the library's server takes any number of
clients, a thread each, and no unix socket.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host import broker
from vtl_tools.common.runtime.control import listen_on

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        InfoMetricFamily,
        Metric,
        UntypedMetricFamily,
    )
    from prometheus_client.exposition import choose_encoder
except ImportError:
    raise SpecError(
        "--metrics: the library prometheus_client is missing; run 'pip install vtl-tools[metrics]'"
    ) from None

CLIENTS_MAX: Final = 8
REQUEST_MAX: Final = 8192
"""Octets of the longest request."""
PATIENCE_S: Final = 5.0
"""How long a client may take for its request, and for reading the answer."""

Where = tuple[str, int] | str
"""(host, port), or the path of a unix socket."""
Status = dict[str, Any]

_HANDLED: Final = {"cpu_s", "drops", "guards", "links", "pid", "rules", "schema", "service", "uptime_s"}
"""Members of a status that have families of their own, or none."""


class MetricsServer:
    """Answers GET /metrics. status: returns the service's status, or an awaitable of it."""

    def __init__(self, where: Where, status: Callable[[], Status | Awaitable[Status]]) -> None:
        self.where, self._status = where, status
        self._server: asyncio.Server | None = None
        self._file: broker.OwnSocket | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen, while the service still has its rights. Raises VTLError."""
        if isinstance(self.where, str):
            sock = listen_on(Path(self.where), "--metrics")
            self._file = broker.OwnSocket(self.where)
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=REQUEST_MAX)
            return
        host, port = self.where
        try:
            self._server = await asyncio.start_server(self._serve, host, port, limit=REQUEST_MAX)
        except OSError as e:
            raise VTLError(f"--metrics: {host}:{port}: {_why(e)}; choose another address") from None

    def close(self) -> None:
        """Stop listening, and drop the clients. Idempotent."""
        if self._server is not None:
            self._server.close()
        for writer in self._clients:
            writer.transport.abort()
        if self._file is not None:
            self._file.remove()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            if len(self._clients) <= CLIENTS_MAX:
                writer.transport.set_write_buffer_limits(0)  # so that drain() waits for all to be read
                async with asyncio.timeout(PATIENCE_S):
                    writer.write(await self._answer(await reader.readuntil(b"\r\n\r\n")))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            writer.transport.abort()
        finally:
            self._clients.discard(writer)
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        line, *headers = request.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or words[0] not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "text/plain", b"GET /metrics\n")
        if words[1].partition("?")[0] not in ("/metrics", "/"):
            return _response("404 Not Found", "text/plain", b"GET /metrics\n")
        try:
            told = self._status()
            status = await told if isinstance(told, Awaitable) else told
        except VTLError as e:
            return _response("503 Service Unavailable", "text/plain", f"{e}\n".encode())
        accept = next((h.partition(":")[2] for h in headers if h.lower().startswith("accept:")), "")
        encode, kind = choose_encoder(accept)
        registry = CollectorRegistry()
        registry.register(_Told(status))
        octets = encode(registry)
        return _response("200 OK", kind, b"" if words[0] == "HEAD" else octets)


def _why(error: OSError) -> str:
    return "no such host" if isinstance(error, socket.gaierror) else error.strerror or str(error)


def _response(status: str, kind: str, octets: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(octets)}\r\nConnection: close\r\n"
    )
    return head.encode() + b"\r\n" + octets


class _Told:
    """A collector, as the library calls it, of one status."""

    def __init__(self, status: Status) -> None:
        self._families = list(families(status))

    def collect(self) -> Iterable[Metric]:
        """Return the families."""
        return self._families


def families(status: Status) -> Iterator[Metric]:
    """Yield a status as families of metrics. docs/metrics.md lists the names."""
    about = InfoMetricFamily("vtl_service", "The service and its version")
    about.add_metric((), {"service": status["service"], "version": version("vtl-tools")})
    yield about
    yield GaugeMetricFamily("vtl_uptime_seconds", "Time since the start", status["uptime_s"])
    yield _counter(
        "vtl_cpu_seconds", "Processor time", ("mode",), {(k,): v for k, v in status["cpu_s"].items()}
    )
    yield from _links(status["links"])
    dropped = {(reason,): n for reason, n in status["drops"].items()}
    yield _counter("vtl_dropped_frames", "Frames that the service dropped", ("reason",), dropped)
    if guards := status.get("guards"):
        raised = {(name,): guard["raised_anew"] for name, guard in guards.items()}
        yield _counter("vtl_guard_raised_anew", "Times that a guard was restored", ("interface",), raised)
    if rules := status.get("rules"):
        for key, unit in ("packets", "packets"), ("octets", "bytes"):
            counts = {(rule,): count[key] for rule, count in rules.items()}
            yield _counter(f"vtl_rule_{unit}", f"{unit.capitalize()} that a rule judged", ("rule",), counts)
    for name, value in status.items():
        if name not in _HANDLED:
            yield from _others(f"vtl_{name}", value)


def _links(links: Iterable[Status]) -> Iterator[Metric]:
    up = GaugeMetricFamily("vtl_link_up", "1: the link has its peer", labels=("link",))
    frames: dict[tuple[str, ...], int] = {}
    octets: dict[tuple[str, ...], int] = {}
    losses: dict[tuple[str, ...], int] = {}
    dropped: dict[tuple[str, ...], int] = {}
    for link in links:
        spec = link["link"]
        up.add_metric((spec,), int(link["up"]))
        losses[spec,] = link["losses"]
        for direction, key in ("in", "rx"), ("out", "tx"):
            frames[spec, direction] = link[f"{key}_frames"]
            octets[spec, direction] = link[f"{key}_octets"]
        dropped |= {(spec, reason): n for reason, n in link["drops"].items()}
    yield up
    yield _counter("vtl_link_losses", "Times that a link lost its peer", ("link",), losses)
    yield _counter("vtl_link_frames", "Frames carried", ("link", "direction"), frames)
    yield _counter("vtl_link_bytes", "Octets carried", ("link", "direction"), octets)
    yield _counter("vtl_link_dropped_frames", "Frames dropped at a link", ("link", "reason"), dropped)


def _counter(
    name: str, about: str, labels: tuple[str, ...], values: Mapping[Any, float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, about, labels=labels)
    for at, value in values.items():
        family.add_metric(at, value)
    return family


def _others(name: str, value: object) -> Iterator[Metric]:
    """Yield the numbers of a service's own part, named by the keys that lead to them.

    The members of a table, a dict whose values are all dicts, are told apart by a label.
    """
    if isinstance(value, int | float):
        yield UntypedMetricFamily(_name(name), "See the man page of the service", float(value))
    if not isinstance(value, dict) or not value:
        return
    if not all(isinstance(row, dict) for row in value.values()):
        for key, member in value.items():
            yield from _others(f"{name}_{key}", member)
        return
    columns: dict[str, UntypedMetricFamily] = {}
    for row, members in value.items():
        for key, member in members.items():
            if isinstance(member, int | float):
                column = _name(f"{name}_{key}")
                family = columns.setdefault(
                    column, UntypedMetricFamily(column, "See the man page of the service", labels=("key",))
                )
                family.add_metric((str(row),), float(member))
    yield from columns.values()


def _name(words: str) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", words)
    if name.endswith("_s"):
        return f"{name}econds"
    return re.sub(r"octets$", "bytes", name)
