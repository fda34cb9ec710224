"""Names that are answered here and never asked for elsewhere.

To ask Tor for them would tell an exit what a guest has on its own network, or what it is set up with, and
could only fail. Labels are in lower case, without the root's.
"""

from ipaddress import ip_address
from typing import Final, NamedTuple

from vtl_tools.common.packet.address import is_internal

Labels = tuple[bytes, ...]


class SpecialName(NamedTuple):
    """What there is of a name: nothing at all (NXDOMAIN), or the addresses, maybe none (NODATA)."""

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
        b"localdomain", b"localdomain6",  # what hosts files call their own host
        b"alt",  # RFC 9476
        b"exit", b"noconnect",  # Tor would take them for orders
    }
)  # fmt: skip
"""Top-level names below which there is nothing in the public DNS."""

NAMES: Final[dict[Labels, SpecialName]] = {
    (): EMPTY,
    # Firefox asks for it, and leaves its own DNS over HTTPS off where it is absent: names reach us so.
    (b"use-application-dns", b"net"): NOTHING,
    # RFC 7050: a guest that found an AAAA record would believe in a NAT64. RFC 8880 gives the A records.
    (b"ipv4only", b"arpa"): SpecialName(True, NAT64),
}

REVERSE: Final[tuple[Labels, ...]] = ((b"in-addr", b"arpa"), (b"ip6", b"arpa"))


def known(labels: Labels) -> SpecialName | None:
    """Return what is known of a name that is no address's; None: it is one to ask for."""
    if labels in NAMES:
        return NAMES[labels]
    top = labels[-1]
    if top == b"localhost":  # RFC 6761 section 6.3
        return SpecialName(True, LOCALHOST)
    if top == b"arpa":  # what is below it is for protocols and not for users (RFC 3172)
        return EMPTY if labels[-2:] == (b"resolver", b"arpa") else NOTHING  # RFC 9462
    if top in ABSENT or len(labels) == 1 or _is_number(top):
        return NOTHING  # one label is a name of the guest's network; a number last makes an address
    return None if all(map(_is_hostname, labels)) else NOTHING


def _is_number(label: bytes) -> bool:
    """Return whether a last label makes an address of a name for inet_aton(3), by which a proxy may look it up.

    127.0x1 is 127.0.0.1 to it, and to the URL Standard.
    """
    return label.isdigit() or (label[:2] == b"0x" and _HEX.issuperset(label[2:]))


def is_reverse(labels: Labels) -> bool:
    """Return whether a name is in the zones that addresses are asked for in (RFC 1035 3.5, RFC 3596 2.5)."""
    return labels[-2:] in REVERSE


def is_public(address: bytes) -> bool:
    """Return whether an address's name may be asked for: not one of a private network or the like (RFC 6303)."""
    found = ip_address(address)
    return found.is_global and not found.is_multicast and not is_internal(address)


def is_loopback(address: bytes) -> bool:
    """Return whether an address's name is localhost."""
    return ip_address(address).is_loopback


_HEX: Final = frozenset(b"0123456789abcdef")
_HOSTNAME: Final = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


def _is_hostname(label: bytes) -> bool:
    """Return whether a label can be in a host's name (RFC 1123 2.1), or has an underscore, as some do."""
    return _HOSTNAME.issuperset(label)
