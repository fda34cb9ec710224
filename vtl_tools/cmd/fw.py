"""vtl-fw: a stateful firewall that the guest cannot touch. Paper section 3.4."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.output import print_json, print_results, print_table
from vtl_tools.common.cli.parameters import IPv4Param, MacParam, NetworkParam
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.selftest import program_of, run_selftest
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_status, ask_each, sockets_of

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from vtl_tools.common.runtime.runner import Options

rules_option = click.option("--rules", metavar="FILE", help="The rule file; - is standard input.")


@click.group("vtl-fw", cls=Tool)
@opts.iface_option()
@click.option("--uplink", "-u", metavar="LINK", help="The link to the network.")
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
    forget: bool, flows: int, pcap_rules: Path | None, guard: str, options: "Options",
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
    if spoofing and (mac or address or servers):
        raise click.UsageError(
            "--spoofing allows every address: leave --mac, --address and --dhcp-server out"
        )
    links = links_of(iface, uplink)
    from vtl_tools.services.fw.identity import Identity
    from vtl_tools.services.fw.stage import Firewall
    from vtl_tools.services.fw.start import make_stage

    identity = None if spoofing else Identity(mac, address, servers)
    make = partial(
        make_stage, iface, rules, identity, options, forget=forget, flows_max=flows, pcap_rules=pcap_rules
    )
    run_service(make, links, options, guard=guard, vm_sides=1, verbs=Firewall.verbs)


# --- verbs

words_argument = click.argument("packet", nargs=-1, required=True)


@main.command()
@rules_option
@click.option("--dry-run", is_flag=True, help="Change nothing; list the connections that would end.")
@opts.verb_options
def reload(link: str | None, rules: str | None, dry_run: bool, json: bool) -> None:
    """Replace the rules of running services. Connections that the new rules do not allow end.

    This command reads the file. Without --rules, it is the file that the service has now.
    """
    from vtl_tools.services.fw import client

    results = [client.reload(path, rules, dry_run=dry_run) for path in sockets_of(main, link)]
    summary = partial(client.reloaded, dry_run=dry_run)
    print_results(results, json=json, lines=lambda result: result["names"], summary=summary)


@main.command()
@click.option("--rule", metavar="LINE", help="Only connections that this rule allowed; LINE or FILE:LINE.")
@click.option(
    "--address", type=NetworkParam(), metavar="ADDRESS", help="Only connections of an address or a prefix."
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=1000, show_default=True, metavar="N",
    help="Connections of each service at most.",
)  # fmt: skip
@opts.verb_options
def flows(link: str | None, rule: str | None, address: Any, limit: int, json: bool) -> None:
    """List the known connections: their ends, state, timeout and rule."""
    from vtl_tools.services.fw import client

    prefix = None if address is None else str(address)
    found, more = client.flows(sockets_of(main, link), limit, rule=rule, address=prefix)
    if json:
        print_json(found)
    else:
        titles = ("connection", "state", "ends in", "rule")
        print_table(titles, map(client.flow_row, found), right=("ends in",))
    if more:
        click.echo("there are more: give --rule or --address, or a higher --limit", err=True)


@main.command()
@words_argument
@opts.link_option
@opts.verbose_option
def kill(packet: tuple[str, ...], link: str | None) -> None:
    """End a connection, named as `flows` names it. The rules judge its next packet as a first one.

    \b
    vtl-fw kill out tcp 10.0.0.5:40000 1.2.3.4:443
    """
    from vtl_tools.services.fw import client

    client.kill(sockets_of(main, link), packet)


@main.command()
@words_argument
@rules_option
@opts.verb_options
def explain(packet: tuple[str, ...], rules: str | None, link: str | None, json: bool) -> None:
    """Show which rule judges the first packet of a connection, and why the rules before it do not.

    \b
    vtl-fw explain out tcp 10.0.0.5:40000 1.2.3.4:443
    vtl-fw explain --rules web.rules in icmp 1.2.3.4 10.0.0.5 type echo-request
    """
    from vtl_tools.services.fw import answers, client, question
    from vtl_tools.services.fw.files import load_rules

    asked = question.read(packet)
    if rules is None:
        results = ask_each(main, "explain", link, words=packet)
    else:
        results = iter([answers.explained(load_rules(rules), asked)])
    print_results(results, json=json, lines=client.explanation)


@main.command()
@click.argument("file")
@opts.json_option
@opts.verbose_option
def check(file: str, json: bool) -> None:
    """Check a rule FILE for errors, and print warnings. Needs no privilege and no running service."""
    from vtl_tools.services.fw.explain import unreachable
    from vtl_tools.services.fw.files import load_rules

    policy = load_rules(file, warn=False)
    warnings = [str(warning) for warning in (*policy.ruleset.remarks, *unreachable(policy))]
    result = {"file": file, "rules": len(policy.rules), "warnings": warnings}
    summary = f"{file}: {len(policy.rules)} rules, {len(warnings)} warnings"
    print_results([result], json=json, lines=lambda _: warnings, summary=lambda _: summary)


@main.command()
@click.argument("options", nargs=-1)
@opts.json_option
@opts.verbose_option
def selftest(options: tuple[str, ...], json: bool) -> None:
    """Try every known way around the rules in private networks, and list what leaked.

    \b
    vtl-fw selftest
    vtl-fw selftest -- --address 10.0.2.15 --address fd76:746c:0:1::15 --address fe80::15

    A service with its own rules and the OPTIONs runs between a guest and a network that are made for the
    test and have no other links. Needs root. The exit status is 1 if anything leaked.
    """
    run_selftest(
        "vtl_tools.services.fw.selftest.attacks", program_of("vtl-fw"), options, json=json, has_proxy=False
    )


add_status(main)
