"""Makes the stage of vtl-udt from its options: transports, peers, and what listens."""

import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from vtl_tools.common.device.peer import resolve
from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host.own_addresses import OwnAddresses
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.services.udt.allowed import AllowList, Network, Route
from vtl_tools.services.udt.near import FarModule
from vtl_tools.services.udt.stage import OnFlow, Transformer
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.base import Address, PathProfile, Transport
from vtl_tools.services.udt.transport.channel import SessionConfig
from vtl_tools.services.udt.transport.dialer import Dialer
from vtl_tools.services.udt.transport.tcp import TCPTransport

log = logging.getLogger(__name__)

AUTO: Final = ("tcp",)
"""The transports of `auto`, the preferred one first."""
EVERYWHERE: Final[tuple[Network, Network]] = IPv4Network("0.0.0.0/0"), IPv6Network("::/0")
_AT_WARNING: Final = ("peer-down", "peer-refused")


def transport_of(name: str, profile: PathProfile) -> Transport:
    """Return a transport."""
    return TCPTransport(profile)


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
) -> Transformer:
    """Return the stage; see vtl-udt(1) for the options. Raises VTLError."""
    _refuse_twice([network for network, _ in peers])
    transports = _transports(transport)
    config = SessionConfig(encrypt=encrypt, memory=memory << 20)
    told = _Told()
    modules: dict[Address, FarModule] = {}
    behind: list[tuple[Network, FarModule]] = []
    for network, given in peers:
        if given not in modules:
            modules[given] = _far_module(given, transports, key, config, told)
        behind += [(each, modules[given]) for each in (EVERYWHERE if network is None else (network,))]
    stage = Transformer(
        behind,
        AllowList((Route(*each) for each in routes), clients, OwnAddresses()),
        secret=os.urandom(32),
        uplink=uplink,
        limits=RelayLimits(connections=connections, memory=memory << 19),  # RelayLimits.most is twice that
    )
    told.stage = stage
    if listen is not None:
        for one in transports:
            stage.listen(one.name, partial(_answerer, one, _numeric(listen, one.name), key, config, told))
    stage.capabilities = frozenset().union(*(one.capabilities for one in transports))
    return stage


class _Told:
    """Tells an event of a session, and logs it. stage: what tells it."""

    stage: Transformer | None = None

    def __call__(self, name: str, **fields: Any) -> None:
        """Tell and log."""
        level = logging.WARNING if name in _AT_WARNING else logging.INFO
        why = f": {fields['why']}" if "why" in fields else ""
        log.log(level, "%s: %s by %s%s", fields["peer"], name.removeprefix("peer-"), fields["transport"], why)
        if self.stage is not None:
            self.stage.event(name, **fields)


def _transports(name: str) -> list[Transport]:
    """Return the transports of an option's value, ready for use: for `auto`, those that this host has."""
    profile = PathProfile()
    found = []
    for each in AUTO if name == "auto" else (name,):
        one = transport_of(each, profile)
        try:
            one.start()
        except VTLError as e:
            if name != "auto" or each == AUTO[0]:
                raise
            log.info("%s", e)
            continue
        found.append(one)
    return found


def _far_module(
    given: Address, transports: Sequence[Transport], key: bytes, config: SessionConfig, told: _Told
) -> FarModule:
    dialers = {
        one.name: Dialer(one, _numeric(given, one.name), key, config, event=told) for one in transports
    }
    return FarModule(f"{given[0]}:{given[1]}", dialers, bbr=_has_bbr(), event=told)


def _answerer(
    transport: Transport, where: Address, key: bytes, config: SessionConfig, told: _Told, on_flow: OnFlow
) -> Answerer:
    return Answerer(transport, where, key, config, on_flow, event=told)


def _numeric(given: Address, transport: str) -> Address:
    """Return a host's address and the port of a transport there: SRT shares no UDP port with UDT."""
    host, port = given
    _, where = resolve(f"{host}:{port}", given, socket.SOCK_STREAM)
    assert not isinstance(where, str)
    return str(where[0]), port + 1 if transport == "srt" else port


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
