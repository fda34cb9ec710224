"""Names that are answered locally and never sent to Tor.

A look-up would reveal to an exit the names of a guest's own network or configuration, and could only fail.
Labels are in lower case, without the root's.
"""

from ipaddress import ip_address
from typing import Final, NamedTuple

from vtl_tools.common.packet.address import is_internal

Labels = tuple[bytes, ...]


class SpecialName(NamedTuple):
    """The records of a name: it does not exist (NXDOMAIN), or has these addresses, perhaps none (NODATA)."""

    exists: bool
    addresses: tuple[bytes, ...] = ()


NOTHING: Final = SpecialName(False)
EMPTY: Final = SpecialName(True)

LOCALHOST: Final = (b"\x7f\0\0\1", bytes(15) + b"\1")
NAT64: Final = (b"\xc0\0\0\xaa", b"\xc0\0\0\xab")

ONION: Final = b"onion"  # RFC 7686

ABSENT: Final = frozenset(
    {
        b"invalid", b"test",  # RFC 6761
        b"local",  # RFC 6762: multicast DNS
        b"intranet", b"internal", b"private", b"corp", b"home", b"lan",  # RFC 6762 appendix G
        b"localdomain", b"localdomain6",  # the own host in hosts files
        b"alt",  # RFC 9476
        b"exit", b"noconnect",  # commands to Tor
    }
)  # fmt: skip
"""Top-level names without entries in the public DNS."""

NAMES: Final[dict[Labels, SpecialName]] = {
    (): EMPTY,
    # Firefox disables its DNS over HTTPS if this name does not exist, so that its queries reach us.
    (b"use-application-dns", b"net"): NOTHING,
    # RFC 7050: an AAAA record would signal a NAT64. RFC 8880 defines the A records.
    (b"ipv4only", b"arpa"): SpecialName(True, NAT64),
}

REVERSE: Final[tuple[Labels, ...]] = ((b"in-addr", b"arpa"), (b"ip6", b"arpa"))


def known(labels: Labels) -> SpecialName | None:
    """Return the records of a special name; None: an ordinary name, to be looked up."""
    if labels in NAMES:
        return NAMES[labels]
    top = labels[-1]
    if top == b"localhost":  # RFC 6761 section 6.3
        return SpecialName(True, LOCALHOST)
    if top == b"arpa":  # names below it are for protocols, not for users (RFC 3172)
        return EMPTY if labels[-2:] == (b"resolver", b"arpa") else NOTHING  # RFC 9462
    if top in ABSENT or len(labels) == 1 or _is_number(top):
        return NOTHING  # a single label is a local name; a number as last label is an address
    return None if all(map(_is_hostname, labels)) else NOTHING


def _is_number(label: bytes) -> bool:
    """Return whether a last label makes inet_aton(3) read the name as an address, as a proxy may do.

    inet_aton reads 127.0x1 as 127.0.0.1, and so does the URL Standard.
    """
    return label.isdigit() or (label[:2] == b"0x" and _HEX.issuperset(label[2:]))


def is_reverse(labels: Labels) -> bool:
    """Return whether a name is in a zone of reverse look-ups (RFC 1035 3.5, RFC 3596 2.5)."""
    return labels[-2:] in REVERSE


def is_public(address: bytes) -> bool:
    """Return whether the reverse look-up of an address may be sent: it is not private (RFC 6303)."""
    found = ip_address(address)
    return found.is_global and not found.is_multicast and not is_internal(address)


def is_loopback(address: bytes) -> bool:
    """Return whether the reverse look-up of an address gives localhost."""
    return ip_address(address).is_loopback


_HEX: Final = frozenset(b"0123456789abcdef")
_HOSTNAME: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


def _is_hostname(label: bytes) -> bool:
    """Return whether a label may be part of a host name (RFC 1123 2.1); underscores are accepted."""
    return _HOSTNAME.issuperset(label)
