"""ICMP for IPv4 (RFC 792) and IPv6 (RFC 4443): common header, echo, and error messages."""

import struct
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.checksum import update
from vtl_tools.common.packet.view import U16, Buffer, View, u8, u16, u32

ECHO_REPLY: Final = 0  # ICMPv4
UNREACHABLE: Final = 3
SOURCE_QUENCH: Final = 4
REDIRECT: Final = 5
ECHO_REQUEST: Final = 8
TIME_EXCEEDED: Final = 11
PARAMETER_PROBLEM: Final = 12

NET_UNREACHABLE: Final = 0  # codes of UNREACHABLE
HOST_UNREACHABLE: Final = 1
PROTOCOL_UNREACHABLE: Final = 2
PORT_UNREACHABLE: Final = 3
FRAGMENTATION_NEEDED: Final = 4
ADMIN_PROHIBITED: Final = 13  # RFC 1812 5.2.7.1

V6_UNREACHABLE: Final = 1  # ICMPv6
V6_PACKET_TOO_BIG: Final = 2
V6_TIME_EXCEEDED: Final = 3
V6_PARAMETER_PROBLEM: Final = 4
V6_ECHO_REQUEST: Final = 128
V6_ECHO_REPLY: Final = 129
V6_REDIRECT: Final = 137

V6_NO_ROUTE: Final = 0  # codes of V6_UNREACHABLE
V6_ADMIN_PROHIBITED: Final = 1
V6_ADDRESS_UNREACHABLE: Final = 3
V6_PORT_UNREACHABLE: Final = 4

ERRORS: Final = frozenset((UNREACHABLE, SOURCE_QUENCH, REDIRECT, TIME_EXCEEDED, PARAMETER_PROBLEM))
"""ICMPv4 error types: they quote a packet, and no error is sent about them (RFC 1122 3.2.2)."""


class ICMP(View):
    """Base of both versions: 8 octets, of which type and code define the meaning of the last 4."""

    __slots__ = ()
    SIZE = 8
    SUM = 2
    HEADER: ClassVar = struct.Struct("!BBHI")

    type = u8(0, summed=True)
    code = u8(1, summed=True)
    checksum = u16(2)
    rest = u32(4, summed=True)  # meaning depends on the type
    identifier = u16(4, summed=True)  # of an echo
    sequence = u16(6, summed=True)  # of an echo

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else. end: the IP packet's."""
        end = len(buf) if end is None else end
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("icmp", off)
        return cls(buf, off, end, partial_at)

    @property
    def payload_off(self) -> int:
        """Offset in the buffer of the message's body: echo data, or the quoted packet."""
        return self.off + self.SIZE

    @property
    def payload(self) -> memoryview:
        """The octets after the header, to the packet's end."""
        return memoryview(self.buf)[self.off + self.SIZE : self.end]

    @property
    def is_error(self) -> bool:
        """Whether the message is an error about a packet, which it quotes."""
        raise NotImplementedError

    @property
    def is_echo_request(self) -> bool:
        """Whether this is an echo request."""
        raise NotImplementedError

    @property
    def is_echo(self) -> bool:
        """Whether this is an echo request or reply, which have identifier and sequence."""
        raise NotImplementedError


class ICMPv4(ICMP):
    """An ICMP message over IPv4 (RFC 792). Its checksum covers no pseudo-header."""

    __slots__ = ()
    mtu = u16(6, summed=True)  # next-hop MTU of FRAGMENTATION_NEEDED (RFC 1191 4), in octets

    @property
    def is_error(self) -> bool:
        """Whether the message is an error about a packet, which it quotes."""
        return self.type in ERRORS

    @property
    def is_echo_request(self) -> bool:
        """Whether this is an echo request."""
        return self.type == ECHO_REQUEST

    @property
    def is_echo(self) -> bool:
        """Whether this is an echo request or reply, which have identifier and sequence."""
        return self.type in (ECHO_REQUEST, ECHO_REPLY)

    def _resum(self, old: int, new: int) -> None:
        """Update the checksum.

        Without a pseudo-header a message can be all zeros, whose checksum is all ones.
        """
        at = self.off + self.SUM
        full = update(U16.unpack_from(self.buf, at)[0], old, new)
        U16.pack_into(self.buf, at, full)
        if full == 0 and not any(memoryview(self.buf)[self.off : self.end]):
            U16.pack_into(self.buf, at, 0xFFFF)


class ICMPv6(ICMP):
    """An ICMP message over IPv6 (RFC 4443). Its checksum covers a pseudo-header."""

    __slots__ = ()
    mtu = u32(4, summed=True)  # next-hop MTU of V6_PACKET_TOO_BIG, in octets

    @property
    def is_error(self) -> bool:
        """Whether the message is an error about a packet, which it quotes."""
        return self.type < 128

    @property
    def is_echo_request(self) -> bool:
        """Whether this is an echo request."""
        return self.type == V6_ECHO_REQUEST

    @property
    def is_echo(self) -> bool:
        """Whether this is an echo request or reply, which have identifier and sequence."""
        return self.type in (V6_ECHO_REQUEST, V6_ECHO_REPLY)
