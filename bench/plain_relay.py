"""A relay to the very addresses that the guest calls: what vtl-tor does, without its proxy."""

import os
import socket
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli.options import common_options, guard_option, iface_option
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.neighbours import NeighbourResponder
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.connector import Connector, TCPConnector
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.tcp.wire import Path

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options


@lru_cache(1024)
def host_of(address: bytes) -> tuple[int, str]:
    """Return an address's family and text."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return family, socket.inet_ntop(family, address)


def dial(path: Path) -> Connector:
    """Return the connector to the address that the guest connects to."""
    family, host = host_of(path.local)
    return TCPConnector((host, path.local_port), family)


def make_stage() -> Relay:
    """Return the relay, which answers for every neighbour of the guest as well."""
    neighbours = NeighbourResponder(GuestAddresses(prefix=None), 0.0)

    def answer(frame: memoryview, now: float) -> None:
        with suppress(Malformed):
            if (said := neighbours.answer(Packet.at(frame), now)) is not None:
                relay.send(0, [(bytes(said),)], now)

    relay = Relay(dial, os.urandom(32), on_non_tcp=answer)
    return relay


@click.group("plain-relay", cls=Tool)
@iface_option()
@guard_option()
@common_options
def main(iface: str, guard: str, options: "Options") -> None:
    """Carry each connection of the guest over one of ours."""
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK

    run_service(make_stage, lambda _: [open_device(iface, mark=MARK)], options, guard=guard)


if __name__ == "__main__":
    main()
