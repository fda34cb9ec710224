"""State model of the network layer: addresses, TTL and other header fields of both hosts, IPv4 or IPv6."""

import struct
from typing import Final, Self

from vtl_tools.common.model.base import LOCAL, End, Model
from vtl_tools.common.model.ether import EtherModel
from vtl_tools.common.packet import build, ether, vnet
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer

_NOTED4: Final = struct.Struct("!xBxxHHB")  # TOS, identification, flags and fragment offset, TTL
_NOTED6: Final = struct.Struct("!IxxxB")  # version, class and flow label; hop limit


class IPEnd:
    """The address of one end, 4 or 16 octets, and the header fields of its packets.

    ttl: TTL or hop limit, as observed here. dscp: 0..63; the ECN bits are not kept. identification,
    dont_fragment: IPv4 only. identification is the next packet's; a super-segment takes one for each of its
    segments, as Linux counts. flow_label: IPv6 only.
    """

    __slots__ = ("address", "dont_fragment", "dscp", "flow_label", "identification", "ttl")

    def __init__(
        self,
        address: bytes,
        *,
        ttl: int = 64,
        dscp: int = 0,
        identification: int = 0,
        dont_fragment: bool = True,
        flow_label: int = 0,
    ) -> None:
        self.address = address
        self.ttl = ttl
        self.dscp = dscp
        self.identification = identification
        self.dont_fragment = dont_fragment
        self.flow_label = flow_label

    def __repr__(self) -> str:
        return f"IPEnd({format_ip(self.address)}, ttl={self.ttl}, identification={self.identification})"


class IPModel(Model[IPEnd]):
    """Two hosts, and the link between them. Payloads belong to the layers above."""

    __slots__ = ("link",)

    def __init__(self, link: EtherModel, local: IPEnd, remote: IPEnd) -> None:
        if len(local.address) != len(remote.address):
            raise ValueError("the addresses are of different IP versions")
        super().__init__(local, remote)
        self.link = link

    def __repr__(self) -> str:
        return f"<IPModel {self.local!r} {self.remote!r}>"

    @classmethod
    def from_packet(cls, pkt: Packet, sender: End = LOCAL) -> Self:
        """Learn both ends from a packet that `sender` sent. Raises ValueError if it is not IP."""
        if (net := pkt.ip) is None:
            raise ValueError("the packet is not IP")
        tx, rx = IPEnd(net.src), IPEnd(net.final_dst)
        model = cls(EtherModel.from_packet(pkt, sender), *((tx, rx) if sender is LOCAL else (rx, tx)))
        model.follow(pkt, sender)
        return model

    @property
    def version(self) -> int:
        """4 or 6."""
        return 4 if len(self.local.address) == 4 else 6

    def matches(self, pkt: Packet) -> End | None:
        """Return the host that sent a packet to the other, over any link."""
        if (net := pkt.ip) is None:
            return None
        src, dst = net.src, net.dst
        if src == self.local.address and dst == self.remote.address:
            return LOCAL
        if src == self.remote.address and dst == self.local.address:
            return End.REMOTE
        return None

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Learn the header fields, and the link's."""
        self.follow_frame(
            pkt.buf, pkt.l3_off, super_segments(pkt.buf, pkt.tcp_payload_len) if pkt.gso_size else 1, sender
        )
        return True

    def follow_frame(self, frame: Buffer, l3_off: int, segments: int, sender: End) -> None:
        """Do what follow() does, for a frame with its IP header at l3_off.

        It counts as `segments` packets.
        """
        tx = self.local if sender is LOCAL else self.remote
        if len(tx.address) == 4:
            tos, identification, fragment, tx.ttl = _NOTED4.unpack_from(frame, l3_off)
            tx.dscp = tos >> 2
            tx.dont_fragment = fragment & 0x4000 != 0
            tx.identification = (identification + segments) & 0xFFFF
        else:
            word, tx.ttl = _NOTED6.unpack_from(frame, l3_off)
            tx.dscp = word >> 22 & 0x3F
            tx.flow_label = word & 0xF_FFFF
        self.link.follow_frame(frame, l3_off, sender)

    def adopt(self, pkt: Packet, from_: End) -> None:
        """Rewrite addresses, TTL, DSCP, and identification or flow label. Extensions and options stay."""
        net, tx, rx = pkt.ip, self[from_], self[from_.other]
        if net is None or len(net.src) != len(tx.address):
            raise ValueError(f"the packet is not IPv{self.version}")
        self.link.adopt(pkt, from_)
        net.src, net.dst, net.ttl, net.dscp = tx.address, rx.address, tx.ttl, tx.dscp
        if isinstance(net, IPv4):
            net.identification = tx.identification
        else:
            net.flow_label = tx.flow_label

    def create(
        self, payload: bytes | bytearray | memoryview = b"", *, from_: End, protocol: int, sync: bool = True
    ) -> bytearray:
        """Return a new packet whose payload is a whole message of `protocol`, its own checksum included.

        sync: follow the packet as sent; False leaves the model as it is. Raises ValueError above 64 KiB.
        """
        tx, rx = self[from_], self[from_.other]
        frame = bytearray(vnet.NONE + self._l2(from_))
        at = len(frame)
        frame += build.ip_header(tx.address, rx.address, protocol, self._room(len(payload)), **_fields(tx))
        frame += payload
        return self._made(frame, at, from_, sync)

    def carry(
        self,
        header: bytes,
        payload: bytes | bytearray | memoryview,
        *,
        from_: End,
        protocol: int,
        partial: bool = False,
        gso_size: int = 0,
    ) -> bytearray:
        """Return a new packet for a layer above, which follows it. The transport checksum is computed here.

        header: the transport header, checksum 0. partial, gso_size: see packet.build.
        """
        tx, rx = self[from_], self[from_.other]
        self._room(len(header) + len(payload))
        l2 = self._l2(from_)
        frame = build.over_ip(
            l2, tx.address, rx.address, protocol, header, payload, partial=partial, gso_size=gso_size,
            **_fields(tx),
        )  # fmt: skip
        return self._made(frame, vnet.VNET + len(l2), from_, sync=False)

    def _l2(self, from_: End) -> bytes:
        return self.link.header(from_, ether.IPV4 if self.version == 4 else ether.IPV6)

    def _room(self, length: int) -> int:
        if length > (0xFFFF if self.version == 6 else 0xFFFF - IPv4.SIZE):
            raise ValueError(f"{length} octets do not fit an IPv{self.version} packet")
        return length

    def _made(self, frame: bytearray, at: int, from_: End, sync: bool) -> bytearray:
        if self.version == 6:
            IPv6.at(frame, at).flow_label = self[from_].flow_label  # no checksum covers it
        if sync:
            self.follow(Packet.at(frame), from_)
        return frame


def super_segments(frame: Buffer, text: int) -> int:
    """Return how many packets the kernel makes of a super-segment with `text` octets of TCP data."""
    size: int = vnet.HEADER.unpack_from(frame)[3]
    return max(1, -(-text // size)) if size else 1


def _fields(tx: IPEnd) -> build.IPFields:
    return {
        "ttl": tx.ttl,
        "tos": tx.dscp << 2,
        "ip_id": tx.identification,
        "dont_fragment": tx.dont_fragment,
    }
