"""One valid frame of each kind, for the targets that begin from frames."""

from typing import Final

from tests.unit.packet.test_fuzz import MAC, MACS, PORTS, SEEDS, V4, V6
from vtl_tools.common.packet import build, tcp, vnet

_LARGE: Final = [
    build.tcp(**MACS, **ends, **PORTS, flags=tcp.ACK | tcp.PSH | tcp.FIN, payload=bytes(range(100)),
              options=tcp.encode_options(timestamps=(1, 2)), partial=True, gso_size=30)
    for ends in (V4, V6)
]  # fmt: skip


def _udp_super_segments() -> list[bytes]:
    """What GSO_UDP_L4 and GSO_UDP are, which build makes none of."""
    frames = []
    for ends in V4, V6:
        frame = build.udp(**MACS, **ends, **PORTS, payload=bytes(range(100)), partial=True)
        for kind in vnet.GSO_UDP_L4, vnet.GSO_UDP:
            flags, _, size, _, start, offset = vnet.HEADER.unpack_from(frame)
            vnet.HEADER.pack_into(frame, 0, flags, kind, size, 32, start, offset)
            frames.append(bytes(frame))
    return frames


FRAMES: Final = [*SEEDS, *map(bytes, _LARGE), *_udp_super_segments()]

__all__ = ["FRAMES", "MAC", "MACS", "PORTS", "V4", "V6"]
