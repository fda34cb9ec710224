"""The messages of GoBGP 3's interface (package apipb): routes of EVPN in and out.

A path has an NLRI and attributes; each is a google.protobuf.Any, a name and a message. The numbers of fields
are those of GoBGP's api/gobgp.proto and api/attribute.proto.
"""

import hashlib
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.services.vnet.evpn.protobuf import (
    Fields,
    first_int,
    integer,
    octets,
    parse,
    pick,
    pick_all,
    pick_int,
)

SERVICE: Final = "/apipb.GobgpApi/"
_TYPE: Final = "type.googleapis.com/apipb."
_FAMILY: Final = integer(1, 25) + integer(2, 70)  # L2VPN, EVPN
_ROUTE_TARGET: Final = 2  # RFC 4360 section 4
_VXLAN: Final = 8  # RFC 8365 section 11
_INGRESS_REPLICATION: Final = 6  # RFC 6514 section 5
_RD_MAX: Final = 64
_KINDS: Final = ("EVPNMACIPAdvertisementRoute", "EVPNInclusiveMulticastEthernetTagRoute")
"""Routes to a station, and to a VTEP that takes frames for all."""


class EvpnRoute(NamedTuple):
    """A route to a station, or with mac b"" to a VTEP that takes frames for all (RFC 7432 section 7).

    rd, ip: what else the NLRI is told apart by. vtep: four octets, or 16. targets: "AS:NUMBER".
    """

    mac: bytes
    rd: str
    ip: str
    vtep: bytes
    vni: int
    sequence: int
    targets: frozenset[str]
    is_withdrawn: bool


@dataclass(frozen=True, slots=True)
class OwnNetwork:
    """The network that a link is part of. vtep: our address; target: the route target "AS:NUMBER"."""

    vni: int
    vtep: str
    target: str

    @property
    def rd(self) -> str:
        """Return the route distinguisher (RFC 7432 section 7.9): our address, and 16 bits of the VNI.

        There is room for an address of IPv4. One of IPv6 is hashed.
        """
        own = self.vtep
        if ":" in own:
            octets_ = hashlib.sha256(ipaddress.IPv6Address(own).packed).digest()[:4]
            own = str(ipaddress.IPv4Address(octets_))
        return f"{own}:{self.vni & 0xFFFF}"


# --- out


def _any(name: str, message: bytes) -> bytes:
    return octets(1, f"{_TYPE}{name}".encode()) + octets(2, message)


def path(network: OwnNetwork, mac: bytes, sequence: int, *, withdraw: bool = False) -> bytes:
    """Return the path of an own station; with mac b"" that of our VTEP."""
    admin, _, assigned = network.rd.partition(":")
    rd = octets(1, _any("RouteDistinguisherIPAddress", octets(1, admin.encode()) + integer(2, int(assigned))))
    vtep = network.vtep.encode()
    asn, _, number = (network.target or "0:0").partition(":")  # a withdrawal needs none
    target = integer(1, 1) + integer(2, _ROUTE_TARGET) + integer(3, int(asn)) + integer(4, int(number))
    communities = [_any("TwoOctetAsSpecificExtended", target)]
    communities.append(_any("EncapExtended", integer(1, _VXLAN)))
    if mac:
        label = octets(6, integer(0, network.vni)[1:])  # packed
        nlri = _any(
            _KINDS[0],
            rd + octets(2, octets(2, bytes(9))) + octets(4, mac.hex(":").encode())
            + label,
        )  # fmt: skip
        if sequence:  # RFC 7432 section 15
            communities.append(_any("MacMobilityExtended", integer(2, sequence)))
    else:
        nlri = _any(_KINDS[1], rd + octets(3, vtep))
    reach = octets(1, _FAMILY) + octets(2, vtep) + octets(3, nlri)
    attributes = [
        _any("OriginAttribute", integer(1, 0)),
        _any("MpReachNLRIAttribute", reach),
        _any("ExtendedCommunitiesAttribute", b"".join(octets(1, each) for each in communities)),
    ]
    if not mac:
        address = ipaddress.ip_address(network.vtep).packed
        tunnel = integer(2, _INGRESS_REPLICATION) + integer(3, network.vni) + octets(4, address)
        attributes.append(_any("PmsiTunnelAttribute", tunnel))
    told = octets(1, nlri) + b"".join(octets(2, each) for each in attributes)
    return told + integer(5, int(withdraw)) + octets(9, _FAMILY)


def add_paths(paths: list[bytes]) -> bytes:
    """Return an AddPathStreamRequest."""
    return b"".join(octets(3, each) for each in paths)


