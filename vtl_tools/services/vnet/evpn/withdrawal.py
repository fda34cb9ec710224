"""Withdraws the routes of a vtl-vnet that was killed: gobgpd keeps what a lost connection has announced.

They are known by their route distinguisher, which no other host has.
"""

import logging
import socket
import time
from collections.abc import Iterator
from typing import Final

from vtl_tools.common.device.peer import Address, resolve
from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.services.vnet.evpn import gobgp_api as api
from vtl_tools.services.vnet.evpn.grpc import GrpcConnection, GrpcEnd, GrpcMessage

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 5.0
_READ: Final = 1 << 16
_AT_ONCE: Final = 32


def withdraw_all(spec: str, address: Address, network: api.OwnNetwork) -> None:
    """Withdraw all routes of a network that are ours. Waits for gobgpd, for five seconds at most."""
    try:
        family, where = resolve(spec, address, socket.SOCK_STREAM)
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.settimeout(_PATIENCE_S)
            sock.connect(where)
            _Withdrawal(sock, network).run()
    except (OSError, VTLError, Malformed) as e:
        log.warning("%s: gobgpd may still have our stations: %s", spec, e)


class _Withdrawal:
    """One connection to gobgpd. Raises OSError, Malformed."""

    def __init__(self, sock: socket.socket, network: api.OwnNetwork) -> None:
        self._sock, self._network = sock, network
        self._grpc = GrpcConnection("gobgpd")
        self._deadline = time.monotonic() + _PATIENCE_S

    def run(self) -> None:
        """Ask for all routes, and withdraw ours."""
        call = self._grpc.call(f"{api.SERVICE}ListPath", api.LIST)
        own = {mac for message in self._answers(call) for mac in api.own_macs(message, self._network)}
        paths = [api.path(self._network, mac, 0, withdraw=True) for mac in own]
        for at in range(0, len(paths), _AT_ONCE):
            request = api.add_paths(paths[at : at + _AT_ONCE])
            for _ in self._answers(self._grpc.call(f"{api.SERVICE}AddPathStream", request)):
                pass

    def _answers(self, call: int) -> Iterator[memoryview]:
        """Yield the messages of a call until it ends."""
        while True:
            self._sock.settimeout(max(1e-3, self._deadline - time.monotonic()))
            self._sock.sendall(self._grpc.outbox)
            self._grpc.outbox.clear()
            if not (octets := self._sock.recv(_READ)):
                raise ConnectionResetError("closed the connection")
            for told in self._grpc.receive(octets):
                if isinstance(told, GrpcMessage):
                    yield memoryview(told.octets)
                elif isinstance(told, GrpcEnd) and told.call in (0, call):
                    if told.why:
                        raise OSError(told.why)
                    return
