"""Attacks by checksum offload: frames that a card, or the host's kernel, changes later."""

import struct

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet

from vtl_tools.common.selftest.packets import IP4, IP6
from vtl_tools.services.fw.selftest.fragments import part
from vtl_tools.services.fw.selftest.marked import SHUT_PORT, Attacks, ether, open_datagram
from vtl_tools.services.fw.selftest.packets import PEER6, ROUTER4


def ports() -> Attacks:
    """Frames with a virtio_net_hdr that asks a card to complete a checksum which is elsewhere.

    The other frames have no such header.
    """
    name = "a port that the checksum becomes"
    yield name, [_rewritten(name, IP(src=IP4, dst=ROUTER4), 34)]
    name = "a port that the checksum becomes, IPv6"
    yield name, [_rewritten(name, IPv6(src=IP6, dst=PEER6), 54)]


def sum_in_fragment() -> Attacks:
    """A fragment whose checksum is left to a card: no firewall lets it pass."""
    name = "a sum to be made in a fragment"
    whole = bytes(part(IP(src=IP4, dst=ROUTER4, id=73), 0, bytes(open_datagram(name)) + bytes(10), more=True))
    yield name, [struct.pack("=BBHHHH", 1, 0, 34, 0, 34, 6) + whole]


def _rewritten(name: str, net: Packet, at: int) -> bytes:
    """Return a datagram to OPEN_PORT. The checksum that a card completes is written over the port."""
    datagram = bytearray(bytes(open_datagram(name)) + b"\0\0")
    words = struct.unpack(f"!{len(datagram) // 2}H", datagram)
    struct.pack_into("!H", datagram, len(datagram) - 2, -(sum(words) + SHUT_PORT) % 0xFFFF)
    frame = bytes(ether() / net / UDP(bytes(datagram)))
    assert frame.endswith(datagram)
    return struct.pack("=BBHHHH", 1, 0, at, 0, at, 2) + frame