WATCH: Final = octets(2, octets(1, integer(1, 0) + integer(2, 1)))
"""A WatchEventRequest: best paths, those that are there already first."""


LIST: Final = octets(3, _FAMILY)
"""A ListPathRequest: all routes of EVPN."""


# --- in


def asn_of(answer: memoryview) -> int:
    """Return the AS of a GetBgpResponse; 0: BGP does not run. Raises Malformed."""
    return pick_int(parse(pick(parse(answer), 1)), 1)


def paths_of(event: memoryview) -> Iterator[memoryview]:
    """Yield the paths of a WatchEventResponse. Raises Malformed."""
    yield from pick_all(pick(parse(event), 3), 2)


def own_macs(answer: memoryview, network: OwnNetwork) -> Iterator[bytes]:
    """Yield the MAC of each own route in a ListPathResponse; b"" is that of the VTEP. Raises Malformed."""
    for told in pick_all(pick(parse(answer), 1), 2):
        name, content = _named(pick(parse(told), 1))
        nlri = parse(content)
        if name in _KINDS and _rd(pick(nlri, 1)) == network.rd:
            yield _mac(pick(nlri, 4)) if name == _KINDS[0] else b""


def read_route(told: memoryview) -> EvpnRoute | None:
    """Return the route of a path, or None if it is none of these two kinds. Raises Malformed."""
    path = parse(told)
    name, content = _named(pick(path, 1))
    nlri = parse(content)
    if name == _KINDS[0]:
        mac, ip = _mac(pick(nlri, 4)), _text(pick(nlri, 5))
        tag, vni = pick_int(nlri, 3), _label(nlri)
    elif name == _KINDS[1]:
        mac, ip, tag, vni = b"", _text(pick(nlri, 3)), pick_int(nlri, 2), -1
    else:
        return None
    if tag:  # of a VLAN-aware bundle (RFC 7432 section 6.3), which we are no part of
        return None
    vtep, sequence, targets = b"", 0, set()
    for attribute in path.get(2, ()):
        name, content = _named(attribute)
        if name == "MpReachNLRIAttribute":
            vtep = _address(_text(pick(parse(content), 2)))
        elif name == "PmsiTunnelAttribute":
            tunnel = parse(content)
            if pick_int(tunnel, 2) != _INGRESS_REPLICATION:
                return None
            vni = pick_int(tunnel, 3)
        elif name == "ExtendedCommunitiesAttribute":
            for each in pick_all(content, 1):
                name, content = _named(each)
                if name == "MacMobilityExtended":
                    sequence = pick_int(parse(content), 2) & 0xFFFFFFFF
                elif name.endswith("AsSpecificExtended"):
                    community = parse(content)
                    if pick_int(community, 2) == _ROUTE_TARGET:
                        targets.add(f"{pick_int(community, 3)}:{pick_int(community, 4)}")
    withdrawn = bool(pick_int(path, 5))
    if not withdrawn and not vtep:
        return None
    return EvpnRoute(mac, _rd(pick(nlri, 1)), ip, vtep, vni, sequence, frozenset(targets), withdrawn)


def _named(message: int | memoryview) -> tuple[str, memoryview]:
    if isinstance(message, int):
        raise Malformed("gobgp.any")
    content = parse(message)
    return _text(pick(content, 1)).removeprefix(_TYPE), pick(content, 2)


def _text(value: memoryview) -> str:
    if len(value) > 256:
        raise Malformed("gobgp.text")
    return bytes(value).decode("ascii", "replace")


def _mac(value: memoryview) -> bytes:
    try:
        mac = bytes.fromhex(bytes(value[:32]).replace(b":", b"").decode())
    except ValueError:
        raise Malformed("gobgp.mac") from None
    if len(mac) != 6 or mac[0] & 1 or not any(mac):
        raise Malformed("gobgp.mac")
    return mac


def _address(text: str) -> bytes:
    """Return the address of a host; b"": it is none."""
    try:
        address = ipaddress.ip_address(text).packed
    except ValueError:
        return b""
    return address if is_single_host(address) else b""


def _rd(value: memoryview) -> str:
    name, octets_ = _named(value)
    content = parse(octets_)
    if name == "RouteDistinguisherIPAddress":
        return f"{_text(pick(content, 1))[:_RD_MAX]}:{pick_int(content, 2)}"
    return f"{pick_int(content, 1)}:{pick_int(content, 2)}"


def _label(nlri: Fields) -> int:
    """Return the first label: packed, as a compiler of Protocol Buffers writes numbers that repeat."""
    for value in nlri.get(6, ()):
        return value if isinstance(value, int) else first_int(value)
    return -1
