"""The far end of the backend's link: its Ethernet address, and the frames that wait until that is known."""

from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.packet import build, derive, nd
from vtl_tools.common.packet.address import BROADCAST, multicast_mac, solicited_node
from vtl_tools.common.packet.packet import Packet

WAITING_MAX: Final = 64
ASK_EVERY_S: Final = 1.0
GATEWAY_MAC: Final = bytes.fromhex("02766f727478")
"""Our Ethernet address on the link: the same for every volunteer."""
_LINK_LOCAL: Final = bytes.fromhex("fe80" + "0" * 27 + "1")


class BackendLink:
    """Neighbour discovery on a link whose one station is the backend. No frame of the volunteer is here.

    address4, address6: the addresses that the backend has, in the place of the volunteer's.
    """

    def __init__(self, address4: bytes, address6: bytes) -> None:
        self.addresses = {4: address4, 16: address6}
        self.mac = b""
        self.waiting: list[bytes] = []
        self._asked = float("-inf")

    def questions(self, now: float) -> list[Pieces]:
        """Return ARP and ND requests, if the backend's Ethernet address is unknown; one a second at most."""
        if self.mac or now - self._asked < ASK_EVERY_S:
            return []
        self._asked = now
        target4, target6 = self.addresses[4], self.addresses[16]
        asks4 = build.arp(src_mac=GATEWAY_MAC, dst_mac=BROADCAST, sha=GATEWAY_MAC, spa=bytes(4), tpa=target4)
        group = solicited_node(target6)
        asks6 = build.neighbor_solicit(
            src_mac=GATEWAY_MAC, dst_mac=multicast_mac(group), src=_LINK_LOCAL, dst=group, target=target6
        )
        return [(bytes(asks4),), (bytes(asks6),)]

    def wait(self, frame: bytes) -> bool:
        """Keep a frame until the backend's address is known. Return whether there was room."""
        if len(self.waiting) >= WAITING_MAX:
            return False
        self.waiting.append(frame)
        return True

    def learn(self, mac: bytes) -> list[Pieces]:
        """Note the backend's Ethernet address. Return the frames that waited."""
        if mac[0] & 1 or mac == GATEWAY_MAC:
            return []
        self.mac = mac
        ready: list[Pieces] = [(b"".join((f[:10], mac, f[16:])),) for f in self.waiting]
        self.waiting.clear()
        return ready

    def answer(self, pkt: Packet) -> bytearray | None:
        """Return the answer to a request of the backend for a neighbour: all are behind us."""
        asked = pkt.arp
        if asked is not None:
            return derive.arp_reply(pkt, GATEWAY_MAC) if asked.tpa != self.addresses[4] else None
        solicited, net = pkt.nd, pkt.ip
        if not isinstance(solicited, nd.NeighborSolicit) or net is None or not any(net.src):
            return None
        return derive.nd_reply(pkt, GATEWAY_MAC, router=True)

    def speaker(self, pkt: Packet) -> bytes:
        """Return the Ethernet address of the backend, if it tells it; else b""."""
        if (said := pkt.arp) is not None:
            return said.sha if said.spa == self.addresses[4] else b""
        if isinstance(advert := pkt.nd, nd.NeighborAdvert):
            return pkt.eth.src if advert.target == self.addresses[16] else b""
        net = pkt.ip
        return pkt.eth.src if net is not None and net.src == self.addresses[len(net.src)] else b""
