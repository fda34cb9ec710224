"""The host's interfaces that a service uses: locked, guarded and watched while it runs.

A VM's interface is guarded. An uplink also belongs to the host, and is not. The user decides which is which.
Nothing learned from the network, such as a route, has an influence on it.
"""

import logging
import select
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

from vtl_tools.common.errors import SpecError
from vtl_tools.common.host import interface, lock
from vtl_tools.common.host.guard import Form, Guard
from vtl_tools.common.host.routes import default_routes

log = logging.getLogger(__name__)

_NETLINK_NETFILTER: Final = 12
_RTMGRP_LINK: Final = 1
_NFTABLES_GROUP: Final = 1 << 6  # NFNLGRP_NFTABLES, the seventh
_OURS: Final = b"vtl_"
_RECEIVE_OCTETS: Final = 1 << 16
_RECEIVES_MAX: Final = 64  # per turn; the rest wakes the loop again

LOCK_PATIENCE_S: Final = 1.0
"""Seconds to wait for a killed service and its workers to release an interface."""


class Side(NamedTuple):
    """An interface by any of its names. directions: of the VM's frames that pass there; None: an uplink."""

    given: str
    directions: Sequence[str] | None = lock.BOTH


class _Held:
    """One interface with its lock, and its guards if it has any.

    A kept guard belongs to no process, so another program may flush it. The process's own guard beside it,
    which the kernel protects from others, stays in force until the kept one is raised again.
    """

    def __init__(self, service: str, side: Side, form: Form | None) -> None:
        self.given = side.given
        self.index, self.name = interface.find(side.given)
        wanted: list[Form] = ["process", "kept"] if form == "kept" else [] if form is None else [form]
        self.guards = [] if side.directions is None else [Guard(side.given, each, service) for each in wanted]
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
        """Lock an interface that was deleted and created again. Raises TakenError."""
        if interface.name_of(self.index) is None and (index := interface.index_of(self.given)):
            self.index = index
            self.take()


class Interfaces:
    """Context manager: while it is open, this service owns the interfaces. Open their links within it.

    form: of the guards of VMs' interfaces; None for none. sure: an interface that is guarded even if the
    host's default route leads there, since a guest can cause such a route; but not where the service is
    attended, by a person who starts it at a terminal and may be cut off.
    """

    def __init__(
        self,
        service: str,
        form: Form | None,
        sides: Sequence[Side],
        sure: str = "",
        *,
        attended: bool = False,
    ) -> None:
        self._attended = attended
        self._service, self._form, self._wanted, self._sure = service, form, sides, sure
        self._sides: list[_Held] = []
        self._stack = ExitStack()

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self._wanted)

    def __enter__(self) -> Self:
        """Lock, then guard.

        Raises DeviceError, PermissionNeededError, SpecError, or VTLError if another service has an interface.
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
                for family, device in default_routes(side.name):
                    log.warning(
                        "%s: the guard cuts off the host's default route through this interface; "
                        "remove it with 'ip %s route del default dev %s'", side.name, family, device,
                    )  # fmt: skip

    def _refuse_uplinks_as_vms(self) -> None:
        """Refuse to guard an interface that is probably the host's own uplink.

        A guest can cause a route by its interface, also where a service is restarted: without a person who
        reads the refusal, the first interface is guarded all the same.
        """
        for side in self._sides:
            is_sure = side.given == self._sure and not self._attended
            if side.guards and not is_sure and (routes := default_routes(side.name)):
                remedies = " and ".join(f"'ip {family} route del default dev {on}'" for family, on in routes)
                raise SpecError(
                    f"{side.given}: carries the host's default route, and a guard would cut the host off; "
                    f"name it as --uplink {side.given}, remove the route by {remedies} where a VM is behind "
                    "it, or give --guard off"
                )

    def _watching(self) -> ExitStack:
        """Open the sockets that notify of changes, before any change is made."""
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
                except PermissionError:  # taking the lock reports it
                    continue
                self._epoll.register(sock, select.EPOLLIN)
                self._sockets.append(sock)
            return stack.pop_all()

    @staticmethod
    def _leave(guard: Guard) -> None:
        is_up = bool(guard.index)
        guard.down()
        if guard.form == "kept" and is_up:
            log.warning(
                "%s: stays guarded, and its guest cut off; start a service again, or give the interface back "
                "with 'vtl-guard clear %s'", guard.name, guard.name,
            )  # fmt: skip

    def __exit__(self, *exc: object) -> None:
        """Release the locks, and the guards that are not kept."""
        self._stack.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._epoll.fileno()

    def poll(self) -> list[tuple[str, str]]:
        """Read notifications about interfaces and tables, and check() if one may concern us.

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
                except OSError:  # ENOBUFS: notifications were lost
                    concerned = True
                    continue
                concerned |= sock.proto == socket.NETLINK_ROUTE or _OURS in told
        return self.check() if concerned else []

    def check(self) -> list[tuple[str, str]]:
        """Raise the guards again that are not in force. Return (interface, what happened) of each.

        Raises VTLError if that fails, or another service took the interface meanwhile.
        """
        found = []
        for side in self._sides:
            side.follow()
            raised = {guard.name: happened for guard in side.guards if (happened := guard.check())}
            for name, happened in raised.items():
                log.warning("%s: %s; the guard was raised again", name, happened)
                found.append((name, happened))
        return found

    def forms(self) -> dict[str, str]:
        """Return the form of the guard of each interface that has one."""
        return {side.guards[-1].name: side.guards[-1].form for side in self._sides if side.guards}

    def status(self) -> dict[str, object]:
        """Return the guards' part of a service's status."""
        last = [side.guards[-1] for side in self._sides if side.guards]
        rows = {guard.name: {"form": guard.form, "raised_anew": guard.raised_anew} for guard in last}
        return {"guards": rows} if rows else {}
