"""Maps names to addresses that stand for them: a guest resolves a name, gets one, and connects to it.

So Tor gets the name itself, without a look-up of seconds, and a guest can connect to a name that has no
address, such as an onion service.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

_PROBES: Final = 16
_RETIRED_MAX: Final = 32_000
_LAST_OCTETS: Final = 254
"""Used addresses of a /24: some stacks take one that ends in 0 or 255 for a broadcast address."""


class MappedName(NamedTuple):
    """A name and the offset of its address in the range. row: its unique number below names_max."""

    row: int
    slot: int
    name: str


@dataclass(slots=True)
class _Entry:
    name: str
    slot: int
    row: int
    until: float
    pins: int = 0


class NameMap:
    """A bounded table of names and their addresses. A name has one address of each IP version.

    names_max: beyond it, the name that was asked for longest ago is evicted. A name is not evicted while a
    connection uses its address (pin), or within keep_s seconds after it was asked for. The address of an
    evicted name stands for nothing, and is reused only after many others were. ipv6: None for none.

    key: secret from which addresses are derived, so that an attacker cannot predict which names would share
    an address. keep: called with each name that gets an address; restore() takes them back.
    """

    def __init__(
        self,
        ipv4: IPv4Network,
        ipv6: IPv6Network | None,
        *,
        names_max: int,
        keep_s: float,
        key: bytes = b"",
        keep: Callable[[MappedName], object] | None = None,
    ) -> None:
        size = ipv4.num_addresses
        self._slots = size // 256 * _LAST_OCTETS if size >= 256 else size - 2
        if self._slots < 1 or (ipv6 is not None and ipv6.num_addresses <= self._slots):
            raise ValueError(f"{ipv4} or {ipv6}: too small for the name map")
        self._ipv4, self._ipv6 = ipv4, ipv6
        self._first4 = int(ipv4.network_address)
        self._first6 = 0 if ipv6 is None else int(ipv6.network_address)
        self._names_max = min(names_max, self._slots)
        self._keep_s = keep_s
        self._by_name: dict[str, _Entry] = {}
        self._by_slot: dict[int, _Entry] = {}
        self._idle: OrderedDict[str, _Entry] = OrderedDict()  # not pinned, in the order of eviction
        self._key, self._keep = key, keep
        self._unused: list[int] = []  # rows of evicted names
        self._retired: OrderedDict[int, None] = OrderedDict()  # slots of evicted names
        self._retired_max = min(_RETIRED_MAX, (self._slots - self._names_max) // 2)

    def restore(self, names: Iterable[MappedName], now: float) -> None:
        """Restore names and addresses from before a restart, as if the names had just been asked for."""
        rows = set()
        for row, slot, name in names:
            fits = 0 <= row < self._names_max and 0 <= slot < self._slots
            if fits and row not in rows and slot not in self._by_slot and name not in self._by_name:
                rows.add(row)
                entry = _Entry(name, slot, row, now + self._keep_s)
                self._by_name[name] = self._by_slot[slot] = self._idle[name] = entry
        self._unused = [row for row in range(max(rows, default=0)) if row not in rows]

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def has_ipv6(self) -> bool:
        """Whether names have IPv6 addresses as well."""
        return self._ipv6 is not None

    def address_of(self, name: str, now: float, *, ipv6: bool = False) -> bytes | None:
        """Return the address that stands for a name, in lower case; None: the table is full."""
        entry = self._by_name.get(name) or self._add(name)
        if entry is None:
            entry = self._add(name) if self._evict(now) else None
        if entry is None:
            return None
        entry.until = now + self._keep_s
        if not entry.pins:
            self._idle.move_to_end(name)
        if ipv6:
            return (self._first6 + 1 + entry.slot).to_bytes(16, "big")
        high, low = divmod(entry.slot, _LAST_OCTETS)
        return (self._first4 + (high << 8) + 1 + low).to_bytes(4, "big")

    def name_of(self, address: bytes) -> str | None:
        """Return the name that an address stands for; None: no name, or evicted."""
        entry = self._entry(address)
        return None if entry is None else entry.name

    def owns(self, address: bytes) -> bool:
        """Return whether an address is in the ranges of this map."""
        number = int.from_bytes(address, "big")
        if len(address) == 4:
            return 0 <= number - self._first4 < self._ipv4.num_addresses
        return self._ipv6 is not None and 0 <= number - self._first6 < self._ipv6.num_addresses

    def pin(self, address: bytes) -> str | None:
        """Reserve an address for its name until unpin() was called as often.

        Return the name, None as name_of().
        """
        entry = self._entry(address)
        if entry is None:
            return None
        entry.pins += 1
        self._idle.pop(entry.name, None)
        return entry.name

    def unpin(self, address: bytes, now: float) -> None:
        """Undo one pin(). The name stays for keep_s from now on. Harmless without a pin."""
        entry = self._entry(address)
        if entry is None or not entry.pins:
            return
        entry.pins -= 1
        entry.until = now + self._keep_s
        if not entry.pins:
            self._idle[entry.name] = entry

    def _entry(self, address: bytes) -> _Entry | None:
        if not self.owns(address):
            return None
        if len(address) == 16:
            return self._by_slot.get(int.from_bytes(address, "big") - self._first6 - 1)
        high, low = divmod(int.from_bytes(address, "big") - self._first4, 256)
        return self._by_slot.get(high * _LAST_OCTETS + low - 1) if 1 <= low <= _LAST_OCTETS else None

    def _add(self, name: str) -> _Entry | None:
        if len(self._by_name) >= self._names_max:
            return None
        row = self._unused.pop() if self._unused else len(self._by_name)
        entry = _Entry(name, self._free_slot(name), row, 0.0)
        self._retired.pop(entry.slot, None)
        self._by_name[name] = self._by_slot[entry.slot] = self._idle[name] = entry
        if self._keep is not None:
            self._keep(MappedName(row, entry.slot, name))
        return entry

    def _free_slot(self, name: str) -> int:
        """Return a slot that is unused, and was not used lately. Each probe is another hash."""
        slot, taken, retired = 0, self._by_slot, self._retired
        for probe in range(_PROBES):
            digest = hashlib.blake2b(
                name.encode(), digest_size=8, key=self._key, salt=bytes((probe,)), person=b"name"
            ).digest()
            slot = int.from_bytes(digest, "big") % self._slots
            if slot not in taken and slot not in retired:
                return slot
        while slot in taken or slot in retired:
            slot = (slot + 1) % self._slots
        return slot

    def _evict(self, now: float) -> bool:
        """Evict the name that was asked for longest ago, if that is long enough. Return whether one was."""
        entry = next(iter(self._idle.values()), None)
        if entry is None or entry.until > now:
            return False
        del self._by_name[entry.name], self._by_slot[entry.slot], self._idle[entry.name]
        self._unused.append(entry.row)
        self._retired[entry.slot] = None
        if len(self._retired) > self._retired_max:
            self._retired.popitem(last=False)
        return True
