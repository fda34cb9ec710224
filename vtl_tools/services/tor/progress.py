"""Shows how far the tor that vtl-tor started is: an event, a line of the log, or one line on the terminal."""

import logging
import sys
from collections.abc import Callable
from contextlib import suppress

from vtl_tools.common.stage import Stage
from vtl_tools.common.text import printable

log = logging.getLogger(__name__)


class BootstrapProgress:
    """Called with tor's progress in percent and its current step.

    stage: prints events. quiet: leave the terminal to a table. on_ready: called each time tor is ready.
    """

    def __init__(self, stage: Stage, *, quiet: bool, on_ready: Callable[[], object] | None = None) -> None:
        self._stage, self._quiet, self._on_ready = stage, quiet, on_ready

    def __call__(self, percent: int, step: str) -> None:
        """Show a step."""
        if percent == 100 and self._on_ready is not None:
            self._on_ready()
        self._stage.event("bootstrap", percent=percent, step=step)
        if log.isEnabledFor(logging.INFO):  # a line for each step, among the other lines
            log.info("tor: %d %%: %s", percent, step)
        elif sys.stderr.isatty() and not self._quiet:
            end = "\n" if percent == 100 else "\r"
            with suppress(OSError):  # the terminal was closed
                print(
                    f"\x1b[Ktor: {percent:3d} % {printable(step, 60)}", end=end, file=sys.stderr, flush=True
                )
