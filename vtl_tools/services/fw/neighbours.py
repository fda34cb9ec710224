"""Recognizes the ARP and neighbour discovery that pass without a rule: the VM needs them to be reachable.

Such a message of a guest goes to its link only, and has no room for data besides addresses and a nonce.
Rules judge all other messages, like any packet.
"""

from collections import OrderedDict
from typing import Final

from vtl_tools.common.packet import address, arp, nd
from vtl_tools.common.packet.packet import Packet

NEIGHBOURS_MAX: Final = 1024
HOP_LIMIT: Final = 255

_ROOM: Final = 46
"""Octets after the Ethernet header of the smallest frame (IEEE 802.3 clause 3.2.8): ARP needs no more."""
_NONCE: Final = 14  # RFC 3971 section 5.3.2; RFC 7527
_OPTIONS: Final = {
    nd.ROUTER_SOLICIT: (nd.SOURCE_LLADDR,),
    nd.NEIGHBOR_SOLICIT: (nd.SOURCE_LLADDR, _NONCE),
    nd.NEIGHBOR_ADVERT: (nd.TARGET_LLADDR,),
}
"""A guest's messages and their options, each once and of 8 octets.

A router advertisement is not among them.
"""
_RESERVED: Final = {nd.NEIGHBOR_ADVERT: 0x1FFF_FFFF}
"""Bits of the word after the checksum that must be zero; in other messages, all must be."""


class NeighbourFilter:
    """Global addresses on the link: only a station of the link can send to here with a hop limit of 255.

    At most NEIGHBOURS_MAX. For other addresses, and evicted ones, the VM's solicitations are multicast.
    """

    def __init__(self) -> None:
        self._heard: OrderedDict[bytes, None] = OrderedDict()

    def observe(self, octets: bytes) -> None:
        """Record the source of neighbour discovery from the network."""
        self._heard[octets] = None
        self._heard.move_to_end(octets)
        if len(self._heard) > NEIGHBOURS_MAX:
            self._heard.popitem(last=False)

    def are_asked_by(self, pkt: Packet) -> bool:
        """Return whether a packet of the VM is ARP or neighbour discovery that stays on the link.

        Raises Malformed, and nothing else.
        """
        message = pkt.nd
        if message is None:
            said = pkt.arp
            return said is not None and said.oper in (arp.REQUEST, arp.REPLY) and _fits(pkt)
        net = pkt.ip
        assert net is not None
        known = _OPTIONS.get(message.type)
        if known is None or message.code or net.ttl != HOP_LIMIT or not self._is_here(net.dst):
            return False
        if net.payload_off != net.off + net.SIZE or net.end != len(pkt.buf):
            return False  # extension headers, or octets after the message
        word = int.from_bytes(pkt.buf[message.off + 4 : message.off + 8], "big")
        if word & _RESERVED.get(message.type, 0xFFFF_FFFF):
            return False
        kinds = [kind for kind, _, size in message.walk() if size == 8]
        return (
            message.off + message.SIZE + 8 * len(kinds) == message.end
            and len(kinds) == len(set(kinds))
            and all(kind in known for kind in kinds)
        )

    def _is_here(self, octets: bytes) -> bool:
        return is_of_link(octets) or octets in self._heard


def is_of_link(octets: bytes) -> bool:
    """Return whether routers do not forward packets to an IPv6 address (RFC 4291 sections 2.5.6 and 2.7)."""
    return octets[:2] == b"\xff\x02" or address.is_link_local(octets)


def _fits(pkt: Packet) -> bool:
    return len(pkt.buf) <= pkt.l3_off + _ROOM
