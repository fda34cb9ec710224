"""The VM's identity: its Ethernet address, its IP addresses, and its gateway.

An address is the VM's if the user says so. Else it is learned if the VM sends from it *and* its network
delivers packets for it to the VM: a claim of another's address by the VM alone is not believed, but one with
an accomplice on its network is. So nothing is learned if other hosts rely on the announcements.
"""

from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from vtl_tools.common.packet import address
from vtl_tools.services.subnet.message import ADDRESSES_MAX

Network = IPv4Network | IPv6Network

SEEN_MAX: Final = 64
"""Maximum addresses remembered, of those the VM sends from, and of those the network delivers to."""
AGE_S: Final = 3600.0
"""Seconds that a delivery counts; then a packet must come on the default link again."""


class VM:
    """Addresses of the VM. mac: None to learn it from the VM's first frame.

    networks: its addresses, for the IP versions that are not learned. Of a prefix, the addresses that it
    sends from. learns: whether addresses of the other versions are learned; if not, it has none.
    """

    def __init__(
        self, mac: bytes | None = None, networks: Iterable[Network] = (), *, learns: bool = True
    ) -> None:
        given = list(networks)
        self.mac = mac
        self.gateway: bytes | None = None
        """The Ethernet address that the VM last sent to, or received from."""
        self.addresses: tuple[bytes, ...] = ()
        self._given = [(net.network_address.packed, net.broadcast_address.packed) for net in given]
        self._learns = learns
        self._fixed = {4 if net.version == 4 else 16 for net in given}
        self._single = tuple(dict.fromkeys(first for first, last in self._given if first == last))
        self._sent: OrderedDict[bytes, float] = OrderedDict()
        self._delivered: OrderedDict[bytes, float] = OrderedDict()
        self._update(0.0)

    def sent(self, src: bytes, now: float) -> bool:
        """Note that the VM sends from an address. Return whether its addresses changed."""
        return self._note(self._sent, src, now)

    def delivered(self, dst: bytes, now: float) -> bool:
        """Note that the network delivered a packet for an address. Return whether the VM's addresses changed.

        It counts only if the VM sends from that address: else other hosts could fill the table.
        """
        return dst in self._sent and self._note(self._delivered, dst, now)

    def disputed(self, octets: bytes, now: float) -> bool:
        """Note that another station on its network claims an address.

        Return whether the VM's addresses changed.
        """
        self._delivered.pop(octets, None)
        return self._update(now)

    def wake(self, now: float) -> bool:
        """Forget addresses not seen for AGE_S. Return whether the VM's addresses changed."""
        for seen in self._sent, self._delivered:
            while seen and next(iter(seen.values())) <= now - AGE_S:
                seen.popitem(last=False)
        return self._update(now)

    def _note(self, seen: OrderedDict[bytes, float], octets: bytes, now: float) -> bool:
        is_new = octets not in seen
        seen[octets] = now
        seen.move_to_end(octets)
        if len(seen) > SEEN_MAX:
            seen.popitem(last=False)
        return is_new and self._update(now)

    def _update(self, now: float) -> bool:
        before = self.addresses
        own = dict.fromkeys(self._single)
        for octets in reversed(self._sent):
            if self._is_own(octets):
                own[octets] = None
        self.addresses = tuple(sorted(tuple(own)[:ADDRESSES_MAX]))
        return self.addresses != before

    def _is_own(self, octets: bytes) -> bool:
        if not address.is_single_host(octets) or address.is_link_local(octets):
            return False
        if len(octets) in self._fixed:
            return any(len(octets) == len(first) and first <= octets <= last for first, last in self._given)
        return self._learns and octets in self._delivered
