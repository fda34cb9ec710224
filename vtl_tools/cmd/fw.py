"""vtl-fw: a stateful firewall that the guest cannot touch. Paper section 3.4."""

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common.cli import tool as cli
from vtl_tools.common.cli.parameters import IPv4Param, MacParam, NetworkParam
from vtl_tools.common.errors import VTLError
from vtl_tools.common.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Network, IPv6Network

    from vtl_tools.common.device.base import Device
    from vtl_tools.common.runtime.runner import Options
    from vtl_tools.services.fw.files import RuleReader
    from vtl_tools.services.fw.policy import Policy

log = logging.getLogger(__name__)

REMARKS_SHOWN: Final = 20
RELOAD_S: Final = 120.0
"""How long a service may take to compile the most rules that there may be, with frames in between."""


def load(file: str, reader: "RuleReader | None" = None, *, warn: bool = True) -> "Policy":
    """Return the policy of a file, and print what is odd about it. Raises RuleError.

    On a terminal, the line at fault is shown too.
    """
    from vtl_tools.services.fw.files import RuleReader
    from vtl_tools.services.fw.position import RuleError

    try:
        policy = (reader or RuleReader()).load(file)
    except RuleError as e:
        if e.text and sys.stderr.isatty():
            click.echo(e.excerpt, err=True)
        raise
    if warn:
        show_warnings(file, policy.ruleset.remarks)
    return policy


def show_warnings(file: str, remarks: "Sequence[object]") -> None:
    """Print what is odd about a file, unless it is too much."""
    for remark in remarks[:REMARKS_SHOWN]:
        log.warning("%s", remark)
    if len(remarks) > REMARKS_SHOWN:
        log.warning("%s: %d more warnings; see 'vtl-fw check'", file, len(remarks) - REMARKS_SHOWN)


rules_option = click.option("--rules", metavar="FILE", help="What may pass; - is standard input.")


@click.group("vtl-fw", cls=cli.Tool)
@cli.iface_option()
@click.option("--uplink", "-u", metavar="LINK", help="The link to the network, of the same kinds.")
@rules_option
@click.option(
    "--mac",
    type=MacParam(),
    metavar="MAC",
    help="The VM's Ethernet address.  [default: the first that it uses]",
)
@click.option(
    "--address",
    type=NetworkParam(),
    multiple=True,
    metavar="ADDRESS",
    help="An address or prefix of the VM; may be repeated.  [default: learned from DHCP and ND]",
)
@click.option(
    "--dhcp-server",
    "servers",
    type=IPv4Param(),
    multiple=True,
    metavar="ADDRESS",
    help="Where the answers of DHCP come from; may be repeated.  [default: any server of the link]",
)
@click.option("--spoofing", is_flag=True, help="Let the VM send as whoever it likes.")
@click.option("--forget", is_flag=True, help="Learn anew who the VM is, as it is another one now.")
@click.option(
    "--flows",
    type=click.IntRange(16, 1 << 22),
    default=131_072,
    show_default=True,
    metavar="N",
    help="Connections that are followed at once.",
)
@click.option(
    "--pcap-rules",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the packets of rules that say pcap (pcapng).",
)
@cli.guard_option_of("keep")
@cli.common_options
def main(
    iface: str,
    uplink: str,
    rules: str,
    mac: bytes | None,
    address: "tuple[IPv4Network | IPv6Network, ...]",
    servers: tuple[bytes, ...],
    spoofing: bool,
    forget: bool,
    flows: int,
    pcap_rules: Path | None,
    guard: str,
    options: "Options",
) -> None:
    """Let pass between a VM and its network what the rules allow, and nothing else.

    \b
    vtl-fw --iface vmnet1 --uplink eth0 --rules web.rules
    cat web.rules | vtl-fw --iface vmnet1 --uplink eth0 --rules -
    """
    for given, option, what in (
        (iface, "--iface", "the interface that the VM is behind"),
        (uplink, "--uplink", "the link to its network"),
        (rules, "--rules", "the file that says what may pass"),
    ):
        if not given:
            raise click.UsageError(f"give {option}: {what}")
    if spoofing and (mac or address or servers):
        raise click.UsageError(
            "--spoofing lets every address pass: leave --mac, --address and --dhcp-server out"
        )
    cli.check_links((iface, uplink))
    from vtl_tools.common.device.capped_capture import CappedCapture
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK
    from vtl_tools.common.runtime.control import path_for
    from vtl_tools.common.runtime.runner import say
    from vtl_tools.services.fw.files import full_name
    from vtl_tools.services.fw.identity import Identity
    from vtl_tools.services.fw.restart import keeper
    from vtl_tools.services.fw.stage import Firewall

    def make_stage() -> Firewall:
        policy = load(rules)
        if pcap_rules is None and any(rule.pcap for rule in policy.rules):
            log.warning("%s: a rule says pcap, and nothing is kept without --pcap-rules", rules)
        stage = Firewall(
            policy,
            full_name(rules),
            identity=None if spoofing else Identity(mac, address, servers),
            kept=None if pcap_rules is None else CappedCapture("--pcap-rules", pcap_rules, iface),
            flows_max=flows,
        )
        path = (options.control or path_for("vtl-fw", iface)).with_suffix(".state")
        stage.keeper = keeper(path, stage.tracker, stage.identity, time.monotonic(), forget=forget)
        if not (options.json or options.watch):
            stage.say = lambda line: say(sys.stderr.fileno(), printable(f"vtl-fw: {line}"), 0.0)
        return stage

    def make_links(_: int) -> "list[Device]":
        return [open_device(spec, mark=MARK) for spec in (iface, uplink)]

    cli.run(make_stage, make_links, options, guard=guard, vm_sides=1, verbs=Firewall.verbs)


