"""A firewall goes on where the one before it on the same link ended."""

import atexit
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vtl_tools.common.host import broker
from vtl_tools.services.fw.files import read_private
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.saved_state import OCTETS_MAX, StateKeeper, recall
from vtl_tools.services.fw.tracker import Tracker

log = logging.getLogger(__name__)

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def keeper(
    path: Path, tracker: Tracker, identity: Identity | None, now: float, *, forget: bool
) -> StateKeeper:
    """Tell a firewall what the one before has kept in a file, unless that is to be forgotten.

    Returns what keeps it there from now on, and at the end of the process. A file that cannot be read or
    written is a warning.
    """
    boot = _BOOT.read_text().strip()
    file = broker.StateFile(path, OCTETS_MAX)
    try:
        text = None if forget else read_private(path, OCTETS_MAX)
        if text is not None and recall(text, boot, tracker, identity, now):
            log.info("%s: goes on with what was learned before", path)
    except (OSError, ValueError) as e:
        log.warning("%s: not used: %s", path, e)
    failed = False

    def write(text: str) -> bool:
        return tried(lambda: file.begin(text))

    def tried(step: Callable[[], bool]) -> bool:
        nonlocal failed
        try:
            return failed or step()
        except OSError as e:
            failed = True
            log.warning("%s: %s; a restart will have to learn anew", path, e.strerror or e)
        return True

    def close() -> None:
        tried(file.finish)
        made.close()
        tried(file.finish)

    made = StateKeeper(tracker, identity, boot, write)
    atexit.register(close)
    return made
