"""The register of connections whose data is acknowledged here: it survives the death of the process.

Data that was acknowledged and not delivered is lost with the process, and its sender does not know. So a
connection is in the register before its first octet is acknowledged. The next service on the link resets
those that it finds. The register is shared memory: an entry costs no system call, and the kernel keeps it.
"""

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

SLOTS: Final = 4096
"""Maximum connections."""
_ENTRY: Final = struct.Struct("B6s6s36sx")
"""Octets of addresses (0: the slot is free), MACs of guest and peer, addresses and ports from the guest."""
OCTETS: Final = SLOTS * _ENTRY.size
_SIZES: Final = {4: 12, 16: 36}


class RegisteredConnection(NamedTuple):
    """parties: of the guest's segments, as quick.read() gives them."""

    guest_mac: bytes
    peer_mac: bytes
    parties: bytes


class Register:
    """Slots in memory. memory: OCTETS writable octets, which may hold the entries of an earlier process."""

    def __init__(self, memory: "memoryview | bytearray") -> None:
        self._memory = memory
        self._free = [at for at in range(SLOTS - 1, -1, -1) if not memory[at * _ENTRY.size]]

    def __len__(self) -> int:
        return SLOTS - len(self._free)

    def found(self) -> Iterator[tuple[int, RegisteredConnection]]:
        """Yield the entries with their slots. An entry that makes no sense is freed."""
        for slot in range(SLOTS):
            size, guest_mac, peer_mac, parties = _ENTRY.unpack_from(self._memory, slot * _ENTRY.size)
            if size in _SIZES:
                yield slot, RegisteredConnection(guest_mac, peer_mac, parties[: _SIZES[size]])
            elif size:
                self.free(slot)

    def add(self, connection: RegisteredConnection) -> int | None:
        """Enter a connection and return its slot; None: all are taken."""
        if not self._free:
            return None
        slot = self._free.pop()
        size = 4 if len(connection.parties) == _SIZES[4] else 16
        # The first octet last: a process that is killed between leaves a free slot, not half an entry.
        entry = _ENTRY.pack(size, connection.guest_mac, connection.peer_mac, connection.parties)
        at = slot * _ENTRY.size
        self._memory[at + 1 : at + len(entry)] = entry[1:]
        self._memory[at] = size
        return slot

    def free(self, slot: int) -> None:
        """Remove an entry."""
        self._memory[slot * _ENTRY.size] = 0
        self._free.append(slot)
