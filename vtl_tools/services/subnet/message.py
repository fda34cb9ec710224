"""Messages between vtl-subnet processes on the direct link: docs/subnet.md.

A message is the payload of an Ethernet frame of type ETHERTYPE. A key that the processes share may
authenticate it: HMAC-SHA256, truncated to 128 bits (RFC 2104 section 5), over Ethernet header and message.
"""

import hashlib
import hmac
import struct
from enum import IntEnum
from typing import Final, NamedTuple, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import NONE, VNET

ETHERTYPE: Final = 0x88B5
"""IEEE 802 local experimental EtherType 1 (RFC 9542 section 3)."""
GROUP: Final = bytes.fromhex("0356544c5301")
"""Destination of announcements: a locally administered group address."""
MAGIC: Final = b"VTLS"
VERSION: Final = 1
ADDRESSES_MAX: Final = 16
NONCE: Final = 8
TAG: Final = 16
MTU_MIN: Final = 68  # RFC 791: the minimum of every link

WANTED: Final = 1  # flag of a PROBE: our VM has a packet to send
TAGGED: Final = 2  # flag: a tag follows

_HEADER: Final = struct.Struct("!4sBBBBHHHH8s6s")
"""magic, version, kind, flags, number of addresses, octets in all, MTU, accepts, zero, nonce, MAC."""
_START: Final = VNET + 14


class MessageKind(IntEnum):
    """The kind of a message."""

    ANNOUNCE = 1  # to all: this VM is here, and has these addresses
    PROBE = 2  # asks whether the peer is there, and accepts packets from these addresses
    REPLY = 3  # yes, and from those in `accepts`
    BYE = 4  # no longer


class SubnetMessage(NamedTuple):
    """One message. mac: the VM in whose name it is sent. mtu: its largest IP packet in octets.

    nonce: of a PROBE, and repeated in the REPLY. accepts: bit i stands for address i of the PROBE.
    """

    kind: MessageKind
    mac: bytes
    mtu: int
    addresses: tuple[bytes, ...]
    nonce: bytes = bytes(NONCE)
    accepts: int = 0
    wanted: bool = False

    @classmethod
    def at(cls, frame: Buffer, key: bytes | None = None) -> Self:
        """Parse an untrusted frame of ETHERTYPE. Raises Malformed, and nothing else.

        key: the message must be authenticated by it; else Malformed names "tag". The sender is the source
        address of the Ethernet header.
        """
        if len(frame) < _START + _HEADER.size:
            raise Malformed("header", _START)
        magic, version, kind, flags, count, length, mtu, accepts, _, nonce, mac = _HEADER.unpack_from(
            frame, _START
        )
        if magic != MAGIC or version != VERSION:
            raise Malformed("version", _START)
        end = _START + length
        if not _START + _HEADER.size <= end <= len(frame):
            raise Malformed("length", _START + 8)
        if flags & TAGGED:
            end -= TAG
        if key is not None and not (flags & TAGGED and _is_authentic(key, frame, end)):
            raise Malformed("tag", end)
        if not MessageKind.ANNOUNCE <= kind <= MessageKind.BYE:
            raise Malformed("kind", _START + 5)
        if mac[0] & 1 or not any(mac) or mac != bytes(frame[VNET + 6 : VNET + 12]):
            raise Malformed("mac", _START + 24)
        if mtu < MTU_MIN or count > ADDRESSES_MAX:
            raise Malformed("field", _START + 7)
        addresses = _addresses(frame, count, end)
        return cls(MessageKind(kind), mac, mtu, addresses, nonce, accepts, bool(flags & WANTED))

    def frame(self, dst_mac: bytes, key: bytes | None = None, packet: int = 0) -> bytes:
        """Return the frame with this message for dst_mac.

        packet: pad it to the size of an IP packet of so many octets, to test that such packets get through.
        """
        flags = (WANTED if self.wanted else 0) | (TAGGED if key is not None else 0)
        body = b"".join(bytes((len(octets),)) + octets for octets in self.addresses)
        length = _HEADER.size + len(body) + (TAG if key is not None else 0)
        head = _HEADER.pack(
            MAGIC, VERSION, self.kind, flags, len(self.addresses), length, self.mtu, self.accepts, 0,
            self.nonce, self.mac,
        )  # fmt: skip
        said = build.ethernet(self.mac, dst_mac, ETHERTYPE) + head + body
        if key is not None:
            said += _tag(key, said)
        return NONE + said.ljust(14 + packet, b"\0")


def _addresses(frame: Buffer, count: int, end: int) -> tuple[bytes, ...]:
    found, at = [], _START + _HEADER.size
    for _ in range(count):
        if at >= end or (size := frame[at]) not in (4, 16) or at + 1 + size > end:
            raise Malformed("address", at)
        octets = bytes(frame[at + 1 : at + 1 + size])
        if not address.is_single_host(octets) or address.is_link_local(octets):
            raise Malformed("address", at)
        found.append(octets)
        at += 1 + size
    if at != end:
        raise Malformed("length", at)
    return tuple(found)


def _tag(key: bytes, said: bytes) -> bytes:
    return hmac.digest(key, said, hashlib.sha256().name)[:TAG]


def _is_authentic(key: bytes, frame: Buffer, end: int) -> bool:
    said, tag = bytes(frame[VNET:end]), bytes(frame[end : end + TAG])
    return end >= _START + _HEADER.size and hmac.compare_digest(_tag(key, said), tag)
