"""SIGHUP of vtl-fw: the file of --rules is read again, and takes effect as by `vtl-fw reload`."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final, Protocol

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import log_lines
from vtl_tools.common.host.broker import ReadAgain
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.common.text import printable
from vtl_tools.services.fw.files import STDIN, RuleReader, log_warnings, pack

log = logging.getLogger(__name__)

_KEPT: Final = "the rules of before stay in force"


class Reloadable(Protocol):
    """A stage with rules."""

    event: Callable[..., object]

    async def reload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what the verb `reload` asks for. Raises VTLError."""
        ...


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

    def begin(self, stage: Reloadable) -> None:
        """Begin to reload. A file at fault is a warning."""
        if self._source is None:
            log.warning("%s: cannot be read again; %s; use 'vtl-fw reload --rules FILE'", self.file, _KEPT)
            return
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._go_on(self._source, stage))

    async def _go_on(self, source: ReadAgain, stage: Reloadable) -> None:
        while self._is_wanted:  # asked again meanwhile: the file may have changed once more
            self._is_wanted = False
            try:
                fd = await asyncio.to_thread(source.read)  # frames go on meanwhile
                with SealedFile(fd) as upload:
                    told = await stage.reload({"file": self.file, "upload": upload})
            except (VTLError, OSError) as e:
                why = (e.strerror if isinstance(e, OSError) else None) or str(e)  # a time-out has no strerror
                log.warning("%s: not reloaded: %s; %s", self.file, why, _KEPT)
                stage.event("reload", file=self.file, error=why)
                continue
            log_warnings(self.file, told["warnings"])
            rules, ended, flows = (told[word] for word in ("rules", "ended", "flows"))
            counts = f"{rules} rules; {ended} connections ended, {flows} are known"
            log_lines.tell(printable(f"{self.file}: reloaded: {counts}"))
            stage.event("reload", file=self.file, rules=rules, ended=ended, flows=flows)