# --- verbs

link_option = click.option("--link", metavar="LINK", help="Which service, by its first link; else all.")


@main.command(epilog=cli.EPILOG)
@cli.link_argument
@rules_option
@click.option("--dry-run", is_flag=True, help="Change nothing; list the connections that would end.")
@cli.json_option
@cli.verbose_option
def reload(link: str | None, rules: str | None, dry_run: bool, json: bool) -> None:
    """Put other rules in the place of those that hold; connections that they do not allow end.

    LINK is the service's first link, or the path of its control socket; without it all are told. The file is
    read here, as whoever asks: without --rules, the one that the service was started with.
    """
    from secrets import token_hex

    from vtl_tools.common.runtime import control
    from vtl_tools.services.fw.files import STDIN, RuleReader, full_name
    from vtl_tools.services.fw.parser import parse
    from vtl_tools.services.fw.uploads import pieces

    results = []
    for path in control.find("vtl-fw", link):
        file = rules or str(control.ask(path, "status")["policy"]["file"])
        if file == STDIN and not rules:
            raise click.UsageError("the rules came by a pipe: give --rules")
        reader, token, name = RuleReader(), token_hex(8), full_name(file)
        if not rules:
            parse(name, reader)  # the service names the file, and is not to be sent any other than rules
        reader.gather(name)
        try:
            for request in pieces(reader.files, token):
                control.ask(path, "upload", **request)
            told = control.ask(path, "reload", patience_s=RELOAD_S, token=token, file=name, dry_run=dry_run)
        except VTLError:
            load(name, reader)  # if the file is at fault, it is told here, with the line
            raise
        show_warnings(file, told["warnings"])
        results.append(told)
    if json:
        cli.print_json(results)
        return
    for result in results:
        for flow in result["names"]:
            cli.echo(flow)
        would = "would end" if dry_run else "ended"
        click.echo(
            f"{result['rules']} rules; {result['ended']} connections {would}, {result['flows']} are known",
            err=True,
        )


@main.command(epilog=cli.EPILOG)
@cli.link_argument
@click.option("--rule", metavar="LINE", help="Only those that this rule allowed; LINE or FILE:LINE.")
@click.option(
    "--address", type=NetworkParam(), metavar="ADDRESS", help="Only those of an address, or of a prefix."
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    metavar="N",
    help="So many of each service at most.",
)
@cli.json_option
@cli.verbose_option
def flows(
    link: str | None, rule: str | None, address: "IPv4Network | IPv6Network | None", limit: int, json: bool
) -> None:
    """List the connections that are known: who made them, their state, when they end, their rule."""
    from vtl_tools.common.runtime import control

    asked: dict[str, Any] = {"rule": rule, "address": None if address is None else str(address)}
    found: list[Any] = []
    more = False
    for path in control.find("vtl-fw", link):
        room, start = limit, 0
        while room and start is not None:
            told = control.ask(path, "flows", start=start, **asked)
            found += told["flows"][:room]
            more |= len(told["flows"]) > room
            room, start = max(0, room - len(told["flows"])), told["next"]
        more |= start is not None
    if json:
        cli.print_json(found)
    else:
        rows = (
            (flow["flow"], " ".join(flow["states"] or ()), f"{flow['ends_in_s']:.0f} s", flow["rule"])
            for flow in found
        )
        cli.print_table(("connection", "state", "ends in", "rule"), rows, right=("ends in",))
    if more:
        click.echo("there are more: narrow it by --rule or --address, or raise --limit", err=True)


