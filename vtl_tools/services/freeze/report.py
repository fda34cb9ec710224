"""The status of held connections, and the risks that may end them all the same."""

from typing import Any, Final

from vtl_tools.common.packet import address
from vtl_tools.services.freeze.connection import PEER_FIN, RAISED, USER_TIMEOUT, VM_FIN, HeldConnection
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.headers import address_size
from vtl_tools.services.freeze.holdings import obstacle

ROWS_MAX: Final = 10_000
_OFTEN: Final = 30
"""Repetitions of the same data after which a sender that accepts a zero window waits minutes."""

RISKS: Final = {
    "unknown": "nothing is answered: the VM's acknowledgement was not seen, and its peer has not shown it",
    "closed": "the peer has closed: if its program is gone, it gives up after some probes (an orphan)",
    "closing": "the VM has closed: its peer may end the connection",
    "user-timeout": "the peer announced a user timeout (RFC 5482): it gives up after that time",
    "data-waits": "the peer has data to send: a program or a user timeout there may end the connection",
    "not-believed": "the peer continues to send: it may ignore the zero window",
}
"""By keyword: reasons why a connection may end although every probe is answered."""


def risks(connection: HeldConnection) -> list[str]:
    """Return the keywords of the risks of a held connection."""
    flags = connection.flags
    found = {
        "unknown": not connection.has_numbers,
        "closed": flags & PEER_FIN,
        "closing": flags & VM_FIN and not flags & PEER_FIN,
        "user-timeout": flags & USER_TIMEOUT,
        "data-waits": connection.is_waiting,
        "not-believed": flags & RAISED and connection.repeated > _OFTEN,
    }
    return [word for word in RISKS if found[word]]


def report(freezer: Freezer, now: float) -> dict[str, Any]:
    """Return the status of the connections, answered ones first; up to a maximum."""
    touched = list(freezer.touched.values())
    rest = [one for one in freezer.table if one.key not in freezer.touched]
    rows = [
        _row(one, obstacle(freezer.table, one), now)
        for one in (*touched, *rest[: max(0, ROWS_MAX - len(touched))])[:ROWS_MAX]
    ]
    return {"frozen": freezer.frozen, "all": len(touched) + len(rest), "connections": rows}


def report_row(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the report as cells."""
    held, probes = f"{row['held_s']:.0f} s", str(row["probes"])
    return row["vm"], row["peer"], held, probes, row["not_held"] or "", ", ".join(row["risks"])


def _row(connection: HeldConnection, not_held: str, now: float) -> dict[str, Any]:
    key = connection.key
    size = address_size(key)
    return {
        "vm": _end(key[:size], key[2 * size : 2 * size + 2]),
        "peer": _end(key[size : 2 * size], key[2 * size + 2 : 2 * size + 4]),
        "held_s": round(now - connection.since, 3) if connection.probes else 0.0,
        "idle_s": round(now - connection.seen, 3),
        "probes": connection.probes,
        "kept_octets": connection.held_octets,
        "not_held": not_held or None,
        "risks": risks(connection),
    }


def _end(host: bytes, port: bytes) -> str:
    text = address.format_ip(host)
    return f"{text if len(host) == 4 else f'[{text}]'}:{int.from_bytes(port, 'big')}"
