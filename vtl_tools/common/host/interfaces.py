"""The interfaces of this host that a service is in the way of: locked, guarded and watched while it runs.

A VM's interface is guarded. An uplink is the host's own, too, and is not. Which is which the user says;
nothing that is learned from the network, such as a route, has a say in it.
"""

import logging
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final, Self

from vtl_tools.common.errors import SpecError
from vtl_tools.common.host import interface, lock
from vtl_tools.common.host.guard import Form, Guard

log = logging.getLogger(__name__)

_NETLINK_NETFILTER: Final = 12
_RTMGRP_LINK: Final = 1
_NFTABLES_GROUP: Final = 1 << 6  # NFNLGRP_NFTABLES, the seventh
_OURS: Final = b"vtl_"
_RECEIVE_OCTETS: Final = 1 << 16
_RECEIVES_MAX: Final = 64  # a turn; more wake us again

LOCK_PATIENCE_S: Final = 1.0
"""How long a service that was killed may take to go with its workers."""


@dataclass(frozen=True)
class Side:
    """An interface by any of its names. directions: of a VM's frames, that pass there; None: an uplink."""

    given: str
    directions: Sequence[str] | None = lock.BOTH


class _Held:
    """One interface with its lock, and its guards where it has some.

    A guard that is kept belongs to nobody, so that another program may flush it away. One that belongs to the
    process stands beside it, which the kernel lets nobody else touch, until the first is raised anew.
    """

    def __init__(self, service: str, side: Side, form: Form | None) -> None:
        self.given = side.given
        self.index, self.name = interface.find(side.given)
        wanted: list[Form] = ["process", "kept"] if form == "kept" else [] if form is None else [form]
        self.guards = [] if side.directions is None else [Guard(side.given, each) for each in wanted]
        self.lock = lock.Lock(service, side.directions, keeps=bool(self.guards) and form == "kept")

    def take(self, patience_s: float = 0.0) -> None:
        until = time.monotonic() + patience_s
        while True:
            try:
                return self.lock.take(self.index, self.name)
            except lock.TakenError:
                if time.monotonic() >= until:
                    raise
                time.sleep(0.05)

    def follow(self) -> None:
        """Lock an interface that was deleted and made anew. Raises TakenError."""
        if interface.name_of(self.index) is None and (index := interface.index_of(self.given)):
            self.index = index
            self.take()


class Interfaces:
    """A context manager: while it is open, the interfaces are this service's. Their links are opened within.

    form: of the guards of VMs' interfaces; None for none. sure: one that is guarded also where the host's
    default route leads there, since a guest can make one.
    """

    def __init__(self, service: str, form: Form | None, sides: Sequence[Side], sure: str = "") -> None:
        self._service, self._form, self._wanted, self._sure = service, form, sides, sure
        self._sides: list[_Held] = []
        self._stack = ExitStack()

    def __bool__(self) -> bool:
        """Say whether there are any."""
        return bool(self._wanted)

    def __enter__(self) -> Self:
        """Lock, then guard.

        Raises DeviceError, PermissionNeededError, SpecError, or VTLError where another service has one.
        """
        with ExitStack() as stack:
            if self:
                self._open(stack)
            self._stack = stack.pop_all()
        return self

    def _open(self, stack: ExitStack) -> None:
        for wanted in self._wanted:
            side = _Held(self._service, wanted, self._form)
            for other in self._sides:
                if other.index == side.index:
                    raise SpecError(
                        f"{side.given}: is {other.given}; a service stands between different links"
                    )
            self._sides.append(side)
        self._refuse_uplinks_as_vms()
        stack.enter_context(self._watching())
        for side in self._sides:
            stack.callback(side.lock.release)
            side.take(LOCK_PATIENCE_S)
        for side in self._sides:
            for guard in side.guards:
                stack.callback(self._leave, guard)
                guard.up()
            if side.guards:
                for family in interface.default_routes(side.name):
                    log.warning(
                        "%s: the host has a default route by it, which the guard cuts off; "
                        "remove it with 'ip %s route del default dev %s'", side.name, family, side.name,
                    )  # fmt: skip

    def _refuse_uplinks_as_vms(self) -> None:
        """Refuse to cut the host off by what is more likely its own uplink."""
        for side in self._sides:
            if side.guards and side.given != self._sure and interface.default_routes(side.name):
                raise SpecError(
                    f"{side.given}: carries the host's default route, and a guard would cut the host off; "
                    f"name it as --uplink {side.given}, or remove the route where a VM is behind it"
                )

    def _watching(self) -> ExitStack:
        """Open what tells of changes, before there is anything to change."""
        with ExitStack() as stack:
            self._epoll = stack.enter_context(select.epoll())
            self._sockets = []
            for protocol, groups in (
                (socket.NETLINK_ROUTE, _RTMGRP_LINK),
                (_NETLINK_NETFILTER, _NFTABLES_GROUP),
            ):
                kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
                sock = stack.enter_context(socket.socket(socket.AF_NETLINK, kind, protocol))
                try:
                    sock.bind((0, groups))
                except PermissionError:  # told, in words, where the lock is taken
                    continue
                self._epoll.register(sock, select.EPOLLIN)
                self._sockets.append(sock)
            return stack.pop_all()

    @staticmethod
    def _leave(guard: Guard) -> None:
        is_up = bool(guard.index)
        guard.down()
        if guard.form == "kept" and is_up:
            log.warning("%s: stays guarded; lift it with 'vtl-guard clear %s'", guard.name, guard.name)

    def __exit__(self, *exc: object) -> None:
        """Let go of the locks, and of the guards that are not kept."""
        self._stack.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._epoll.fileno()

    def poll(self) -> list[tuple[str, str]]:
        """Hear what became of interfaces and tables, and check() where it may concern us.

        Raises as check() does.
        """
        concerned = False
        for _ in range(_RECEIVES_MAX):
            ready = self._epoll.poll(0)
            if not ready:
                break
            for sock in self._sockets:
                try:
                    told = sock.recv(_RECEIVE_OCTETS)
                except BlockingIOError:
                    continue
                except OSError:  # ENOBUFS: some was lost
                    concerned = True
                    continue
                concerned |= sock.proto == socket.NETLINK_ROUTE or _OURS in told
        return self.check() if concerned else []

    def check(self) -> list[tuple[str, str]]:
        """Raise the guards anew that are not in force; return which, by interface, and what happened.

        Raises VTLError where that cannot be, or another service took the interface meanwhile.
        """
        found = []
        for side in self._sides:
            side.follow()
            raised = {guard.name: happened for guard in side.guards if (happened := guard.check())}
            for name, happened in raised.items():
                log.warning("%s: %s; the guard was raised anew", name, happened)
                found.append((name, happened))
        return found

    def status(self) -> dict[str, object]:
        """Return what a service's status says of its guards."""
        last = [side.guards[-1] for side in self._sides if side.guards]
        rows = {guard.name: {"form": guard.form, "raised_anew": guard.raised_anew} for guard in last}
        return {"guards": rows} if rows else {}
