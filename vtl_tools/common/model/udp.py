"""State model of a UDP conversation (RFC 768): two ports, and the layers below."""

from typing import Self

from vtl_tools.common.model.base import LOCAL, End
from vtl_tools.common.model.ip import IPModel
from vtl_tools.common.model.transport import TransportModel
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.udp import UDP


class UdpEnd:
    """One end of a UDP conversation."""

    __slots__ = ("port",)

    def __init__(self, port: int) -> None:
        self.port = port

    def __repr__(self) -> str:
        return f"UdpEnd({self.port})"


class UdpModel(TransportModel[UdpEnd]):
    """Datagrams between two sockets."""

    __slots__ = ()
    HEADER = UDP

    @classmethod
    def from_packet(cls, pkt: Packet, sender: End = LOCAL) -> Self:
        """Learn both ends from a datagram that `sender` sent. Raises ValueError if the packet is not UDP."""
        if (head := pkt.udp) is None:
            raise ValueError("the packet is not UDP")
        tx, rx = UdpEnd(head.sport), UdpEnd(head.dport)
        return cls(IPModel.from_packet(pkt, sender), *((tx, rx) if sender is LOCAL else (rx, tx)))

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Follow the layers below; UDP itself has no state."""
        return self.ip.follow(pkt, sender)

    def create(
        self,
        payload: bytes | bytearray | memoryview = b"",
        *,
        from_: End = LOCAL,
        offload: bool = False,
        sync: bool = True,
    ) -> bytearray:
        """Return a new datagram, which the caller owns.

        offload: leave the checksum to the kernel. sync: follow it as sent; False leaves the model as it is.
        Raises ValueError if the payload does not fit an IP packet.
        """
        size = UDP.SIZE + len(payload)
        head = UDP.HEADER.pack(self[from_].port, self[from_.other].port, size & 0xFFFF, 0)
        frame = self.ip.carry(head, payload, from_=from_, protocol=ip.UDP, partial=offload)
        if sync:
            self.follow(Packet.at(frame), from_)
        return frame
