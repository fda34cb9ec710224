"""State model of the link layer: Ethernet addresses and VLAN tags of both ends."""

import struct
from typing import Final, Self

from vtl_tools.common.model.base import LOCAL, End, Model
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer

_SRC: Final = struct.Struct("6s")
_TAGS_AT: Final = vnet.VNET + 12


class EtherEnd:
    """One end of a link. tags: the VLAN tags of the frames that it sends, 4 octets each from TPID to TCI."""

    __slots__ = ("mac", "tags")

    def __init__(self, mac: bytes, tags: bytes = b"") -> None:
        self.mac = mac
        self.tags = tags

    def __repr__(self) -> str:
        return f"EtherEnd({self.mac.hex(':')}, {self.tags.hex()!r})"


class EtherModel(Model[EtherEnd]):
    """Two stations. The model follows an end that changes its address, such as a gateway's standby."""

    __slots__ = ()

    @classmethod
    def from_packet(cls, pkt: Packet, sender: End = LOCAL) -> Self:
        """Learn both ends from a packet that `sender` sent."""
        eth, tags = pkt.eth, bytes(pkt.buf[_TAGS_AT : pkt.l3_off - 2])
        tx, rx = EtherEnd(eth.src, tags), EtherEnd(eth.dst, tags)
        return cls(tx, rx) if sender is LOCAL else cls(rx, tx)

    def matches(self, pkt: Packet) -> End | None:
        """Return the station that sent a frame to the other. VLAN tags are ignored."""
        eth = pkt.eth
        for end in End:
            if eth.src == self[end].mac and eth.dst == self[end.other].mac:
                return end
        return None

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Learn the source address and the VLAN tags."""
        self.follow_frame(pkt.buf, pkt.l3_off, sender)
        return True

    def follow_frame(self, frame: Buffer, l3_off: int, sender: End) -> None:
        """Do what follow() does, for a frame whose network header is known to start at l3_off."""
        tx = self[sender]
        (tx.mac,) = _SRC.unpack_from(frame, vnet.VNET + 6)
        tx.tags = bytes(frame[_TAGS_AT : l3_off - 2])

    def adopt(self, pkt: Packet, from_: End) -> None:
        """Rewrite addresses and tags. Raises ValueError if the frame has another number of tags."""
        tx, eth = self[from_], pkt.eth
        if _TAGS_AT + len(tx.tags) != pkt.l3_off - 2:
            raise ValueError(f"the frame does not have the {len(tx.tags) // 4} VLAN tags of the conversation")
        pkt.buf[_TAGS_AT : pkt.l3_off - 2] = tx.tags
        eth.src, eth.dst = tx.mac, self[from_.other].mac

    def header(self, from_: End, ethertype: int) -> bytes:
        """Return the Ethernet header, tags included, of a frame from one end to the other."""
        tx = self[from_]
        return self[from_.other].mac + tx.mac + tx.tags + ethertype.to_bytes(2, "big")

    def create(
        self, payload: bytes | bytearray | memoryview = b"", *, from_: End, ethertype: int
    ) -> bytearray:
        """Return a new frame with a vnet header of zeros, not padded."""
        frame = bytearray(vnet.NONE + self.header(from_, ethertype))
        frame += payload
        return frame
