"""A VM's connections as JSON, for a restart and for another host. Validated on import."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from typing import Any, Final

from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.packet import address
from vtl_tools.common.packet.tcp import RST
from vtl_tools.services.freeze.connection import CLOSED, OPENING, PROVEN, HeldConnection
from vtl_tools.services.freeze.freezer import FRAME_MAX, LATE_S, RESETS_MAX, Freezer
from vtl_tools.services.freeze.headers import address_size, parse
from vtl_tools.services.freeze.peer_evidence import PeerEvidence
from vtl_tools.services.freeze.table import CONNECTIONS_MAX, HOSTS_MAX, PROVEN_MAX

FORMAT: Final = "vtl-freeze"
VERSION: Final = 1
OCTETS_MAX: Final = 256 << 20
"""Maximum octets of a state to import."""

_U32: Final = 0xFFFF_FFFF
_NUMBERS: Final = {
    "vm_ack": _U32, "vm_nxt": _U32, "vm_tsval": _U32, "vm_scale": 14,
    "peer_ack": _U32, "peer_nxt": _U32, "peer_tsval": _U32,
}  # fmt: skip
"""Fields that may be unknown, and the maximum of each."""
_COUNTS: Final = {
    "vm_window": 0xFFFF,
    "peer_window": 0xFFFF,
    "flags": 0x3FF,
    "probes": _U32,
    "repeated": _U32,
}
_SECONDS_MAX: Final = 1e9


def dump(freezer: Freezer, vm: str, now: float) -> Iterator[str]:
    """Yield the pieces of a JSON text."""
    table = freezer.table
    told = {
        "format": FORMAT,
        "version": VERSION,
        "vm": vm,
        "frozen": freezer.frozen,
        "left": freezer.left,
        "frozen_s": now - freezer.frozen_at if freezer.frozen else 0.0,
        "hosts": [[tags.hex(), address.format_ip(host), mac.hex(":")]
                  for (tags, host), mac in table.hosts.items()],
        "macs": [mac.hex(":") for mac in table.macs],
        "resets": [b64encode(frame).decode() for frame in freezer.resets],
    }  # fmt: skip
    yield json.dumps(told)[:-1] + ', "connections": [\n'
    before = ""
    settled = freezer.frozen and now - freezer.frozen_at > LATE_S  # the ring has handed over all it had
    for connection in table:
        is_open = connection.vm_nxt is not None and not connection.flags & OPENING
        if is_open or connection.vm_ack is not None:
            exact = settled and not table.doubts(connection)
            yield before + json.dumps(_told(connection, exact, now))
            before = ",\n"
    yield "\n]}\n"


def _told(connection: HeldConnection, exact: bool, now: float) -> dict[str, Any]:
    key = connection.key
    size = address_size(key)
    told: dict[str, Any] = {
        "vm": address.format_ip(key[:size]),
        "vm_port": int.from_bytes(key[2 * size : 2 * size + 2], "big"),
        "peer": address.format_ip(key[size : 2 * size]),
        "peer_port": int.from_bytes(key[2 * size + 2 : 2 * size + 4], "big"),
        "tags": key[2 * size + 4 :].hex(),
        "ethernet": connection.l2.hex(),
        "exact": exact,
        "idle_s": max(0.0, now - connection.seen),
        "held_s": max(0.0, now - connection.since) if connection.probes else 0.0,
    }
    for name in (*_NUMBERS, *_COUNTS):
        told[name] = getattr(connection, name)
    proof = connection.evidence
    told["before_proof"] = proof.heard if proof is not None and connection.is_proven else None
    for name in "head", "newest":
        frame = getattr(connection, name)
        told[name] = None if frame is None else b64encode(frame).decode()
    return told


class _Reader:
    """Reads fields of untrusted JSON. An invalid one raises VTLError, which names the place."""

    def __init__(self, name: str) -> None:
        self.name = name

    def wrong(self, what: str) -> VTLError:
        return VTLError(f"{self.name}: {what}; export the state again")

    def field(self, row: Any, key: str, kind: type) -> Any:
        value = row.get(key) if isinstance(row, dict) else None
        if type(value) is not kind:
            raise self.wrong(f"not a state of vtl-freeze: no {kind.__name__} as {key!r}")
        return value

    def number(self, row: Any, key: str, most: int) -> int:
        value = self.field(row, key, int)
        if not 0 <= value <= most:
            raise self.wrong(f"{key!r} is not from 0 to {most}")
        return int(value)

    def optional(self, row: Any, key: str, most: int) -> int | None:
        return None if isinstance(row, dict) and row.get(key) is None else self.number(row, key, most)

    def seconds(self, row: Any, key: str) -> float:
        value = self.field(row, key, float)
        if not 0 <= value < _SECONDS_MAX:
            raise self.wrong(f"{key!r} is not a time")
        return float(value)

    def rows(self, row: Any, key: str, most: int) -> list[Any]:
        value = self.field(row, key, list)
        if len(value) > most:
            raise self.wrong(f"more than {most} {key}")
        return list(value)

    def octets(self, text: Any, what: str, least: int, most: int) -> bytes:
        try:
            value = bytes.fromhex(text)
        except (TypeError, ValueError):
            raise self.wrong(f"{what}: not hexadecimal") from None
        if not least <= len(value) <= most:
            raise self.wrong(f"{what}: {len(value)} octets")
        return value

    def mac(self, text: Any) -> bytes:
        plain = text.replace(":", "") if isinstance(text, str) else None
        return self.octets(plain, "an Ethernet address", 6, 6)

    def host(self, text: Any) -> bytes:
        try:
            if not isinstance(text, str):
                raise ValueError
            return address.ip(text)
        except ValueError:
            raise self.wrong("an IP address is invalid") from None

    def tags(self, text: Any) -> bytes:
        tags = self.octets(text, "VLAN tags", 0, 16)
        if len(tags) % 4:
            raise self.wrong("VLAN tags: not four octets each")
        return tags

    def frame(self, text: Any, key: bytes | None) -> bytes:
        """Return a held frame: one of the connection, or a reset of any connection."""
        try:
            if not isinstance(text, str) or len(text) > FRAME_MAX * 4 // 3 + 4:
                raise ValueError
            frame = b64decode(text, validate=True)
            segment = parse(bytearray(frame), False)
            if segment.end > len(frame) or (segment.flags & RST == 0) == (key is None):
                raise ValueError
        except (ValueError, Malformed):
            raise self.wrong("a held frame is invalid") from None
        if key is not None and segment.key != key:
            raise self.wrong("a held frame is of another connection")
        return frame


def load(text: bytes, name: str, freezer: Freezer, now: float) -> str:
    """Replace a freezer's state by a JSON text. Return the VM's name.

    name: for messages. Raises VTLError; the freezer is then empty, or unchanged.
    """
    read = _Reader(name)
    if len(text) > OCTETS_MAX:
        raise read.wrong(f"larger than {OCTETS_MAX} octets")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise read.wrong("not JSON, or truncated") from None
    if read.field(told, "format", str) != FORMAT:
        raise read.wrong("not a state of vtl-freeze")
    if (version := read.field(told, "version", int)) != VERSION:
        raise VTLError(f"{name}: version {version} instead of {VERSION}; export it with the same version")
    fresh = Freezer(any_mac=freezer.any_mac)
    table = fresh.table
    for row in read.rows(told, "hosts", HOSTS_MAX):
        if not isinstance(row, list) or len(row) != 3:
            raise read.wrong("a host is not a list of three strings")
        table.hosts[read.tags(row[0]), read.host(row[1])] = read.mac(row[2])
    table.macs.update(read.mac(one) for one in read.rows(told, "macs", HOSTS_MAX))
    fresh.resets = [read.frame(one, None) for one in read.rows(told, "resets", RESETS_MAX)]
    for row in read.rows(told, "connections", CONNECTIONS_MAX + PROVEN_MAX):
        _take(read, row, fresh, now)
    fresh.frozen, fresh.left = read.field(told, "frozen", bool), read.field(told, "left", bool)
    fresh.frozen_at = now - read.seconds(told, "frozen_s")
    vm: str = read.field(told, "vm", str)
    freezer.replace(fresh)
    return vm


def _take(read: _Reader, row: Any, freezer: Freezer, now: float) -> None:
    vm, peer = read.host(row.get("vm") if isinstance(row, dict) else None), read.host(row.get("peer"))
    if len(vm) != len(peer):
        raise read.wrong("a connection between two versions of IP")
    ports = b"".join(read.number(row, one, 0xFFFF).to_bytes(2, "big") for one in ("vm_port", "peer_port"))
    tags = read.tags(row.get("tags"))
    connection = HeldConnection(vm + peer + ports + tags, now - read.seconds(row, "idle_s"))
    connection.l2 = freezer.table.shared(_ethernet(read, row, tags, len(vm)))
    connection.since = now - read.seconds(row, "held_s")
    for name, most in _NUMBERS.items():
        setattr(connection, name, read.optional(row, name, most))
    for name, most in _COUNTS.items():
        setattr(connection, name, read.number(row, name, most))
    connection.flags &= ~(CLOSED | OPENING)  # derived again, with the time to remove it
    if row.get("before_proof") is not None:
        connection.evidence = _proof(read, read.field(row, "before_proof", dict), connection)
    if read.field(row, "exact", bool):
        connection.epoch = 0
    if freezer.table.get(connection.key) is not None:
        raise read.wrong("a connection occurs twice")
    if connection.evidence is None or connection.vm_nxt is not None:
        freezer.table.add(connection, now)
    elif not freezer.table.add_proven(connection):
        raise read.wrong("too many proven connections")
    for name in "head", "newest":
        if row.get(name) is not None:
            later = connection.flags
            if not freezer.table.hold(connection, read.frame(row[name], connection.key), head=name == "head"):
                raise read.wrong("too many held frames")
            connection.flags = later
    if connection.probes or connection.held_octets:
        freezer.touched[connection.key] = connection


def _proof(read: _Reader, row: dict[str, Any], connection: HeldConnection) -> PeerEvidence:
    """Return the evidence of a connection whose numbers were not seen in the VM's own segments."""
    if connection.vm_ack is None or connection.peer_ack is None:
        raise read.wrong("a proof without a number")
    proof = PeerEvidence(connection.peer_ack, read.optional(row, "vm_ack", _U32), connection.peer_nxt)
    proof.number = connection.vm_ack
    proof.heard = {name: read.optional(row, name, _U32) for name in PROVEN}
    if proof.heard["peer_window"] is None:
        raise read.wrong("a proof without a window")
    return proof


def _ethernet(read: _Reader, row: dict[str, Any], tags: bytes, size: int) -> bytes:
    header = read.octets(row.get("ethernet"), "an Ethernet header", 14 + len(tags), 14 + len(tags))
    if header[12:] != tags + (b"\x08\x00" if size == 4 else b"\x86\xdd"):
        raise read.wrong("an Ethernet header is of another network")
    return header
