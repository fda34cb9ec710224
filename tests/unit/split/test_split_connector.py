"""The second connection, as it opens."""

import select
import socket
from contextlib import closing

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
