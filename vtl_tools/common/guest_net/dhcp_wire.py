"""Parser and encoder of DHCP messages over IPv4 (RFC 2131 section 2, RFC 2132, RFC 3396)."""

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.view import Buffer

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
ETHERNET: Final = 1  # htype
COOKIE: Final = b"\x63\x82\x53\x63"
BROADCAST: Final = 0x8000  # flags: the client cannot receive unicast yet

DISCOVER: Final = 1  # MESSAGE_TYPE, RFC 2132 section 9.6
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8

PAD: Final = 0  # options, RFC 2132
SUBNET_MASK: Final = 1
ROUTER: Final = 3
DNS: Final = 6
DOMAIN_NAME: Final = 15
INTERFACE_MTU: Final = 26
REQUESTED_ADDRESS: Final = 50
LEASE_TIME: Final = 51
OVERLOAD: Final = 52
MESSAGE_TYPE: Final = 53
SERVER_ID: Final = 54
MESSAGE: Final = 56
RENEWAL_TIME: Final = 58  # T1
REBINDING_TIME: Final = 59  # T2
CLIENT_ID: Final = 61
DOMAIN_SEARCH: Final = 119  # RFC 3397
END: Final = 255

SIZE_MIN: Final = 300
"""Minimum octets of a message, as of BOOTP: some clients and relays drop shorter ones (RFC 1542 2.1)."""

SIZE_MAX: Final = 4096
"""Maximum octets of a message; one in a 1,500-octet frame has a third."""

_OPTIONS_AT: Final = 240
_SNAME: Final = (44, 108)
_FILE: Final = (108, 236)

# op htype hlen hops xid secs flags ciaddr yiaddr siaddr giaddr chaddr(6 of 16)
_HEADER: Final = struct.Struct("!BBBBIHH4s4s4s4s6s")


@dataclass(frozen=True, slots=True)
class DHCPMessage:
    """A DHCP message of an Ethernet client. options: by number; split options are joined."""

    op: int
    xid: int
    chaddr: bytes
    flags: int = 0
    secs: int = 0
    ciaddr: bytes = bytes(4)
    yiaddr: bytes = bytes(4)
    options: Mapping[int, bytes] = field(default_factory=dict)

    @classmethod
    def at(cls, data: Buffer) -> Self:
        """Parse a UDP payload. Raises Malformed, and nothing else."""
        if not _OPTIONS_AT <= len(data) <= SIZE_MAX or bytes(data[236:_OPTIONS_AT]) != COOKIE:
            raise Malformed("dhcp", len(data))
        op, htype, hlen, _, xid, secs, flags, ciaddr, yiaddr, _, _, chaddr = _HEADER.unpack_from(data)
        if htype != ETHERNET or hlen != 6 or chaddr[0] & 1 or not any(chaddr):
            raise Malformed("dhcp.chaddr", 28)
        options = _collect(data)
        return cls(op, xid, chaddr, flags, secs, ciaddr, yiaddr, options)

    @property
    def kind(self) -> int:
        """The message type, such as DISCOVER; 0 if there is none, as in plain BOOTP."""
        data = self.options.get(MESSAGE_TYPE, b"")
        return data[0] if len(data) == 1 else 0

    def address(self, option: int) -> bytes | None:
        """Return the address in an option; None: absent. Raises Malformed for another length."""
        data = self.options.get(option)
        if data is not None and len(data) != 4:
            raise Malformed("dhcp.option")
        return data

    def encode(self) -> bytes:
        """Return the UDP payload. Raises ValueError if an option exceeds 255 octets."""
        chaddr, zero = self.chaddr, bytes(4)
        head = (self.op, ETHERNET, 6, 0, self.xid, self.secs, self.flags, self.ciaddr, self.yiaddr)
        out = bytearray(_HEADER.pack(*head, zero, zero, chaddr).ljust(236, b"\0") + COOKIE)
        for code, data in self.options.items():
            out += bytes((code, len(data))) + data
        out.append(END)
        return bytes(out.ljust(SIZE_MIN, b"\0"))


def codes(data: Buffer) -> list[int]:
    """Return the number of each option, repeated ones too, without those in overloaded fields.

    Raises Malformed.
    """
    return [code for code, _ in _walk(data, _OPTIONS_AT, len(data))]


def _collect(data: Buffer) -> dict[int, bytes]:
    """Return the options, with those in overloaded fields (RFC 2131 section 4.1)."""
    found: dict[int, bytes] = {}
    _join(found, _walk(data, _OPTIONS_AT, len(data)))
    overload = found.get(OVERLOAD, b"\0")
    if len(overload) != 1 or overload[0] > 3:
        raise Malformed("dhcp.overload", _OPTIONS_AT)
    if overload[0] & 1:
        _join(found, _walk(data, *_FILE))
    if overload[0] & 2:
        _join(found, _walk(data, *_SNAME))
    return found


def _join(found: dict[int, bytes], options: Iterable[tuple[int, bytes]]) -> None:
    """Add options; a repeated one continues the earlier (RFC 3396 section 7)."""
    for code, data in options:
        found[code] = found.get(code, b"") + data


def _walk(data: Buffer, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Iterate over options up to END or the end of the field: some clients omit END."""
    while at < end and (code := data[at]) != END:
        at += 1
        if code == PAD:
            continue
        if at >= end or at + 1 + data[at] > end:
            raise Malformed("dhcp.option", at)
        yield code, bytes(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
