"""Opens the second connection of a split one: from a socket of the host."""

import socket
from collections.abc import Callable

from vtl_tools.common.relay.connector import TCPConnector
from vtl_tools.common.socks import Reason
from vtl_tools.services.split.destinations import SocketAddress
from vtl_tools.services.split.tuning import Tuning


class SplitConnector(TCPConnector):
    """Opens a tuned TCP connection. It is refused if the destination is closed by the time that it is open.

    is_open: tells that; an address may become the host's own in between.
    """

    def __init__(self, address: SocketAddress, tuning: Tuning, is_open: Callable[[], bool]) -> None:
        super().__init__(address, socket.AF_INET if len(address) == 2 else socket.AF_INET6)
        self._tuning, self._is_open = tuning, is_open
        self._is_set = tuning.prepare(self.stream, address)

    def step(self, events: int) -> bytes | Reason | None:
        """Connect; size the buffers once the round-trip time is known."""
        result = super().step(events)
        if isinstance(result, bytes):
            if not self._is_open():
                return Reason.PROHIBITED
            self._tuning.fit(self.stream, self._address, self._is_set)
        return result
