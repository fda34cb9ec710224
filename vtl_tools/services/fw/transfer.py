"""A firewall's knowledge of a VM, for the firewall on the host that the VM moves to: `export` and `import`.

The text is that of the saved state, with times of the calendar: a clock that both hosts have.
"""

import asyncio
import time
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet.address import format_mac
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import saved_state
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.saved_state import StateReader
from vtl_tools.services.fw.tracker import RECALLED_MAX, Tracker

LINES_MAX: Final = saved_state.LINES_MAX - saved_state.FLOWS_MAX + RECALLED_MAX
OCTETS_MAX: Final = LINES_MAX * 160
FIRST: Final = "vtl-fw 2 moved"
AT_ONCE: Final = 256
"""Connections that are written or read before frames have their turn."""

Answer = dict[str, Any]


def _shift() -> float:
    """Return the seconds from the clock of the service to that of the calendar."""
    return time.time() - time.monotonic()


async def export(tracker: Tracker, identity: Identity | None) -> Answer:
    """Return what a firewall knows of its VM, as text, and how many connections that has."""
    text = [f"{FIRST}\n"]
    for number, line in enumerate(
        saved_state.lines(tracker, identity, time.monotonic(), RECALLED_MAX, _shift())
    ):
        if line and not line.startswith("occupant "):  # that is of the link here
            text.append(line)
        if number % AT_ONCE == 0:
            await asyncio.sleep(0)
    return {"state": "".join(text), "connections": sum(line.startswith("flow ") for line in text)}


async def import_(tracker: Tracker, identity: Identity | None, upload: SealedFile | None) -> Answer:
    """Take up what another firewall knows of the VM. Raises VTLError, without effect.

    Returns how many connections that are, and whether the identity was taken.
    """
    if upload is None:
        raise VTLError("import: no file came along; use 'vtl-fw import'")
    try:
        reader = StateReader(upload.read(OCTETS_MAX).decode("ascii"), LINES_MAX, _shift())
        if reader.boot != ["moved"]:
            raise ValueError("not an export: made by a service for its own restart")
        while reader.step(time.monotonic()):
            await asyncio.sleep(0)
    except ValueError as e:
        raise VTLError(f"import: {e}; export the state again") from None
    now, mac = time.monotonic(), reader.learned.mac
    if identity is not None:
        if mac is not None and identity.mac not in (None, mac):
            raise VTLError(
                f"import: the state is of {format_mac(mac)}, and the VM here is {format_mac(identity.mac)};"
                " start this firewall with --forget, or with the right --mac"
            )
        reader.learned.occupant = identity.occupant  # of the link here, not of the one there
        identity.recall(reader.learned, now)
    until, until_tcp = now + saved_state.RECALLED_S, now + tracker.timeouts.established
    openings = list(reader.openings.items())
    for at in range(0, len(openings), AT_ONCE):
        tracker.recall(dict(openings[at : at + AT_ONCE]), until, until_tcp)
        await asyncio.sleep(0)
    return {"connections": len(openings), "identity": identity is not None and mac is not None}