words_argument = click.argument("packet", nargs=-1, required=True)


@main.command(epilog=cli.EPILOG)
@words_argument
@link_option
@cli.verbose_option
def kill(packet: tuple[str, ...], link: str | None) -> None:
    """End a connection, as `flows` names it: its next packet is judged as a first one.

    \b
    vtl-fw kill out tcp 10.0.0.5:40000 1.2.3.4:443
    """
    from vtl_tools.services.fw.question import read

    read(packet)  # so that what is wrong with it is told as wrong usage
    from vtl_tools.common.runtime import control

    refusals = []
    paths = control.find("vtl-fw", link)
    for path in paths:
        try:
            control.ask(path, "kill", words=packet)
        except VTLError as e:
            refusals.append(e)
    if len(refusals) == len(paths):  # no service has it
        raise refusals[0]


@main.command(epilog=cli.EPILOG)
@words_argument
@rules_option
@link_option
@cli.json_option
@cli.verbose_option
def explain(packet: tuple[str, ...], rules: str | None, link: str | None, json: bool) -> None:
    """Say which rule judges the first packet of a connection, and why those before it do not.

    \b
    vtl-fw explain out tcp 10.0.0.5:40000 1.2.3.4:443
    vtl-fw explain --rules web.rules in icmp 1.2.3.4 10.0.0.5 type echo-request
    """
    from vtl_tools.services.fw.answers import explained
    from vtl_tools.services.fw.question import read

    asked = read(packet)
    if rules is not None:
        results: list[Any] = [explained(load(rules), asked)]
    else:
        results = cli.ask_each(main, "explain", link, words=packet)
    if json:
        cli.print_json(results)
        return
    for result in results:
        for rule, why in result["steps"]:
            cli.echo(rule)
            cli.echo(f"    {why}")
        cli.echo(result["rule"])
        cli.echo(f"    matches: {result['verdict']}")
        for what, left in result.get("left", {}).items():
            name = "connections" if what == "connections" else "new ones"
            click.echo(
                f"    limit: room for {left} more {name}" if left else f"    limit: no more {name}: denied"
            )
        if "known" in result:
            cli.echo(f"but it is of a connection that is known: {result['known']}")


@main.command(epilog=cli.EPILOG)
@click.argument("file")
@cli.json_option
@cli.verbose_option
def check(file: str, json: bool) -> None:
    """See whether a rule FILE can be used, and what is odd about it. Needs no privilege and no service."""
    from vtl_tools.services.fw.explain import unreachable

    policy = load(file, warn=False)
    remarks = [*policy.ruleset.remarks, *unreachable(policy)]
    if json:
        cli.print_json([{"file": file, "rules": len(policy.rules), "warnings": [str(r) for r in remarks]}])
        return
    for remark in remarks:
        cli.echo(str(remark))
    click.echo(f"{file}: {len(policy.rules)} rules, {len(remarks)} warnings", err=True)


@main.command(epilog=cli.EPILOG)
@click.argument("options", nargs=-1)
@cli.json_option
@cli.verbose_option
def selftest(options: tuple[str, ...], json: bool) -> None:
    """Try every known way around the rules, in networks of its own, and tell what leaked.

    \b
    vtl-fw selftest
    vtl-fw selftest -- --address 10.0.2.15 --address fd76:746c:0:1::15 --address fe80::15

    A service with rules of its own and the OPTIONs stands between a guest and a network, which are made for
    it and reach nobody. Needs root. The exit status is 1 if anything leaked.
    """
    from vtl_tools.common.device.capture import quiet_scapy

    with quiet_scapy():
        from vtl_tools.common.selftest import report
        from vtl_tools.services.fw.selftest import attacks as fw_attacks
    service = [sys.executable, "-P", "-c", "from vtl_tools.cmd.fw import main; main(prog_name='vtl-fw')"]
    results = fw_attacks.run(service, options)
    held = report.print_json(results) if json else report.print_table(results, has_proxy=False)
    if not held:
        raise VTLError("selftest: not all was held back; what leaked is listed above")


cli.status_verb(main)
