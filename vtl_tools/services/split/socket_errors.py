"""Errors that the kernel reports on a socket after the fact, mostly ICMP errors (ip(7), IP_RECVERR)."""

import errno
import socket
import struct
from typing import Final, NamedTuple

from vtl_tools.common.packet import icmp

IP_RECVERR: Final = 11
IPV6_RECVERR: Final = 25
_OCTETS_MAX: Final = 1280
_CONTROL_MAX: Final = 512
_EXTENDED: Final = struct.Struct("=IBBBxII")  # struct sock_extended_err
_FROM_ICMP: Final = (2, 3)  # SO_EE_ORIGIN_ICMP, _ICMP6
_FAMILY: Final = struct.Struct("=H")

_PASSED_ON: Final = {
    2: (icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM),
    3: (icmp.V6_UNREACHABLE, icmp.V6_PACKET_TOO_BIG, icmp.V6_TIME_EXCEEDED, icmp.V6_PARAMETER_PROBLEM),
}


class SocketError(NamedTuple):
    """One error. kind, code: of the ICMP error for the guest. rest: its MTU, else 0. offender: the address
    that sent it; None: this host. peer: the socket address that the datagram was sent to. octets: of the
    datagram, as the socket sent them, perhaps cut short.
    """

    kind: int
    code: int
    rest: int
    offender: bytes | None
    peer: tuple[str, int]
    octets: bytes


def receive(sock: socket.socket) -> SocketError | None:
    """Return the next error that concerns the guest; None: there is none. Never blocks."""
    while True:
        try:
            octets, control, _, peer = sock.recvmsg(_OCTETS_MAX, _CONTROL_MAX, socket.MSG_ERRQUEUE)
        except OSError:
            return None
        for level, kind, data in control:
            is_error = (level, kind) in ((socket.SOL_IP, IP_RECVERR), (socket.IPPROTO_IPV6, IPV6_RECVERR))
            if is_error and len(data) >= _EXTENDED.size:
                found = _read(data, len(peer) == 4, (peer[0], peer[1]), octets)
                if found is not None:
                    return found


def _read(data: bytes, ipv6: bool, peer: tuple[str, int], octets: bytes) -> SocketError | None:
    code, origin, kind, icmp_code, info, _ = _EXTENDED.unpack_from(data)
    if origin in _FROM_ICMP:
        if kind not in _PASSED_ON[origin]:
            return None
        is_too_big = (kind, icmp_code) == (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED) or (
            origin == 3 and kind == icmp.V6_PACKET_TOO_BIG
        )
        return SocketError(kind, icmp_code, info if is_too_big else 0, _offender(data), peer, octets)
    local = of_errno(code, ipv6, info)
    return None if local is None else SocketError(*local, None, peer, octets)


def _offender(data: bytes) -> bytes | None:
    """Return the address behind a struct sock_extended_err, if there is one."""
    at = _EXTENDED.size
    if len(data) < at + 8:
        return None
    family = _FAMILY.unpack_from(data, at)[0]
    if family == socket.AF_INET:
        return data[at + 4 : at + 8]
    return data[at + 8 : at + 24] if family == socket.AF_INET6 and len(data) >= at + 24 else None


def of_errno(code: int, ipv6: bool, mtu: int = 0) -> tuple[int, int, int] | None:
    """Return type, code and MTU of the ICMP error that says why this host did not send; None: none does."""
    if code == errno.EMSGSIZE:
        if not mtu:
            return None
        too_big = (icmp.V6_PACKET_TOO_BIG, 0) if ipv6 else (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED)
        return *too_big, mtu
    unreachable = icmp.V6_UNREACHABLE if ipv6 else icmp.UNREACHABLE
    codes = {
        errno.ENETUNREACH: (icmp.NET_UNREACHABLE, icmp.V6_NO_ROUTE),
        errno.EADDRNOTAVAIL: (icmp.NET_UNREACHABLE, icmp.V6_NO_ROUTE),
        errno.EHOSTUNREACH: (icmp.HOST_UNREACHABLE, icmp.V6_ADDRESS_UNREACHABLE),
        errno.EACCES: (icmp.ADMIN_PROHIBITED, icmp.V6_ADMIN_PROHIBITED),
        errno.EPERM: (icmp.ADMIN_PROHIBITED, icmp.V6_ADMIN_PROHIBITED),
    }
    return (unreachable, codes[code][ipv6], 0) if code in codes else None
