"""The records of a running service, captures and logs, in its event loop; and SIGHUP."""

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from vtl_tools.common.host import hang_up, log_lines, scribe

log = logging.getLogger(__name__)


class Records:
    """Tells by warnings and by the event `recording` that records stop or go on. event: tells an event."""

    def __init__(self, event: Callable[..., object]) -> None:
        self.event = event

    def watch(self, loop: asyncio.AbstractEventLoop, on_hang_up: Callable[[], object]) -> None:
        """Begin. on_hang_up: called for each SIGHUP; one that arrived earlier counts."""
        self._loop = loop
        for one in scribe.live():
            if one.is_own:
                loop.add_reader(one.fileno(), self._look, one)
        if (handler := log_lines.handler()) is not None:
            handler.call_at = loop.call_at
        loop.add_signal_handler(signal.SIGHUP, on_hang_up)
        if hang_up.take():
            loop.call_soon(on_hang_up)

    def is_ready(self) -> None:
        """Note that the service has started."""
        if (handler := log_lines.handler()) is not None:
            handler.is_ready = True

    def _look(self, one: scribe.Scribe) -> None:
        for told in one.poll():
            what, file = told["what"], told["file"]
            if what == "ended":
                self._loop.remove_reader(one.fileno())
                log.warning("%s: %s; nothing is written until the service starts anew", file, told["why"])
            elif what == "stopped":
                log.warning("%s: %s; recording goes on when there is room", file, told["why"])
            elif what == "resumed":
                log.warning("%s: recording goes on", file)
            else:
                log.info("%s: recording goes on there", file)
            reason = {"reason": told["why"]} if "why" in told else {}
            cause = what, "" if what == "next" else file
            self.event("recording", cause=cause, what=what, file=file, **reason)

    def reopen(self) -> None:
        """Open the files by their names again that were renamed or removed."""
        for one in scribe.live():
            one.reopen()

    def status(self) -> dict[str, Any]:
        """Return the part of a status: `recordings`, if there are any."""
        told = [one.status() for one in scribe.live() if one.status is not None]
        return {"recordings": told} if told else {}
