"""Builds vortex-client: the tap beside the stack, what tells of ports, and the stage."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import interface
from vtl_tools.common.host.guard import MARK
from vtl_tools.common.runtime.control import Result, Verb
from vtl_tools.common.session.base import Address
from vtl_tools.common.session.keys import key_id
from vtl_tools.services.vortex.addresses import Pair
from vtl_tools.services.vortex.backend_link import BackendLink
from vtl_tools.services.vortex.client import VortexClient
from vtl_tools.services.vortex.disguise import Disguise
from vtl_tools.services.vortex.limits import Limits, Sources
from vtl_tools.services.vortex.listener import HELLO
from vtl_tools.services.vortex.port_events import PolledPorts, PortEvents
from vtl_tools.services.vortex.ports import PortUse, Range
from vtl_tools.services.vortex.silence import Silence
from vtl_tools.services.vortex.sock_diag import sockets_of_host
from vtl_tools.services.vortex.tap import BesideStack, Leaving
from vtl_tools.services.vortex.volunteer import Volunteer, traits_of_host

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wormhole:
    """The link to the backend. address, key: of a tcp: link, which is a session with vortex-backend."""

    spec: str
    address: Address | None = None
    key: bytes = b""

    def open(self) -> Device:
        """Return the link, not open yet."""
        if self.address is None:
            return open_device(self.spec, mark=MARK)
        # The library imports it at its first use, when the service may not read root's modules any more.
        import cryptography.hazmat.backends.openssl.backend  # noqa: F401

        from vtl_tools.common.session.tcp_link import TCPLink

        return TCPLink(
            self.spec, self.address, server=False, key=self.key, hello=HELLO,
            introduction=key_id(self.key),
        )  # fmt: skip


class Build:
    """The links and the stage of one vortex-client, which share what is open of the interface."""

    def __init__(
        self, name: str, wormhole: Wormhole, scope: list[Range], addresses: Pair, limits: Limits,
        *, echo: bool, allow_private: bool,
    ) -> None:  # fmt: skip
        self._name, self._wormhole, self._echo, self._limits = name, wormhole, echo, limits
        self._addresses = addresses
        self.ports = PortUse(scope)
        self._sources = Sources(allow_private=allow_private)
        self._tap = BesideStack(name, self.ports, mark=MARK, echo=echo)

    def links(self, _: int) -> list[Device]:
        """Return the links, not open yet: that of the backend, and the interface."""
        return [self._wormhole.open(), self._tap]

    def stage(self) -> VortexClient:
        """Return the stage; from now on the host is silent for unused ports. Raises VTLError."""
        index, _ = interface.find(self._name)
        try:
            leaving = Leaving(self._name, self.ports, mark=MARK)
            events = _events()
            silence = Silence(index, self.ports.scope, echo=self._echo)
            host = Volunteer(self._name, self.ports, self._sources, self._tap, leaving, events, silence)
            disguise = Disguise(traits_of_host(self._name), lambda: int.from_bytes(os.urandom(4)))
            link = BackendLink(*self._addresses)
            stage = VortexClient(
                self.ports, link, host, disguise, self._sources, self._limits, echo=self._echo
            )
            for source in leaving, events:
                source.on_used = stage.on_used
            host.moved()
            for port in sockets_of_host()[0]:
                self.ports.use(port)
        except PermissionError:
            raise PermissionNeededError(
                f"{self._name}: not permitted to look beside the stack; run as root"
            ) from None
        except OSError as e:
            raise DeviceError(f"{self._name}: {e.strerror}; run 'vtl-doctor vortex-client'") from None
        host.apply()
        stage.sources = [leaving, events]
        return stage


def _events() -> PortEvents | PolledPorts:
    try:
        return PortEvents()
    except OSError as e:
        log.warning("eBPF is refused: %s; sockets are looked for 50 times a second", e.strerror)
        return PolledPorts(lambda: sockets_of_host()[0])


def verbs(stage: VortexClient) -> dict[str, Verb]:
    """Return the verbs of a running client."""
    from time import monotonic

    def switch(change: Callable[[float], None]) -> Verb:
        def act(_: dict[str, Any]) -> Result:
            change(monotonic())
            return {"paused": stage.is_paused}

        return act

    return {
        "pause": switch(stage.pause),
        "resume": switch(stage.resume),
        "log": lambda _: {"flows": list(stage.flows.told(monotonic()))},
    }
