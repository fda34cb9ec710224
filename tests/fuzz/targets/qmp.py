"""QEMU's monitor, and vtl-freeze as it does what QEMU tells: a QEMU that is hostile.

Checked: nothing is raised; each event is told with a name and a dict; octets in any pieces tell the same;
what is held of a line without an end is bounded, and after a loss nothing of it is left; no order of events
makes the service speak for a VM that QEMU says is running.
"""

import json
import socket
from typing import Any

from tests.fuzz.octets import Octets, blob, pieces
from tests.fuzz.places import place
from vtl_tools.services.freeze import qmp
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.stage import Freeze

PIECES_MAX = 8
EVENTS = ("STOP", "RESUME", "SUSPEND", "WAKEUP", "SHUTDOWN", "RESET", "MIGRATION")
STATUSES = ("paused", "running", "inmigrate", "postmigrate", "shutdown", "prelaunch", "completed", "active",
            "postcopy-active", "finish-migrate")  # fmt: skip
WORDS = [f'"{word}"'.encode() for word in (*EVENTS, *STATUSES, "event", "data", "status", "return", "running",
         "QMP", "guest")] + [b"true", b"false", b"\r\n"]  # fmt: skip

PLACE = place()
QEMU = socket.socket(socket.AF_UNIX)
QEMU.bind(str(PLACE / "qmp"))
QEMU.listen(4)
QEMU.settimeout(10)


def listen(said: list[bytes]) -> list[tuple[str, dict[str, Any]]]:
    """Return what a monitor tells that hears these pieces."""
    told: list[tuple[str, dict[str, Any]]] = []
    stage = Freeze(Freezer(), "vm")

    def hear(name: str, data: dict[str, Any], now: float) -> None:
        assert isinstance(name, str)
        assert isinstance(data, dict)
        told.append((name, data))
        stage.qemu.on_event(name, data, now)
        if stage.qemu.guest.runs:
            assert stage.freezer.is_quiet(now), "it speaks for a VM that runs"

    monitor = qmp.Monitor(str(PLACE / "qmp"), hear)
    try:
        monitor.poll(0.0)
        with QEMU.accept()[0] as qemu:
            for number, piece in enumerate(said):
                if monitor._sock is None:
                    break
                qemu.sendall(piece)
                for _ in range(3 + piece.count(b"\n") // qmp.LINES + len(piece) // 65536):
                    monitor.poll(float(number))
                assert len(monitor._read) <= qmp.LINE_MAX
        monitor.poll(99.0)
        monitor.poll(99.0)
        assert monitor._sock is None
        assert not monitor._read
        assert not monitor.up
    finally:
        monitor.close()
    stage.wake(100.0)
    stage.settle(100.0)
    return told


def one(data: bytes) -> None:
    take = Octets(data)
    cuts, said = take.blob(), take.rest()
    assert listen([said]) == listen(pieces(said, Octets(cuts[:PIECES_MAX])))


def seeds() -> list[bytes]:
    greeting = b'{"QMP": {"version": {}, "capabilities": []}}\r\n{"return": {}}\r\n'
    lines = [json.dumps({"event": event, "data": {"guest": True, "status": "completed"}}) for event in EVENTS]
    lines += [
        json.dumps({"return": {"running": status == "running", "status": status}}) for status in STATUSES
    ]
    texts = [greeting + line.encode() + b"\r\n" for line in lines] + [
        greeting + "\n".join(lines).encode() + b"\n", b"[]\n", b"{" * 3000 + b"\n", b'{"event": {}}\n',
        b'{"return": {"running": "x", "status": []}}\n', b'{"event": "MIGRATION", "data": {"status": {}}}\n',
        b"\n" * 200,
    ]  # fmt: skip
    return [blob(bytes((5, 40, 1, 3))) + text for text in texts]
