"""Packets between two subnets of one overlay: which detour is told of."""

from collections.abc import Callable

import pytest

from vtl_tools.common.packet.address import ip
from vtl_tools.services.vnet.adapt import BUSY_TICKS
from vtl_tools.services.vnet.detours import Detours
from vtl_tools.services.vnet.fields import FrameFields

VM1, VM2, ROUTER = (bytes.fromhex(f"02000000000{n}") for n in (1, 2, 9))
ALL = b"\xff" * 6
PACKET = FrameFields(ROUTER, VM1, 0, 6, ip("10.1.0.5"), ip("10.2.0.5"))
ASKS = FrameFields(ALL, VM2, 0, -1, ip("10.2.0.5"), ip("10.2.0.1"))


def told(packet: FrameFields, heard: FrameFields = ASKS, mbit: float = 8.0, known: bytes = VM2) -> list[str]:
    is_station: Callable[[bytes], bool] = known.__eq__
    detours, found = Detours(is_station), []
    detours.note("vmnet2", heard, 42)
    for now in range(1, 60):
        detours.note("vmnet1", packet, round(mbit * 1e6 / 8))
        found += [why for _, why in detours.tick(float(now))]
    return found


def test_packets_to_a_station_of_the_overlay_by_a_router_are_told_of_once_with_the_command() -> None:
    (why,) = told(PACKET)
    assert "10.1.0.5 sends 8.0 Mbit/s to 10.2.0.5 by a router" in why
    assert "vtl-subnet --iface vmnet1 " in why
    assert "--peer 10.2.0.5=02:00:00:00:00:02" in why


@pytest.mark.parametrize(
    ("packet", "heard", "mbit", "known"),
    [
        (PACKET._replace(dst=VM2), ASKS, 8.0, VM2),
        (PACKET._replace(destination=ip("192.0.2.7")), ASKS, 8.0, VM2),
        (PACKET._replace(dst=ALL), ASKS, 8.0, VM2),
        (PACKET._replace(vlan=7), ASKS, 8.0, VM2),
        (PACKET, ASKS._replace(source=bytes(4)), 8.0, VM2),
        (PACKET, ASKS, 0.5, VM2),
        (PACKET, ASKS, 8.0, VM1),
    ],
)
def test_no_other_packets_are(packet: FrameFields, heard: FrameFields, mbit: float, known: bytes) -> None:
    assert not told(packet, heard, mbit, known)


def test_a_burst_is_not_told_of_and_addresses_are_bounded() -> None:
    detours = Detours(lambda mac: True)
    for n in range(5000):
        detours.note("vmnet1", ASKS._replace(source=b"\x0a" + n.to_bytes(3)), 42)
        detours.note("vmnet1", PACKET._replace(destination=b"\x0a" + n.to_bytes(3)), 10_000_000)
    assert len(detours._owners) <= 1024
    assert len(detours._packets) <= 1024
    assert not detours.tick(float(BUSY_TICKS))
