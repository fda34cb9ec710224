"""The lease table of a DHCP server. Its size is bounded by the pool of addresses."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

OFFER_S = 30.0
"""Seconds that an offered address is reserved for its client."""

DECLINE_S = 600.0
"""Seconds that a declined address, which its client found in use, is not offered."""


def _nobody(_address: bytes) -> bool:
    return False


@dataclass(slots=True)
class DHCPLease:
    """mac: None while the address is declined. until: seconds, the caller's clock.

    bound: more than an offer.
    """

    mac: bytes | None
    until: float
    bound: bool

    @property
    def is_offer(self) -> bool:
        """Whether the address is offered and not requested yet."""
        return self.mac is not None and not self.bound


class LeaseTable:
    """The addresses of a pool and their clients. pool: without duplicates.

    A client gets its previous address, even when the lease has expired, unless another client has it. A new
    client's address is derived from its Ethernet address, so that it is the same after a restart. When the
    pool is used up, expired leases, offers and declined addresses are evicted first, and the lease of the
    client that was silent for longest last. So a client with forged Ethernet addresses cannot lock others out
    permanently.
    """

    def __init__(self, pool: Sequence[bytes]) -> None:
        if not pool:
            raise ValueError("the pool has no address")
        self._pool = pool
        self._members = frozenset(pool)
        self._leases: dict[bytes, DHCPLease] = {}
        self._by_mac: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._leases)

    def address_of(self, mac: bytes) -> bytes | None:
        """Return a client's address: leased, offered, or previous."""
        return self._by_mac.get(mac)

    def offer(
        self, mac: bytes, wanted: bytes | None, now: float, is_taken: Callable[[bytes], bool] = _nobody
    ) -> bytes:
        """Choose an address for a client and reserve it for OFFER_S (RFC 2131 section 4.3.1).

        is_taken: returns whether an address is known to be used without a lease. Such an address is offered
        only if there is no other, since a guest can claim to use all.
        """
        address = self._by_mac.get(mac)
        if address is None:
            if wanted is not None and self._is_free(wanted, now) and not is_taken(wanted):
                address = wanted
            else:
                address = self._choose(mac, now, is_taken)
        had, until = self._leases.get(address), now + OFFER_S
        bound = had is not None and had.mac == mac and had.bound and had.until > now
        if had is not None and bound:  # it asks again after a reboot: its address stays reserved
            until = max(until, had.until)
        self._set(address, DHCPLease(mac, until, bound))
        return address

    def bind(self, mac: bytes, address: bytes, until: float, now: float) -> bool:
        """Lease an address to a client, unless it is not of the pool or another client's.

        Return whether it was.
        Another client's mere offer does not prevent it: else offers could lock others out.
        """
        if address not in self._members:
            return False
        lease = self._leases.get(address)
        if lease is not None and lease.mac != mac and lease.until > now and not lease.is_offer:
            return False
        self._set(address, DHCPLease(mac, until, bound=True))
        return True

    def release(self, mac: bytes, address: bytes, now: float) -> None:
        """End a client's lease or offer of an address.

        It gets the address again if that is still free then.
        """
        if self._by_mac.get(mac) == address:
            self._leases[address].until = min(now, self._leases[address].until)

    def decline(self, mac: bytes, address: bytes, now: float) -> None:
        """Set an address aside that its client found in use (RFC 2131 section 4.3.3)."""
        if self._by_mac.get(mac) == address:
            self._set(address, DHCPLease(None, now + DECLINE_S, bound=False))

    def _is_free(self, address: bytes, now: float) -> bool:
        lease = self._leases.get(address)
        return address in self._members and (lease is None or lease.until <= now)

    def _choose(self, mac: bytes, now: float, is_taken: Callable[[bytes], bool]) -> bytes:
        """Return an address never used before, or else the one whose use was longest ago."""
        if len(self._leases) < len(self._pool):
            start = zlib.crc32(mac) % len(self._pool)
            order = (*self._pool[start:], *self._pool[:start])
            unused = [address for address in order if address not in self._leases]
            return next((address for address in unused if not is_taken(address)), unused[0])

        def value(address: bytes) -> tuple[bool, float]:
            lease = self._leases[address]
            return lease.bound and lease.until > now, lease.until

        return min(self._leases, key=value)

    def _set(self, address: bytes, lease: DHCPLease) -> None:
        """Replace the entry of an address, and the client's earlier entry."""
        old = self._leases.get(address)
        if old is not None and old.mac is not None:
            del self._by_mac[old.mac]
        if lease.mac is not None:
            former = self._by_mac.pop(lease.mac, None)
            if former is not None:
                del self._leases[former]
            self._by_mac[lease.mac] = address
        self._leases[address] = lease
