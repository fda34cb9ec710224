"""Who the VM is: its Ethernet address, its IP addresses, and by whom it reaches the world.

An address is the VM's when the user says so. Else it is the VM's when the VM sends from it *and* something on
its network delivers to it what is for that address: a VM that claims another's address alone is not believed,
and one with an accomplice on its network is. So where others rely on what is announced, nothing is learned.
"""

from collections import OrderedDict
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from vtl_tools.common.packet import address
from vtl_tools.services.subnet.message import ADDRESSES_MAX

Network = IPv4Network | IPv6Network

SEEN_MAX: Final = 64
"""Addresses in whose name the VM sends, or to which the network delivers, that are remembered."""
AGE_S: Final = 3600.0
"""How long the network's word holds; then a packet has to come the long way again."""


class VM:
    """What is known of the VM. mac: None to learn it, from the first frame that it sends.

    networks: its addresses, of the versions of IP that are not to be learned. Of a prefix, those are its own
    that it sends from. learns: whether those of other versions are learned; else it has none.
    """

    def __init__(
        self, mac: bytes | None = None, networks: Iterable[Network] = (), *, learns: bool = True
    ) -> None:
        given = list(networks)
        self.mac = mac
        self.gateway: bytes | None = None
        """The Ethernet address to which it sent last, or from which it got something."""
        self.addresses: tuple[bytes, ...] = ()
        self._given = [(net.network_address.packed, net.broadcast_address.packed) for net in given]
        self._learns = learns
        self._fixed = {4 if net.version == 4 else 16 for net in given}
        self._single = tuple(dict.fromkeys(first for first, last in self._given if first == last))
        self._sent: OrderedDict[bytes, float] = OrderedDict()
        self._delivered: OrderedDict[bytes, float] = OrderedDict()
        self._update(0.0)

    def sent(self, src: bytes, now: float) -> bool:
        """Note that it sends from an address; tell whether its addresses changed."""
        return self._note(self._sent, src, now)

    def delivered(self, dst: bytes, now: float) -> bool:
        """Note that the network delivered what is for an address; tell whether its addresses changed.

        It counts where the VM sends from that address: else anybody on its network fills the room.
        """
        return dst in self._sent and self._note(self._delivered, dst, now)

    def disputed(self, octets: bytes, now: float) -> bool:
        """Note that somebody else on its network claims an address; tell whether its addresses changed."""
        self._delivered.pop(octets, None)
        return self._update(now)

    def wake(self, now: float) -> bool:
        """Forget what was not seen for AGE_S; tell whether its addresses changed."""
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
