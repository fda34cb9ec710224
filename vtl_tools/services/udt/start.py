"""Makes the stage of vtl-udt from its options: transports, peers, and what listens."""

import logging
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

# The library imports it at its first use, when the service may not read root's modules any more.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

from vtl_tools.common.device.peer import resolve
from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host.own_addresses import OwnAddresses
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.session.base import Address, PathProfile, Transport
from vtl_tools.common.session.tcp import TCPTransport
from vtl_tools.services.udt.allowed import AllowList, Network, Route
from vtl_tools.services.udt.causes import Causes
from vtl_tools.services.udt.near import FarModule
from vtl_tools.services.udt.stage import OnFlow, Transformer
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.companion import CompanionTransport
from vtl_tools.services.udt.transport.dialer import Dialer
from vtl_tools.services.udt.transport.session import SessionConfig
from vtl_tools.services.udt.transport.srt import SRTTransport
from vtl_tools.services.udt.transport.udt import UDTTransport
from vtl_tools.services.udt.transport.window import WindowBudget

log = logging.getLogger(__name__)

KINDS: Final = {"tcp": TCPTransport, "srt": SRTTransport, "udt": UDTTransport}
"""Transports by name. `auto` has all of them, the preferred one first."""
EVERYWHERE: Final[tuple[Network, Network]] = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
PORTS: Final = {"tcp": 0, "udt": 0, "srt": 1}
"""Distance of a transport's port from the given one: SRT and UDT share no UDP port."""
PORT_MAX: Final = 65535
_AT_WARNING: Final = ("peer-down", "peer-refused")


def make_stage(
    *,
    uplink: bool,
    peers: Sequence[tuple[Network | None, Address]],
    listen: Address | None,
    transport: str,
    key: bytes,
    encrypt: bool,
    routes: Sequence[tuple[Network, bytes | None]],
    clients: Sequence[Network],
    connections: int,
    memory: int,
    stations: Sequence[tuple[bytes, bytes]] = (),
    on_demand: bool = False,
) -> Transformer:
    """Return the stage; see vtl-udt(1) for the options. Raises VTLError."""
    _refuse_twice([network for network, _ in peers])
    transports = _able(transport)
    config = SessionConfig(encrypt=encrypt, memory=memory << 20)
    told = _Told()
    modules: dict[Address, FarModule] = {}
    behind: list[tuple[Network, FarModule]] = []
    dial = partial(Dialer, psk=key, config=config, event=told, budget=WindowBudget(config.memory))
    for network, given in peers:
        if given not in modules:
            modules[given] = _far_module(given, transports, dial, told)
        behind += [(each, modules[given]) for each in (EVERYWHERE if network is None else (network,))]
    stage = Transformer(
        behind,
        AllowList((Route(*each) for each in routes), clients, OwnAddresses()),
        secret=os.urandom(32),
        uplink=uplink,
        has_bbr=_has_bbr(),
        stations=dict(stations),
        takes=not on_demand,
        limits=RelayLimits(connections=connections, memory=memory << 19),  # RelayLimits.most is twice that
    )
    told.stage = stage
    if listen is not None:
        answer = partial(Answerer, psk=key, config=config, event=told, budget=WindowBudget(config.memory))
        for one, where in _places(listen, transports):
            stage.listen(one.name, partial(_answerer, answer, one, where))
    stage.capabilities = frozenset().union(*(one.capabilities for one in transports))
    return stage


def _able(name: str) -> list[Transport]:
    """Return the transport of this name, or for `auto` those that this host has. Raises VTLError."""
    profile = PathProfile()
    if name != "auto":
        one: Transport = KINDS[name](profile)
        one.check()
        return [one]
    found: list[Transport] = []
    for kind in KINDS.values():
        one = kind(profile)
        try:
            one.check()
        except VTLError as e:
            log.info("%s", e)
            continue
        found.append(one)
    return found


def _places(given: Address, transports: Sequence[Transport]) -> Iterator[tuple[Transport, Address]]:
    """Yield each transport with its address at HOST:PORT, unless it is one of several that cannot have it."""
    _, where = resolve(f"{given[0]}:{given[1]}", given, socket.SOCK_STREAM)
    assert not isinstance(where, str)
    for one in transports:
        place = str(where[0]), given[1] + PORTS[one.name]
        try:
            if place[1] > PORT_MAX:
                raise SpecError(f"port {given[1]}: {one.name} uses the one after it; give a lower port")
            if isinstance(one, CompanionTransport):
                one.check_address(place)
        except SpecError:
            if len(transports) == 1:
                raise
            continue
        yield one, place


class _Told:
    """Tells an event of a session, and logs it. stage: what tells it."""

    stage: Transformer | None = None

    def __init__(self) -> None:
        self._logged = Causes()

    def __call__(self, name: str, **fields: Any) -> None:
        """Tell and log."""
        level = logging.WARNING if name in _AT_WARNING else logging.INFO
        host = fields["peer"].rpartition(":")[0]
        if "cause" in fields and not self._logged.is_first((name, host, fields.get("why"))):
            level = logging.DEBUG
        why = f": {fields['why']}" if "why" in fields else ""
        log.log(level, "%s: %s by %s%s", fields["peer"], name.removeprefix("peer-"), fields["transport"], why)
        if self.stage is not None:
            self.stage.event(name, **fields)


def _far_module(
    given: Address, transports: Sequence[Transport], dial: Callable[..., Dialer], told: _Told
) -> FarModule:
    dialers = {one.name: dial(one, where) for one, where in _places(given, transports)}
    shown = f"[{given[0]}]" if ":" in given[0] else given[0]
    return FarModule(f"{shown}:{given[1]}", dialers, has_bbr=_has_bbr(), event=told)


def _answerer(answer: Callable[..., Answerer], one: Transport, where: Address, on_flow: OnFlow) -> Answerer:
    return answer(one, where, on_flow=on_flow)


def _has_bbr() -> bool:
    """Return whether this process may use BBR."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
        except OSError:
            return False
    return True


def _refuse_twice(networks: Sequence[Network | None]) -> None:
    for network in networks:
        if networks.count(network) > 1:
            what = "all destinations" if network is None else str(network)
            raise SpecError(f"--peer: {what}: given twice; a prefix is behind one peer")
