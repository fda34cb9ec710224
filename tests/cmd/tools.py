"""The executables as setup.cfg names them, and what click knows of each."""

import configparser
import importlib
import sys
from pathlib import Path

import click

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def executables() -> dict[str, str]:
    """Each executable's name, and where its command is, as vtl_tools.cmd.bridge:main."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): where.strip() for name, _, where in (line.partition("=") for line in lines)}


TOOLS = sorted(executables())


def command(tool: str) -> click.Group:
    """The click command of an executable."""
    module, _, attribute = executables()[tool].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, click.Group)
    return found


SERVICES = [tool for tool in TOOLS if any(parameter.name == "iface" for parameter in command(tool).params)]


def context(tool: str) -> click.Context:
    """The context in which an executable's verbs are parsed."""
    group = command(tool)
    return click.Context(group, **group.context_settings)


def options(tool: str, verb: str | None = None) -> set[str]:
    """All options of an executable or of its verb, as --iface and -i."""
    within = context(tool)
    asked = within.command
    if verb is not None:
        asked = command(tool).commands[verb]
        within = click.Context(asked, parent=within)
    known = [p for p in asked.get_params(within) if isinstance(p, click.Option)]
    return {word for option in known for word in (*option.opts, *option.secondary_opts)}


def arguments(tool: str, verb: str) -> set[str]:
    """The names of a verb's arguments."""
    return {str(p.name) for p in command(tool).commands[verb].params if isinstance(p, click.Argument)}


KEPT = {
    "vtl-bridge": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-freeze": {"CAP_NET_RAW", "CAP_BPF"},
    "vtl-fw": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-split": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-subnet": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-tor": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-udt": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-vnet": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-wan": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vtl-ack": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vortex-backend": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
    "vortex-client": {"CAP_NET_ADMIN", "CAP_NET_RAW"},
}
"""What of root's rights each service may keep, with one link or another."""
