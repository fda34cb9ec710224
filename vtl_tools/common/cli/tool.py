"""The frame of a command: a group of verbs that turns an error into one line and an exit status.

Slow modules are imported where they are used, here and in every command: --help takes a tenth of a second.
"""

import json
import logging
import os
import sys
from typing import Any, Final

import click

from vtl_tools.common.errors import VTLError
from vtl_tools.common.text import printable, stamp

EPILOG: Final = "Links, shared options and exit statuses are explained in vtl-tools(7)."


class _LogLine(logging.Formatter):
    """Formats a record as one printable line, as it may quote text from outside."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - likewise
        """Return the traceback, indented."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


class Tool(click.Group):
    """A command that runs a service. Its verbs ask a running one.

    A VTLError becomes one line on standard error and the error's exit status.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("invoke_without_command", True)
        kwargs.setdefault("epilog", EPILOG)
        kwargs.setdefault(
            "context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        )
        super().__init__(*args, **kwargs)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a verb, with the epilog of all."""
        cmd.epilog = cmd.epilog or EPILOG
        super().add_command(cmd, name)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit with a status that vtl-tools(7) documents."""
        logging.basicConfig(level=logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_LogLine(f"{self.name}: %(message)s"))
        kwargs["standalone_mode"] = False  # click passes errors and interrupts on
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.ClickException as e:
            command = getattr(getattr(e, "ctx", None), "command_path", self.name)
            problem = e.format_message().rstrip(".").replace("\n", " ")
            stop = "" if problem.endswith(("?", ")")) else ";"
            self._fail(f"{problem[:1].lower()}{problem[1:]}{stop} see '{command} --help'", e.exit_code)
        except click.Abort:
            sys.exit(130)
        except VTLError as e:
            self._fail(str(e), e.exit_code)
        except BrokenPipeError:
            # The reader of our output has gone, as in 'vtl-bridge status | head -1'.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as e:
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                raise
            self._fail(f"internal error: {e!r}; run again with -vv and report it", 1)

    def _fail(self, problem: str, exit_code: int) -> None:
        if "--json" in sys.argv:
            told = {"schema": "error/1", "time": stamp(), "tool": self.name, "event": "error"}
            print(json.dumps({**told, "error": problem, "exit": exit_code}), flush=True)
        click.echo(f"{self.name}: {printable(problem)}", err=True)
        sys.exit(exit_code)
