"""The verbs of a running vtl-freeze, and what `export` and `import` do in the process that asks.

A state goes from service to service through files: it may be larger than an answer on the control socket.
"""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import NotRunningError, SpecError, VTLError
from vtl_tools.common.host.broker import HandedFile, replace
from vtl_tools.common.runtime import control, discovery
from vtl_tools.services.freeze import state
from vtl_tools.services.freeze.freezer import LATE_S, Freezer
from vtl_tools.services.freeze.holdings import HoldingsCount
from vtl_tools.services.freeze.report import report
from vtl_tools.services.freeze.stage import SAVED_AT_ONCE_S, Freeze

Request = dict[str, Any]
PATIENCE_S: Final = 60.0
"""How long a service may take to write or read a large state."""


def verbs(stage: Freeze) -> dict[str, control.Verb]:
    """Return the verbs of a service beside `status`, by name."""
    assert stage.snapshot is not None
    clock, snapshot = time.monotonic, stage.snapshot
    handed = HandedFile(_import_path(snapshot.path), state.OCTETS_MAX)

    def save_soon() -> None:
        asyncio.get_running_loop().call_later(SAVED_AT_ONCE_S, lambda: stage.save(clock()))

    async def start(_: Request) -> dict[str, object]:
        result = stage.start(clock())
        save_soon()
        await _ring_is_read(stage.freezer)
        return {**result, **await _holdings(stage.freezer)}

    async def stop(_: Request) -> dict[str, object]:
        result = stage.stop(clock())
        while stage.freezer.thawing:
            stage.wake(clock())
            stage.settle(clock())
            await asyncio.sleep(0)  # frames have their turn
        save_soon()
        return result

    async def export(_: Request) -> dict[str, object]:
        await _ring_is_read(stage.freezer)
        before = snapshot.written
        for _again in range(2):  # the first may be a write that began before this request
            while not snapshot.begin(clock()):
                await asyncio.sleep(0.01)
        while snapshot.is_writing:
            await asyncio.sleep(0.01)
        if snapshot.written == before:
            raise VTLError(f"{snapshot.path}: cannot be written; free space on its file system")
        return {"file": str(snapshot.path)}

    def import_(request: Request) -> dict[str, object]:
        try:
            text = handed.take()
        except OSError as e:
            raise VTLError(f"{handed.path}: {e.strerror or e}; run import as the service's user") from None
        result = stage.qemu.import_state(text, str(request.get("name")), clock())
        save_soon()
        return result

    return {
        "start": start,
        "stop": stop,
        "report": lambda _: report(stage.freezer, clock()),
        "export": export,
        "import": import_,
        "announce": lambda _: stage.announce(clock()),
    }


async def _ring_is_read(freezer: Freezer) -> None:
    """Wait until the last segments of a VM that is away have come from the ring, so that no number is old."""
    while freezer.frozen and time.monotonic() - freezer.frozen_at <= LATE_S:
        await asyncio.sleep(0.01)


async def _holdings(freezer: Freezer) -> dict[str, object]:
    count = HoldingsCount(freezer.table)
    while count.step():
        await asyncio.sleep(0)  # frames have their turn
    return count.result()


def _import_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.import")


# --- in the process that asks


def find(link: str | None) -> list[Path]:
    """Return the control sockets of the service on a link, of the service for a VM of that name, or of all.

    link: may also be the path of a control socket. Raises NotRunningError if there is no service at all.
    """
    if link is not None and "/" not in link and not control.path_for("vtl-freeze", link).exists():
        with suppress(NotRunningError):
            for path in discovery.find("vtl-freeze", None):
                if control.ask(path, "status")["freeze"]["vm"] == link:
                    return [path]
    return discovery.find("vtl-freeze", link)


def find_one(link: str | None) -> Path:
    """Return the one control socket of find(). Raises NotRunningError, or SpecError if there are several."""
    path, *others = find(link)
    if others:
        raise SpecError("several services run here; choose one with --link")
    return path


def export_state(path: Path) -> bytes:
    """Have a service write its state, and return it. Raises VTLError."""
    file = str(control.ask(path, "export", patience_s=PATIENCE_S)["file"])
    text = read_file(file)
    check_state(text, file)  # a service that was taken over could name any file
    return text


def import_state(path: Path, text: bytes, name: str) -> dict[str, Any]:
    """Put a state in the place of a service's own. name: where it is from, for messages. Raises VTLError."""
    check_state(text, name)
    file = str(control.ask(path, "status")["freeze"]["state"])
    check_state(read_file(file), file)  # likewise, and we write beside that file
    write_file(_import_path(Path(file)), text)
    return control.ask(path, "import", patience_s=PATIENCE_S, name=name)


def check_state(text: bytes, name: str) -> None:
    """Raise VTLError unless a text is a state."""
    state.load(text, name, Freezer(), 0.0)


def read_file(name: str) -> bytes:
    """Return the octets of a file, at most one more than a state may have. Raises VTLError."""
    try:
        with Path(name).open("rb") as file:
            return file.read(state.OCTETS_MAX + 1)
    except OSError as e:
        raise VTLError(f"{name}: {e.strerror}; name a file that can be read") from None


def write_file(path: Path, text: bytes) -> None:
    """Replace a file as a whole, with mode 0600. Raises VTLError."""
    try:
        replace(path, [text.decode()])
    except OSError as e:
        raise VTLError(f"{path}: {e.strerror}; name a file that can be written") from None
