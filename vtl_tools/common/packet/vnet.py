"""The virtio_net_hdr at the start of every frame buffer (virtio 1.2 section 5.1.6).

A *frame* in this project is one contiguous buffer: VNET octets of virtio_net_hdr, then the Ethernet
frame. A link without offload reads and writes a header of zeros.
"""

import struct
from typing import Final

VNET: Final = 10
"""Octets of the header, and so the offset of the Ethernet frame in every frame buffer."""

HEADER: Final = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; native byte order, as in the kernel.

csum_start counts from the first octet of the Ethernet frame; csum_offset from csum_start.
"""

NONE: Final = bytes(VNET)
"""The header of a frame without offload requests."""

F_NEEDS_CSUM: Final = 1
F_DATA_VALID: Final = 2

GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_UDP: Final = 3  # UFO: one large IPv4 datagram to be fragmented; old guests only
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80
