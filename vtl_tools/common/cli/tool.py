"""The frame of a command: a group of verbs that turns an error into one line and an exit status.

Slow modules are imported where they are used, here and in every command: --help takes a tenth of a second.
"""

import errno
import gc
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import hang_up, log_lines
from vtl_tools.common.text import printable, stamp

GC_THRESHOLD: Final = (100_000, 50, 1000)
"""Threshold of Python's cyclic garbage collector: high. Reference counts free nearly all objects; a scan of
those of many connections would delay frames, and scans during the imports the start."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
EPILOG: Final = "Links, shared options and exit statuses are explained in vtl-tools(7)."


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
        gc.set_threshold(*GC_THRESHOLD)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a character that the terminal lacks is no failure
        hang_up.hold()
        self._log = log_lines.install(str(self.name))
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
            self._fail(str(e), e.exit_code, lines=e.lines, details=e.details)
        except BrokenPipeError:
            # The reader of our output has gone, as in 'vtl-bridge status | head -1'.
            _discard_output()
            sys.exit(1)
        except OSError as e:
            if e.errno not in _NO_ROOM or logging.getLogger().isEnabledFor(logging.DEBUG):
                self._fail_internally(e)
            _discard_output()
            self._fail(f"standard output: {e.strerror}; free space on its file system", 1)
        except Exception as e:
            self._fail_internally(e)

    def _fail_internally(self, error: Exception) -> None:
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            raise error
        self._fail(f"internal error: {error!r}; run again with -vv and report it", 1)

    def _fail(
        self, problem: str, exit_code: int, *, lines: Sequence[str] = (), details: Mapping[str, object] = {}
    ) -> None:
        if "--json" in sys.argv:
            told = {"schema": "error/1", "time": stamp(), "tool": self.name, "event": "error"}
            line = json.dumps({**told, "error": problem, "exit": exit_code, **details})
            log_lines.write_line(sys.stdout, line)
        for each in lines or (problem,):
            self._log.fail(printable(each))
        sys.exit(exit_code)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find a verb. It ends by SIGHUP, unlike a service."""
        hang_up.release()
        return super().resolve_command(ctx, args)


def _discard_output() -> None:
    """Let Python's last flush succeed, as its error would change the exit status."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
