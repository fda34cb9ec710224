"""SIGHUP of vtl-fw: the file of --rules is read again, and takes effect as by `vtl-fw reload`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import log_lines
from vtl_tools.common.host.broker import ReadAgain
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.common.text import printable
from vtl_tools.services.fw.files import STDIN, RuleReader, log_warnings, pack

log = logging.getLogger(__name__)

_KEPT: Final = "the rules of before stay in force"


class RulesAgain:
    """Reads a rule file and all that it includes whenever it is asked to. file: its full name.

    The service may not read files any more, so the broker does, which knows the name from the start.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self._source = None if file == STDIN else ReadAgain(file, self._read)
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False

    def _read(self) -> int:
        reader = RuleReader()
        reader.gather(self.file)
        with SealedFile.of(pack(reader.files)) as packed:
            return packed.release()

    def begin(
        self, reload: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]], event: Callable[..., object]
    ) -> None:
        """Begin to reload, by a function that takes what the verb `reload` does. A file at fault is a
        warning.
        """
        if self._source is None:
            log.warning("%s: cannot be read again; %s; use 'vtl-fw reload --rules FILE'", self.file, _KEPT)
            return
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._go_on(self._source, reload, event))

    async def _go_on(
        self,
        source: ReadAgain,
        reload: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]],
        event: Callable[..., object],
    ) -> None:
        while self._is_wanted:  # asked again meanwhile: the file may have changed once more
            self._is_wanted = False
            try:
                fd = await asyncio.to_thread(source.read)  # frames go on meanwhile
                with SealedFile(fd) as upload:
                    told = await reload({"file": self.file, "upload": upload})
            except (VTLError, OSError) as e:
                why = e.strerror if isinstance(e, OSError) else str(e)
                log.warning("%s: not reloaded: %s; %s", self.file, why, _KEPT)
                event("reload", file=self.file, error=why)
                continue
            log_warnings(self.file, told["warnings"])
            counts = f"{told['rules']} rules; {told['ended']} connections ended, {told['flows']} are known"
            log_lines.tell(printable(f"{self.file}: reloaded: {counts}"))
            event("reload", file=self.file, rules=told["rules"], ended=told["ended"], flows=told["flows"])
