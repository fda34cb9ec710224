"""--metrics: what Prometheus is told, and what clients of its port get away with."""

import asyncio
import select
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lab.wait import PATIENCE_S
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import metrics
from vtl_tools.common.runtime.metrics import CLIENTS_MAX, REQUEST_MAX, MetricsServer

LINK = {
    "link": "vmnet1", "up": True, "losses": 2, "rx_frames": 10, "rx_octets": 1000, "tx_frames": 20,
    "tx_octets": 2000, "drops": {"too-big": 3},
}  # fmt: skip
STATUS: dict[str, Any] = {
    "service": "vtl-fw",
    "pid": 7,
    "uptime_s": 12.5,
    "cpu_s": {"user": 1.5, "system": 0.5},
    "links": [LINK],
    "drops": {"denied": 4},
    "guards": {"vmnet1": {"form": "kept", "raised_anew": 1}},
    "rules": {"web.rules:3": {"packets": 5, "octets": 500}},
    "policy": {"flows": 6, "file": "web.rules", "frozen_s": 2.0},
    "peers": {"10.0.0.1": {"octets": 8, "mac": "52:54:00:00:00:01"}},
}
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def asked(path: Path, talk: Callable[[MetricsServer], Coroutine[Any, Any, Any]], status: Any = None) -> Any:
    async def run() -> Any:
        server = MetricsServer(str(path), status or (lambda: STATUS))
        await server.start()
        try:
            return await talk(server)
        finally:
            server.close()
            await asyncio.sleep(0.01)  # asyncio closes what was aborted in its next turns

    return asyncio.run(run())


async def fetch(path: Path, request: bytes = GET) -> tuple[str, str]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return head.partition("\r\n")[0], body


def samples(text: str) -> dict[tuple[str, frozenset[str]], float]:
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_status_as_prometheus_reads_it(tmp_path: Path) -> None:
    status, text = asked(tmp_path / "m", lambda _: fetch(tmp_path / "m"))
    assert status == "HTTP/1.1 200 OK"
    found = samples(text)
    assert found["vtl_uptime_seconds", frozenset()] == 12.5
    assert found["vtl_cpu_seconds_total", frozenset({"user"})] == 1.5
    assert found["vtl_link_up", frozenset({"vmnet1"})] == 1
    assert found["vtl_link_losses_total", frozenset({"vmnet1"})] == 2
    assert found["vtl_link_frames_total", frozenset({"vmnet1", "in"})] == 10
    assert found["vtl_link_bytes_total", frozenset({"vmnet1", "out"})] == 2000
    assert found["vtl_link_dropped_frames_total", frozenset({"vmnet1", "too-big"})] == 3
    assert found["vtl_dropped_frames_total", frozenset({"denied"})] == 4
    assert found["vtl_guard_raised_anew_total", frozenset({"vmnet1"})] == 1
    assert found["vtl_rule_packets_total", frozenset({"web.rules:3"})] == 5
    assert found["vtl_rule_bytes_total", frozenset({"web.rules:3"})] == 500
    assert found["vtl_policy_flows", frozenset()] == 6
    assert found["vtl_policy_frozen_seconds", frozenset()] == 2
    assert found["vtl_peers_bytes", frozenset({"10.0.0.1"})] == 8
    assert not [name for name, _ in found if "mac" in name or "file" in name or "pid" in name]


def test_the_status_of_several_workers_is_waited_for(tmp_path: Path) -> None:
    async def status() -> dict[str, Any]:
        await asyncio.sleep(0)
        return STATUS

    assert asked(tmp_path / "m", lambda _: fetch(tmp_path / "m"), status)[0] == "HTTP/1.1 200 OK"


def test_a_status_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    def status() -> dict[str, Any]:
        raise VTLError("worker 7 does not answer")

    line, text = asked(tmp_path / "m", lambda _: fetch(tmp_path / "m"), status)
    assert line.startswith("HTTP/1.1 503 ")
    assert text == "worker 7 does not answer\n"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", "404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
        (b"\r\n\r\n", "405"),
        (b"\xff\xfe\0 \r\n\r\n", "405"),
        (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", "200"),
    ],
)
def test_other_requests(tmp_path: Path, request_: bytes, code: str) -> None:
    assert asked(tmp_path / "m", lambda _: fetch(tmp_path / "m", request_))[0].split()[1] == code


def test_head_has_no_body(tmp_path: Path) -> None:
    line, body = asked(tmp_path / "m", lambda _: fetch(tmp_path / "m", b"HEAD /metrics HTTP/1.1\r\n\r\n"))
    assert (line, body) == ("HTTP/1.1 200 OK", "")


def test_a_request_without_end_is_cut_off(tmp_path: Path) -> None:
    async def talk(_: MetricsServer) -> bool:
        _, writer = await asyncio.open_unix_connection(tmp_path / "m")
        try:
            for _ in range(1000):
                writer.write(b"x" * REQUEST_MAX)
                await writer.drain()
        except ConnectionError:
            return True
        finally:
            writer.transport.abort()
        return False

    assert asked(tmp_path / "m", talk)


def test_clients_that_say_nothing_neither_pile_up_nor_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE_S", 1.0)

    async def talk(_: MetricsServer) -> str:
        silent = [await asyncio.open_unix_connection(tmp_path / "m") for _ in range(CLIENTS_MAX)]
        with pytest.raises((ConnectionError, IndexError)):
            (await fetch(tmp_path / "m"))[0].split()[0]
        ends = await asyncio.gather(*(reader.read() for reader, _ in silent), return_exceptions=True)
        assert not any(end for end in ends if not isinstance(end, ConnectionError))
        for _, writer in silent:
            writer.transport.abort()
        monkeypatch.undo()
        return (await fetch(tmp_path / "m"))[0]

    assert asked(tmp_path / "m", talk) == "HTTP/1.1 200 OK"


def test_a_client_that_does_not_read_the_last_of_its_answer_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE_S", 0.2)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    room = ours.send(bytes(1 << 23))  # of the kernel, for one client
    ours.close()
    theirs.close()

    def status() -> dict[str, Any]:
        raise VTLError("x" * (room + 30_000))

    async def talk(_: MetricsServer) -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(tmp_path / "m"))
            sock.sendall(GET)
            end = select.poll()
            end.register(sock, select.POLLHUP)
            async with asyncio.timeout(PATIENCE_S):
                while not end.poll(0):
                    await asyncio.sleep(0.01)
        return True

    assert asked(tmp_path / "m", talk, status)


def test_an_address_that_is_taken_is_one_line() -> None:
    async def run() -> None:
        first = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        port = first.sockets[0].getsockname()[1]
        with pytest.raises(VTLError, match=rf"^--metrics: 127.0.0.1:{port}: .+; choose another address$"):
            await MetricsServer(("127.0.0.1", port), lambda: STATUS).start()
        first.close()

    asyncio.run(run())


def test_the_socket_is_private_and_removed(tmp_path: Path) -> None:
    async def talk(server: MetricsServer) -> int:
        return (tmp_path / "m").stat().st_mode & 0o777

    assert asked(tmp_path / "m", talk) == 0o600
    assert not (tmp_path / "m").exists()
