"""Frames that a guest sends to get past vtl-fw, each with a mark by which it is found again on the uplink.

The rules allow the guest TCP and UDP to OPEN_PORT of the router, without a tag, and deny SHUT_PORT. A frame
that only lies about its sender goes to OPEN_PORT, so that no rule denies it.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from scapy.layers.inet import TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vtl_tools.common.selftest.packets import MAC
from vtl_tools.services.fw.selftest.packets import OPEN_PORT, ROUTER_MAC

SHUT_PORT: Final = 7777
ALL_NODES_MAC: Final = "33:33:00:00:00:01"

Frame: TypeAlias = Packet | bytes
Marked: TypeAlias = tuple[str, list[Frame]]
"""An attack: its name, and its frames in order."""
Attacks: TypeAlias = Iterator[Marked]


def mark(name: str) -> bytes:
    """Return six octets that only the frames of this attack contain."""
    return b"t!" + struct.pack("!I", zlib.crc32(name.encode()))


def ether(**fields: Any) -> Packet:
    """Return the guest's Ethernet header to the router."""
    return Ether(**{"src": MAC, "dst": ROUTER_MAC, **fields})


def open_datagram(name: str) -> Packet:
    """Return a datagram that the rules allow."""
    return UDP(sport=5000, dport=OPEN_PORT) / Raw(mark(name))


def open_syn(name: str) -> Packet:
    """Return a SYN that the rules allow."""
    return TCP(sport=5000, dport=OPEN_PORT, seq=1000, flags="S") / Raw(mark(name))


def shut_datagram(name: str) -> Packet:
    """Return a datagram that the rules deny."""
    return UDP(sport=5000, dport=SHUT_PORT) / Raw(mark(name))


def to_all_nodes(message: Packet, name: str) -> Packet:
    """Return a message of neighbour discovery, with the mark in an option of an unknown type."""
    return ether(dst=ALL_NODES_MAC) / message / Raw(b"\xfd\1" + mark(name))
