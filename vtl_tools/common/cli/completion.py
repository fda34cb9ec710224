"""Types of options whose values a shell completes: links, rule files, running services."""

from typing import TYPE_CHECKING, Final

import click

from vtl_tools.common.cli.parameters import ParamType

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class LinkParam(ParamType):
    """A link. Completes the names of interfaces, and the path in a form such as qemu:unix:PATH."""

    name = "link"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Return the candidates."""
        from socket import if_nameindex

        from click.shell_completion import CompletionItem

        if ":/" in incomplete or incomplete.startswith("pcap:"):
            return [CompletionItem(incomplete, type="file")]
        found = sorted(name for _, name in if_nameindex())
        return [CompletionItem(name) for name in found if name != "lo" and name.startswith(incomplete)]


class RulesParam(ParamType):
    """A rule file, or - for standard input. Unlike click.Path, it leaves the file to be opened once."""

    name = "rules"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Have the shell complete the name of a file."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class RunningParam(ParamType):
    """A running service: its first link, or its control socket."""

    name = "service"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> "list[CompletionItem]":
        """Return the first links of the tool's services."""
        from click.shell_completion import CompletionItem

        from vtl_tools.common.runtime import control

        if "/" in incomplete:
            return [CompletionItem(incomplete, type="file")]
        start = f"{ctx.find_root().command.name}-"
        found = sorted(path.stem for path in control.directory().glob(f"{start}*.sock"))
        links = (name.removeprefix(start) for name in found)
        return [CompletionItem(link) for link in links if link.startswith(incomplete)]


LINK: Final = LinkParam()
RULES: Final = RulesParam()
RUNNING: Final = RunningParam()
