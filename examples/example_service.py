"""An example of a service: a cable through which frames of one ethertype do not pass.

python examples/example_service.py --iface vmnet1 --iface eth0      (as root)
"""

from functools import partial

import click

from vtl_tools.common.cli.options import common_options, guard_option, iface_option
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_status
from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.errors import Malformed
from vtl_tools.common.host.guard import MARK
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.runtime.runner import Options
from vtl_tools.common.stage import Stage


class Without(Stage):
    """Two ports. A frame with the ethertype, also behind VLAN tags, goes no further in either direction."""

    def __init__(self, ethertype: int) -> None:
        super().__init__()
        self.ethertype = ethertype

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        unwanted = [i for i, frame in enumerate(batch) if self.is_unwanted(frame)]
        if unwanted:
            self.drop(batch, unwanted, "ethertype")
        self.out[1 - port](batch, now)

    def is_unwanted(self, frame: memoryview) -> bool:
        try:
            return Packet.at(frame).ethertype == self.ethertype
        except Malformed:  # too short to tell; the outgoing link counts it
            return False


@click.group("example-service", cls=Tool)
@iface_option(multiple=True)
@click.option("--ethertype", default=0x86DD, show_default="34525, IPv6", help="What not to let pass.")
@guard_option()
@common_options
def main(iface: tuple[str, str], ethertype: int, guard: str, options: Options) -> None:
    """Let everything pass between two links but one ethertype."""
    if len(iface) != 2:
        raise click.UsageError("give --iface twice")
    run_service(partial(Without, ethertype), partial(links, iface), options, guard=guard)


def links(specs: tuple[str, str], fanout: int) -> list[Device]:
    return [open_device(spec, mark=MARK) for spec in specs]


add_status(main)

if __name__ == "__main__":
    main()
