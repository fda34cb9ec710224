"""The Ethernet header and VLAN tags (IEEE 802.3, 802.1Q)."""

import struct
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.view import Buffer, View, bits, octets, u16

IPV4: Final = 0x0800
ARP: Final = 0x0806
IPV6: Final = 0x86DD
CTAG: Final = 0x8100  # 802.1Q, a customer's tag
STAG: Final = 0x88A8  # 802.1ad, a provider's tag, outside a customer's
QINQ: Final = 0x9100  # the provider's tag before there was a standard

TAGS: Final = frozenset((CTAG, STAG, QINQ))
MAX_TAGS: Final = 4
"""Maximum number of VLAN tags that are parsed. 802.1ad has two."""


class Ethernet(View):
    """The Ethernet header (IEEE 802.3 clause 3). A value of `type` below 1536 is a length."""

    __slots__ = ()
    SIZE = 14
    HEADER: ClassVar = struct.Struct("!6s6sH")
    dst = octets(0, 6)
    src = octets(6, 6)
    type = u16(12)  # EtherType of the next header: a VLAN tag, if there is one

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else."""
        end = len(buf) if end is None else end
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("ether", off)
        return cls(buf, off, end)


class VLAN(View):
    """One VLAN tag (IEEE 802.1Q clause 9.3), from its protocol identifier to the type of the next header."""

    __slots__ = ()
    SIZE = 6
    tpid = u16(0)  # the type of the header before it: CTAG, STAG or QINQ
    tci = u16(2)
    pcp = bits(tci, 13, 3)  # priority code point
    dei = bits(tci, 12, 1)  # drop eligible indicator
    vid = bits(tci, 0, 12)  # VLAN identifier; 0: priority only
    type = u16(4)  # EtherType of the next header, perhaps another tag

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None) -> Self:
        """Validate untrusted octets, starting at the tag's TPID. Raises Malformed, and nothing else."""
        end = len(buf) if end is None else end
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("vlan", off)
        return cls(buf, off, end)
