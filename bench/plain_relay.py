"""A relay to the very addresses that the guest calls: what vtl-tor does, without its proxy."""

import os
import socket
from typing import TYPE_CHECKING

import click

from vtl_tools.common import cli
from vtl_tools.common.relay.call import Call, TCPCall
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.tcp.wire import Path

if TYPE_CHECKING:
    from vtl_tools.common.runtime import Options


def dial(path: Path) -> Call:
    """Call whom the guest called."""
    family = socket.AF_INET if len(path.local) == 4 else socket.AF_INET6
    return TCPCall((socket.inet_ntop(family, path.local), path.local_port), family)


@click.group("plain-relay", cls=cli.Tool)
@cli.iface_option()
@cli.guard_option
@cli.common_options
def main(iface: str, guard: str, options: "Options") -> None:
    """Carry each connection of the guest over one of ours."""
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.guard import MARK

    cli.run(
        lambda: Relay(dial, os.urandom(16)), lambda _: [open_device(iface, mark=MARK)], options, guard=guard
    )


if __name__ == "__main__":
    main()
