"""vtl-fw: a stateful firewall that the guest cannot touch. Paper section 3.4."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtl_tools.cmd.fw_verbs import VERBS, rules_option
from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.parameters import IPv4Param, MacParam, NetworkParam
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from vtl_tools.common.cli.event_lines import Words
    from vtl_tools.common.runtime.runner import Options


@click.group("vtl-fw", cls=Tool)
@opts.iface_option()
@click.option("--uplink", "-u", type=LINK, metavar="LINK", help="The link to the network.")
@rules_option
@click.option("--mac", type=MacParam(), metavar="MAC", help="The VM's Ethernet address.  [default: learned]")
@click.option(
    "--address", type=NetworkParam(), multiple=True, metavar="ADDRESS",
    help="An address or prefix of the VM; may be repeated.  [default: learned from DHCP and ND]",
)  # fmt: skip
@click.option(
    "--dhcp-server", "servers", type=IPv4Param(), multiple=True, metavar="ADDRESS",
    help="Accept DHCP answers from this address; may be repeated.  [default: any server on the uplink]",
)  # fmt: skip
@click.option("--spoofing", is_flag=True, help="Let the VM send from any address.")
@click.option("--forget", is_flag=True, help="Discard the learned identity (use after replacing the VM).")
@click.option(
    "--vm", type=click.Choice(["fixed", "reappearing"]), default="fixed", show_default=True,
    help="Whether another VM may take the place of the first when the host creates its interface again.",
)  # fmt: skip
@click.option(
    "--flows", type=click.IntRange(16, 1 << 22), default=131_072, show_default=True, metavar="N",
    help="Size of the connection table.",
)  # fmt: skip
@click.option(
    "--pcap-rules", type=opts.FILE, metavar="FILE", help="Record the packets of rules that say pcap (pcapng)."
)
@opts.guard_option("keep")
@opts.common_options
def main(
    iface: str, uplink: str, rules: str, mac: bytes | None,
    address: "tuple[IPv4Network | IPv6Network, ...]", servers: tuple[bytes, ...], spoofing: bool,
    forget: bool, vm: str, flows: int, pcap_rules: Path | None, guard: str, options: "Options",
) -> None:  # fmt: skip
    """Forward between a VM and its network the packets that the rules allow, and no others.

    \b
    vtl-fw --iface vmnet1 --uplink eth0 --rules web.rules
    cat web.rules | vtl-fw --iface vmnet1 --uplink eth0 --rules -
    """
    opts.require(
        (iface, "--iface", "the interface that the VM is behind"),
        (uplink, "--uplink", "the link to its network"),
        (rules, "--rules", "the rule file"),
    )
    follows = vm == "reappearing"
    if spoofing and (mac or address or servers or follows):
        raise click.UsageError(
            "--spoofing allows every address: leave --mac, --address, --dhcp-server and --vm out"
        )
    if follows and ":" in iface and not iface.startswith(("qemu:unix:", "libpcap:")):
        raise click.UsageError(
            f"--vm reappearing: nothing tells when another VM is behind {iface}: use 'vtl-fw forget' instead"
        )
    links = links_of(iface, uplink)
    from vtl_tools.services.fw.identity import Identity
    from vtl_tools.services.fw.stage import Firewall
    from vtl_tools.services.fw.start import make_stage

    identity = None if spoofing else Identity(mac, address, servers, follows=follows)
    make = partial(
        make_stage, iface, rules, identity, options, forget=forget, flows_max=flows, pcap_rules=pcap_rules
    )
    # An address that the firewall learns may be the uplink's own, so that all frames have to be looked at.
    run_service(
        make, links, options, guard=guard, vm_sides=1, shares_uplinks=mac is not None, vm_mac=mac,
        verbs=Firewall.verbs,
    )  # fmt: skip


def _words() -> "Words":
    from vtl_tools.services.fw.packet_log import words

    return {"packet": words}


for verb in VERBS:
    main.add_command(verb)
add_events(main, _words)
add_status(main)
