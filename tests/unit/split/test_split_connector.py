"""The second connection, as it opens."""

import select
import socket
from contextlib import closing

import pytest

from vtl_tools.common.relay import connector
from vtl_tools.common.relay.connector import WRITABLE
from vtl_tools.common.socks import Reason
from vtl_tools.services.split.connector import SplitConnector
from vtl_tools.services.split.tuning import Tuning


def opened(is_open: bool) -> bytes | Reason | None:
    tuning = Tuning(None, 1e9, 1 << 30)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connector = SplitConnector(server.getsockname(), tuning, lambda: is_open)
        with closing(connector.stream):
            result = connector.step(0)
            if result is None:
                poll = select.poll()
                poll.register(connector.stream, select.POLLOUT)
                assert poll.poll(60_000)
                result = connector.step(WRITABLE)
            tuning.release(connector.stream)
    assert tuning.enlarged == 0
    return result


def test_a_destination_that_was_closed_meanwhile_is_refused() -> None:
    assert opened(is_open=True) == b""
    assert opened(is_open=False) is Reason.PROHIBITED


@pytest.mark.parametrize("chosen", [None, "cubic", "newreno"])
def test_bulk_data_within_the_host_is_not_paced_unless_asked_for(monkeypatch, chosen: str | None) -> None:
    monkeypatch.setitem(connector._unpaced, ("127.0.0.1", 80), True)
    tuning = Tuning(chosen, 1e9, 1 << 30)
    kernels = {"newreno": "reno"}.get(chosen, chosen)
    for port, expected in (80, kernels or "reno"), (81, kernels or tuning.congestion):
        with closing(SplitConnector(("127.0.0.1", port), tuning, lambda: True).stream) as stream:
            name = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")
            assert expected is None or name == expected.encode()


@pytest.mark.parametrize(("bandwidth", "is_near"), [(1e9, True), (1e18, False)])
def test_a_host_that_was_near_gets_no_large_window_next_time(bandwidth: float, is_near: bool) -> None:
    tuning = Tuning(None, bandwidth, 1 << 30)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        near = socket.create_connection(address)
    with near:
        assert tuning.prepare(near, address)
        tuning.fit(near, address, True)
        tuning.release(near)
        assert tuning.prepare(near, address) is not is_near
