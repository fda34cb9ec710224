"""The fields of a frame by which vtl-vnet chooses its link. Foreign octets: nothing is raised for them."""

from typing import Final, NamedTuple

from vtl_tools.common.packet.vnet import VNET

_TAGS: Final = (0x8100, 0x88A8)
_TAGS_MAX: Final = 4
_EXTENSIONS_MAX: Final = 16
_ARP, _IPV4, _IPV6 = 0x0806, 0x0800, 0x86DD
_FRAGMENT, _AH = 44, 51
_EXTENSIONS: Final = frozenset((0, 43, _FRAGMENT, _AH, 60))
_KIND: Final = VNET + 12
FIXED: Final = VNET + 14
"""Octets that every frame has."""
UNKNOWN: Final = -2
"""The protocol of a packet that does not show it: it may be any."""


class FrameFields(NamedTuple):
    """Fields of a frame. vlan: 0 without a tag. protocol: -1 where there is none; of IPv6 that behind
    all extension headers, or UNKNOWN.

    source, destination: addresses of IP or of ARP; b"" without any.
    """

    dst: bytes
    src: bytes
    vlan: int = 0
    protocol: int = -1
    source: bytes = b""
    destination: bytes = b""

    @property
    def is_group(self) -> bool:
        """Whether it is for a group: a broadcast or a multicast."""
        return bool(self.dst[0] & 1)


def key_of(frame: memoryview) -> bytes | FrameFields | None:
    """Return a key of a frame of FIXED octets at least; frames that share it share their fields.

    None: it has none.
    """
    if frame[_KIND] == _IPV4 >> 8 and not frame[_KIND + 1] and len(frame) >= VNET + 34:
        return bytes(frame[VNET:FIXED]) + bytes((frame[VNET + 23],)) + bytes(frame[VNET + 26 : VNET + 34])
    if frame[_KIND] == _IPV6 >> 8 and frame[_KIND + 1] == _IPV6 & 0xFF and len(frame) >= VNET + 54:
        protocol = _last_protocol(frame, FIXED).to_bytes(2, signed=True)
        return bytes(frame[VNET:FIXED]) + protocol + bytes(frame[VNET + 22 : VNET + 54])
    return fields_of(frame)  # octets alone could be those of a longer frame's key


def _last_protocol(frame: bytes | memoryview, at: int) -> int:
    """Return the protocol behind an IPv6 header and its extension headers (RFC 8200 section 4).

    UNKNOWN: there are too many of them, or the last is not here, as in a later fragment.
    """
    protocol, at = frame[at + 6], at + 40
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in _EXTENSIONS:
            return protocol
        if at + 8 > len(frame):
            break
        fragment = protocol == _FRAGMENT
        if fragment and int.from_bytes(frame[at + 2 : at + 4]) >> 3:
            return UNKNOWN if frame[at] in _EXTENSIONS else frame[at]  # no header follows
        octets = 8 if fragment else (frame[at + 1] + 2) * 4 if protocol == _AH else (frame[at + 1] + 1) * 8
        protocol, at = frame[at], at + octets
    return UNKNOWN


def fields_of(frame: bytes | memoryview) -> FrameFields | None:
    """Return the fields of a frame of FIXED octets at least. Those that it is too short for are absent.

    None: it has more tags than can be looked behind. Linux looks behind any number of tags of VLAN 0.
    """
    dst, src = bytes(frame[VNET : VNET + 6]), bytes(frame[VNET + 6 : _KIND])
    at, vlan = _KIND, 0
    kind = int.from_bytes(frame[at : at + 2])
    for _ in range(_TAGS_MAX):
        if kind not in _TAGS or len(frame) < at + 6:
            break
        vlan = vlan or int.from_bytes(frame[at + 2 : at + 4]) & 0xFFF
        at += 4
        kind = int.from_bytes(frame[at : at + 2])
    if kind in _TAGS:
        return None
    at += 2
    size = len(frame) - at
    if kind == _IPV4 and size >= 20:
        addresses = bytes(frame[at + 12 : at + 20])
        return FrameFields(dst, src, vlan, frame[at + 9], addresses[:4], addresses[4:])
    if kind == _IPV6 and size >= 40:
        addresses = bytes(frame[at + 8 : at + 40])
        return FrameFields(dst, src, vlan, _last_protocol(frame, at), addresses[:16], addresses[16:])
    if kind == _ARP and size >= 28:
        return FrameFields(
            dst, src, vlan, -1, bytes(frame[at + 14 : at + 18]), bytes(frame[at + 24 : at + 28])
        )
    return FrameFields(dst, src, vlan)
