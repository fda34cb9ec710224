"""The verb `selftest` of a service: runs its attacks, prints the results, and fails if anything leaked."""

import sys
from collections.abc import Sequence
from importlib import import_module

from vtl_tools.common.errors import VTLError


def program_of(tool: str) -> list[str]:
    """Return a command line that runs a tool from where this process was loaded, without its options."""
    code = f"from vtl_tools.cmd.{tool.removeprefix('vtl-')} import main; main(prog_name={tool!r})"
    return [sys.executable, "-P", "-c", code]


def run_selftest(attacks: str, *arguments: Sequence[str], json: bool, has_proxy: bool) -> None:
    """Run attacks and print their results. Raises VTLError if anything leaked.

    attacks: the module whose run() takes the arguments and yields results.
    """
    from vtl_tools.common.device.capture import quiet_scapy

    with quiet_scapy():
        from vtl_tools.common.selftest import report

        results = import_module(attacks).run(*arguments)
    held = report.print_json(results) if json else report.print_table(results, has_proxy=has_proxy)
    if not held:
        raise VTLError("selftest: traffic leaked; see the list above")
