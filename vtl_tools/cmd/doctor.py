"""vtl-doctor: what each executable needs of this machine, whether it is there, and how to get it."""

import click

from vtl_tools.common.cli.options import json_option, verbose_option, version_option
from vtl_tools.common.cli.output import echo, print_json
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.doctor.needs import NEEDS, lacking


@click.group("vtl-doctor", cls=Tool)
@click.option(
    "--tool",
    "tools",
    multiple=True,
    type=click.Choice(sorted(NEEDS)),
    help="Only this executable; may be repeated.",
)
@json_option
@verbose_option
@version_option
def main(tools: tuple[str, ...], json: bool) -> None:
    """Examine this machine: what the executables need, what is missing, and how to get it.

    \b
    vtl-doctor
    vtl-doctor --tool vtl-fw --json

    Changes nothing. The exit status is 1 if a main use of an executable lacks something.
    """
    from vtl_tools.common.doctor.probes import probe_all

    findings = list(probe_all())
    states = {finding.name: finding.state for finding in findings}
    chosen = tools or tuple(sorted(NEEDS))
    uses = [(tool, use, *lacking(use, states)) for tool in chosen for use in NEEDS[tool]]
    is_ready = all(state == "ok" for _, use, state, _ in uses if use.main)
    if json:
        from dataclasses import asdict

        print_json(
            {
                "schema": "vtl-doctor.use/1",
                "tool": tool,
                "use": use.name,
                "main": use.main,
                "state": state,
                "lacks": lacks,
            }
            for tool, use, state, lacks in uses
        )
        print_json({"schema": "vtl-doctor.finding/1", **asdict(finding)} for finding in findings)
    else:
        for tool in chosen:
            own = [(use, state, lacks) for of, use, state, lacks in uses if of == tool]
            echo(f"{tool}: {_verdict([(use.name, state) for use, state, _ in own if use.main])}")
            for use, state, lacks in own:
                if lacks:
                    echo(f"  {use.name}  {state}: {', '.join(lacks)}")
        needed = {name for _, _, _, lacks in uses for name in lacks}
        for finding in findings:
            if finding.name in needed:
                echo(f"{finding.name}: {finding.detail}; {finding.remedy}")
    if not is_ready:
        raise SystemExit(1)


def _verdict(uses: list[tuple[str, str]]) -> str:
    """Return one line about the main uses of an executable, given with their states."""
    ready = [name for name, state in uses if state == "ok"]
    if len(ready) == len(uses):
        return "ready"
    return "ready with qemu:, dgram:, vxlan: and channel: links only" if ready else "not ready"
