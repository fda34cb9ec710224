"""The connection to gobgpd: routes in, own stations out. It is made again whenever it is lost."""

import errno
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from typing import Final

from vtl_tools.common.device.base import RETRY_S
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.device.peer import Address, resolve
from vtl_tools.common.errors import Malformed
from vtl_tools.common.host import broker
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.services.vnet.evpn import gobgp_api as api
from vtl_tools.services.vnet.evpn.grpc import GrpcConnection, GrpcEnd, GrpcMessage
from vtl_tools.services.vnet.evpn.table import EvpnTable

log = logging.getLogger(__name__)

PER_S: Final = 200.0
"""Own stations that are announced or withdrawn a second, for long; all hosts hear of each."""
BURST: Final = 1000.0
_READ: Final = 1 << 16
_PATHS_AT_ONCE: Final = 64
_PATH_MAX: Final = 1024
_ANSWER_S: Final = 5.0
_CLOSE_S: Final = 1.0


class GobgpClient:
    """Keeps a table up to date by gobgpd, and gobgpd by the table.

    address: (host, port), or the path of a unix socket. handle: watches the connection.
    why: the reason for which it is not connected; "": it is.
    """

    def __init__(
        self, spec: str, address: Address, network: api.OwnNetwork, table: EvpnTable, handle: Handle
    ) -> None:
        self._spec, self._network, self._table, self._handle = spec, network, table, handle
        self._family, self._where = resolve(spec, address, socket.SOCK_STREAM)
        self._door = broker.UnixTarget(address) if isinstance(address, str) else None
        self._sock: socket.socket | None = None
        self._grpc: GrpcConnection | None = None
        self._asked = self._updates = self._watch = 0
        self._paths: Iterator[memoryview] | None = None
        self._messages: deque[GrpcMessage] = deque()
        self._bucket = TokenBucket(PER_S, BURST)
        self._waits_to_write = False
        self._due = 0.0
        self.why = "is not connected yet"
        self.malformed = 0

    @property
    def is_up(self) -> bool:
        """Whether gobgpd tells its routes."""
        return self._watch > 0

    def advance(self, now: float) -> None:
        """Do a bounded part of the work. Never blocks."""
        try:
            if self._sock is None:
                if now < self._due:
                    return
                self._connect(now)
            self._read()
            self._announce(now)
            self._ask(now)
            self._write()
        except Malformed as e:
            self.malformed += 1
            self._end(str(e), now)
        except OSError as e:
            self._end((e.strerror or str(e)).lower(), now)

    # --- the connection

    def _connect(self, now: float) -> None:
        sock = self._sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = sock.connect_ex(self._where) if self._door is None else self._door.connect_ex(sock)
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        self._due = now + _ANSWER_S
        self._grpc = GrpcConnection("gobgpd")
        self._asked = self._grpc.call(f"{api.SERVICE}GetBgp", b"")
        self._waits_to_write = True
        self._handle.watch(sock.fileno(), write=True)

    def _ask(self, now: float) -> None:
        """Ask from time to time, to see that gobgpd is not merely there. It refuses frequent PINGs."""
        if now < self._due:
            return
        if self._asked or self._grpc is None:
            raise OSError(errno.ETIMEDOUT, "does not answer")
        self._asked = self._grpc.call(f"{api.SERVICE}GetBgp", b"")
        self._due = now + _ANSWER_S

    def _end(self, why: str, now: float) -> None:
        if self._sock is not None:
            self._handle.forget(self._sock.fileno())
            self._sock.close()
        if self.why != why:
            log.warning("%s: gobgpd %s; trying again", self._spec, why)
        self._sock, self._grpc, self.why = None, None, why
        self._asked = self._updates = self._watch = 0
        self._paths = None
        self._messages.clear()
        self._due = now + RETRY_S

    def _read(self) -> None:
        """Take routes; octets only when all earlier ones are taken."""
        assert self._sock is not None
        if self._paths is None and not self._messages:
            try:
                octets = self._sock.recv(_READ)
            except BlockingIOError:
                return
            if not octets:
                raise OSError(errno.ECONNRESET, "closed the connection")
            assert self._grpc is not None
            for event in self._grpc.receive(octets):
                if isinstance(event, GrpcMessage):
                    self._messages.append(event)
                else:
                    self._on_end(event)
        for _ in range(_PATHS_AT_ONCE):
            if self._paths is not None:
                if (told := next(self._paths, None)) is None:
                    self._paths = None
                else:
                    self._take(told)
            elif self._messages:
                self._on_message(self._messages.popleft())
            else:
                return
        self._handle.wake()

    def _on_end(self, told: GrpcEnd) -> None:
        if told.why or told.call in (0, self._watch, self._updates):
            raise OSError(errno.EPROTO, f"says: {told.why or 'the end'}")

    def _on_message(self, told: GrpcMessage) -> None:
        message = memoryview(told.octets)
        if told.call == self._watch:
            self._paths = api.paths_of(message)
        elif told.call == self._asked:
            self._asked = 0
            if not (asn := api.asn_of(message)):
                raise OSError(errno.EPROTO, "runs no BGP")
            if not self.is_up:
                self._begin(asn)

    def _begin(self, asn: int) -> None:
        assert self._grpc is not None
        self._network = self._table.join(asn)
        self._table.begin()
        self._updates = self._grpc.call(
            f"{api.SERVICE}AddPathStream", api.add_paths([api.path(self._network, b"", 0)]), more=True
        )
        self._watch = self._grpc.call(f"{api.SERVICE}WatchEvent", api.WATCH)
        self.why = ""
        log.info("%s: gobgpd of AS %d tells its routes", self._spec, asn)

    def _take(self, told: memoryview) -> None:
        try:
            route = api.read_route(told)
        except Malformed:
            self.malformed += 1
            return
        if route is not None:
            self._table.learn(route)

    # --- own stations

    def _announce(self, now: float) -> None:
        """Tell of own stations, as many as gobgpd and the rate have room for."""
        while self._updates and self._grpc is not None:
            room = min(self._grpc.room(self._updates) // _PATH_MAX, _PATHS_AT_ONCE)
            paths: list[bytes] = []
            while len(paths) < room and self._table.has_update and self._bucket.take(now):
                if (update := self._table.next_update()) is not None:
                    mac, sequence = update
                    withdraw = sequence is None
                    paths.append(api.path(self._network, mac, sequence or 0, withdraw=withdraw))
            if not paths:
                return
            self._grpc.send(self._updates, api.add_paths(paths))

    def _write(self) -> None:
        assert self._sock is not None
        if self._grpc is None:
            return
        outbox = self._grpc.outbox
        if outbox:
            with suppress(BlockingIOError):
                del outbox[: self._sock.send(outbox)]
        if self._waits_to_write != bool(outbox):
            self._waits_to_write = bool(outbox)
            self._handle.watch(self._sock.fileno(), write=self._waits_to_write)

    def close(self) -> None:
        """Withdraw all that was announced, as far as that takes no longer than a second. Idempotent."""
        sock, grpc = self._sock, self._grpc
        self._sock = self._grpc = None
        if sock is None:
            return
        if grpc is not None and self._updates:
            own = dict.fromkeys((b"", *self._table.told()))
            gone = list(islice(own, max(1, grpc.room(self._updates) // _PATH_MAX)))
            paths = [api.path(self._network, mac, 0, withdraw=True) for mac in gone]
            grpc.send(self._updates, api.add_paths(paths), last=True)
            try:
                self._await_end(sock, grpc)
            except (OSError, Malformed) as e:
                log.warning("%s: gobgpd may still have our stations: %s", self._spec, e)
        self._handle.forget(sock.fileno())
        sock.close()

    def _await_end(self, sock: socket.socket, grpc: GrpcConnection) -> None:
        deadline = time.monotonic() + _CLOSE_S
        told: list[GrpcMessage | GrpcEnd] = []
        while not any(isinstance(one, GrpcEnd) and one.call == self._updates for one in told):
            sock.settimeout(max(1e-3, deadline - time.monotonic()))
            sock.sendall(grpc.outbox)
            grpc.outbox.clear()
            if not (octets := sock.recv(_READ)):
                return
            told = grpc.receive(octets)
