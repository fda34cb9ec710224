"""The verbs of vtl-fw: what asks a running firewall, and what works on rule files alone."""

from functools import partial
from typing import Any, BinaryIO, Final

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.completion import RULES
from vtl_tools.common.cli.output import print_json, print_results, print_table
from vtl_tools.common.cli.parameters import NetworkParam
from vtl_tools.common.cli.selftest import program_of, run_selftest
from vtl_tools.common.cli.verbs import ask_each, current_tool, sockets_of

rules_option = click.option("--rules", type=RULES, metavar="FILE", help="The rule file; - is standard input.")
words_argument = click.argument("packet", nargs=-1, required=True)


@click.command()
@rules_option
@click.option("--dry-run", is_flag=True, help="Change nothing; list the connections that would end.")
@opts.verb_options
def reload(link: str | None, rules: str | None, dry_run: bool, json: bool) -> None:
    """Replace the rules of running services. Connections that the new rules do not allow end.

    This command reads the file. Without --rules, it is the last one that the service was given by name.
    """
    from vtl_tools.services.fw import client

    results = [client.reload(path, rules, dry_run=dry_run) for path in sockets_of(current_tool(), link)]
    summary = partial(client.reloaded, dry_run=dry_run)
    print_results(
        results, json=json, schema="vtl-fw.reload/1", lines=lambda one: one["names"], summary=summary
    )


@click.command()
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
    found, more = client.flows(sockets_of(current_tool(), link), limit, rule=rule, address=prefix)
    if json:
        print_json(found, "vtl-fw.flow/1")
    else:
        titles = ("connection", "state", "ends in", "rule")
        print_table(titles, map(client.flow_row, found), right=("ends in",), names=("connection",))
    if more:
        click.echo("there are more: give --rule or --address, or a higher --limit", err=True)


@click.command()
@words_argument
@opts.link_option
@opts.verbose_option
def kill(packet: tuple[str, ...], link: str | None) -> None:
    """End a connection, named as `flows` names it. The rules judge its next packet as a first one.

    \b
    vtl-fw kill out tcp 10.0.0.5:40000 1.2.3.4:443
    """
    from vtl_tools.services.fw import client

    client.kill(sockets_of(current_tool(), link), packet)


@click.command()
@opts.verb_options
def forget(link: str | None, json: bool) -> None:
    """Forget the VM behind a link, its leases and connections: another VM takes its place.

    The next VM that sends is the one behind the link. Run this when the former one has ended.
    """
    from vtl_tools.services.fw import client

    results = client.forget(sockets_of(current_tool(), link))
    print_results(results, json=json, schema="vtl-fw.forget/1", lines=lambda _: (), summary=client.forgotten)


@click.command()
@words_argument
@rules_option
@click.option("--exit-code", is_flag=True, help="Exit with 1 unless the packet is allowed, as a test needs.")
@opts.verb_options
def explain(
    packet: tuple[str, ...], rules: str | None, exit_code: bool, link: str | None, json: bool
) -> None:
    """Show which rule judges the first packet of a connection, and why the rules before it do not.

    A running service first says whether the packet is the VM's to send.

    \b
    vtl-fw explain out tcp 10.0.0.5:40000 1.2.3.4:443
    vtl-fw explain --rules web.rules in icmp 1.2.3.4 10.0.0.5 type echo-request
    """
    from vtl_tools.services.fw import answers, client, question
    from vtl_tools.services.fw.files import load_rules

    asked = question.read(packet)
    if rules is None:
        results = list(ask_each(current_tool(), "explain", link, words=packet))
    else:
        alone = {"verdict": "unknown", "reason": "", "text": answers.NOT_ASKED}
        results = [{**answers.explained(load_rules(rules), asked), "identity": alone}]
    print_results(results, json=json, schema="vtl-fw.explain/1", lines=client.explanation)
    if exit_code and not all(client.is_allowed(result) for result in results):
        click.get_current_context().exit(1)


@click.command()
@click.argument("file", type=RULES)
@click.option("--expand", is_flag=True, help="Print all rules, also those that a preset stands for.")
@opts.json_option
@opts.verbose_option
def check(file: str, expand: bool, json: bool) -> None:
    """Check a rule FILE, and print all its errors, or warnings. Needs no privilege and no running service."""
    from vtl_tools.services.fw.explain import unreachable
    from vtl_tools.services.fw.files import load_rules

    policy = load_rules(file, warn=False)
    warnings = (*policy.ruleset.remarks, *unreachable(policy))
    result = {"file": file, "rules": len(policy.rules), "warnings": [one.details for one in warnings]}
    if expand:
        result["expanded"] = [{"rule": rule.key, "text": rule.text} for rule in policy.rules]
    lines = [*(policy.rules if expand else ()), *warnings]
    summary = f"{file}: {len(policy.rules)} rules, {len(warnings)} warnings"
    print_results(
        [result],
        json=json,
        schema="vtl-fw.check/1",
        lines=lambda _: map(str, lines),
        summary=lambda _: summary,
    )


@click.command()
@click.argument("file", default="-")
@opts.verb_options
def export(file: str, link: str | None, json: bool) -> None:
    """Write what a service knows of its VM to FILE or standard output, for the VM's next host.

    That is its identity and its connections.
    """
    from vtl_tools.services.fw import client

    answer = client.export_state(client.only_one(sockets_of(current_tool(), link)))
    if file == "-":
        click.echo(answer["state"], nl=False)
        return
    client.write_state(file, answer["state"])
    if json:
        print_json([{"file": file, "connections": answer["connections"]}], "vtl-fw.export/1")


@click.command("import")
@click.argument("file", type=click.File("rb"), default="-")
@opts.verb_options
def import_(file: BinaryIO, link: str | None, json: bool) -> None:
    """Load what `export` wrote on another host, from FILE or standard input.

    The rules that hold here judge each of the connections when its first packet comes.
    """
    from vtl_tools.services.fw import client
    from vtl_tools.services.fw.transfer import OCTETS_MAX

    path = client.only_one(sockets_of(current_tool(), link))
    result = client.import_state(path, file.read(OCTETS_MAX + 1))
    print_results([result], json=json, schema="vtl-fw.import/1", lines=lambda _: (), summary=client.imported)


@click.command()
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


VERBS: Final = (reload, flows, kill, forget, explain, export, import_, check, selftest)
