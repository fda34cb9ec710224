"""Builds the frames that the service sends in the VM's name: acknowledgements, probes, announcements."""

import struct
from typing import Final

from vtl_tools.common.packet import address, arp, build, derive, ether, nd, vnet
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.seq import seq_add
from vtl_tools.common.packet.tcp import ACK
from vtl_tools.services.freeze.connection import RAISED, HeldConnection
from vtl_tools.services.freeze.headers import SegmentHeader, address_size

_TTL: Final = 64
_DONT_FRAGMENT: Final = 0x4000
_MASK: Final = 0xFFFF
# IPv4 from version to checksum; IPv6 up to the addresses; TCP from SEG.SEQ to the urgent pointer.
_HEAD4: Final = struct.Struct("!HHHHHH")
_HEAD6: Final = struct.Struct("!IHBB")
_TCP: Final = struct.Struct("!IIHHHH")
_STAMPS: Final = struct.Struct("!III")
_STAMPS_ALONE: Final = 0x0101_080A
_RARP: Final = 0x8035  # RFC 903; QEMU announces a guest by RARP
_OLD: Final = 1 << 30


def ack(connection: HeldConnection, window: int) -> bytes:
    """Return the frame that acknowledges the octets that the VM had acknowledged. Requires has_numbers.

    window: as sent. SEG.SEQ is the number that the peer expects, or one higher if the segment must be newer
    than one with another window: without data it is acceptable all the same.
    """
    assert connection.peer_ack is not None
    assert connection.vm_ack is not None
    seq = seq_add(connection.peer_ack, 1) if connection.flags & RAISED else connection.peer_ack
    stamps = None
    if connection.peer_tsval is not None and connection.vm_tsval is not None:
        stamps = connection.vm_tsval, connection.peer_tsval
    return _segment(connection.key, connection.l2, seq, connection.vm_ack, window, stamps)


def probe(connection: HeldConnection, segment: SegmentHeader, l2: bytes) -> bytes:
    """Return a keep-alive. It is unacceptable (RFC 9293 section 3.8.4), so the answer contains SND.NXT.

    segment: of the peer, whose numbers are used. The acknowledgement is long past, so it has no effect.
    l2: the Ethernet header.
    """
    stamps = None if segment.tsval is None or segment.tsecr is None else (segment.tsecr, segment.tsval)
    return _segment(connection.key, l2, seq_add(segment.ack, -1), seq_add(segment.seq, -_OLD), 0, stamps)


def _segment(
    key: bytes, l2: bytes, seq: int, number: int, window: int, stamps: tuple[int, int] | None
) -> bytes:
    size = address_size(key)
    vm, peer, ports = key[:size], key[size : 2 * size], key[2 * size : 2 * size + 4]
    options = b"" if stamps is None else _STAMPS.pack(_STAMPS_ALONE, *stamps)
    length = 20 + len(options)
    body = _TCP.pack(seq, number, length << 10 | ACK, window, 0, 0) + options
    addresses = vm + peer
    total = ones_sum(ports + body, ones_sum(addresses) + 6 + length)
    body = _TCP.pack(seq, number, length << 10 | ACK, window, ~total & _MASK, 0) + options
    if size == 4:
        words = (0x4500, 20 + length, 0, _DONT_FRAGMENT, _TTL << 8 | 6)
        head = _HEAD4.pack(*words, ~ones_sum(addresses, sum(words)) & _MASK)
    else:
        head = _HEAD6.pack(6 << 28, length, 6, _TTL)
    return b"".join((vnet.NONE, l2, head, addresses, ports, body))


# --- the VM's addresses

Hosts = dict[tuple[bytes, bytes], bytes]
"""By VLAN tags (with the EtherType between, as in SegmentHeader.key) and IP address: the Ethernet address."""


def neighbour_reply(frame: bytearray | memoryview, hosts: Hosts) -> bytearray | None:
    """Return the answer to a request for one of the VM's addresses, by ARP or ND. Raises Malformed."""
    pkt = Packet.at(frame)
    tags = bytes(frame[vnet.VNET + 12 : pkt.l3_off - 2])
    if (asked := pkt.arp) is not None:
        mac = hosts.get((tags, asked.tpa))
        return None if mac is None else derive.arp_reply(pkt, mac)
    message = pkt.nd
    if not isinstance(message, nd.NeighborSolicit) or not pkt.verify():
        return None
    mac = hosts.get((tags, message.target))
    return None if mac is None else derive.nd_reply(pkt, mac)


def announcements(hosts: Hosts) -> list[bytearray]:
    """Return frames that announce the VM's place to a network: RARP, gratuitous ARP and unsolicited ND."""
    frames = []
    for tags, mac in sorted({(tags, mac) for (tags, _), mac in hosts.items()}):
        l2 = address.BROADCAST + mac + tags + _RARP.to_bytes(2, "big")
        body = arp.ARP.ETHERNET_IPV4 + b"\0\3" + mac + bytes(4) + mac + bytes(4)
        frames.append(bytearray(vnet.NONE + l2 + body))
    for (tags, host), mac in hosts.items():
        if len(host) == 4:
            l2 = address.BROADCAST + mac + tags + ether.ARP.to_bytes(2, "big")
            body = arp.ARP.ETHERNET_IPV4 + b"\0\1" + mac + host + bytes(6) + host
            frames.append(bytearray(vnet.NONE + l2 + body))
        else:
            frames.append(_tagged(_advertisement(host, mac), tags))
    return frames


def _advertisement(host: bytes, mac: bytes) -> bytearray:
    return build.neighbor_advert(
        src_mac=mac, dst_mac=address.multicast_mac(address.ALL_NODES), src=host, dst=address.ALL_NODES,
        target=host, lladdr=mac, solicited=False,
    )  # fmt: skip


def _tagged(frame: bytearray, tags: bytes) -> bytearray:
    frame[vnet.VNET + 12 : vnet.VNET + 12] = tags
    return frame
