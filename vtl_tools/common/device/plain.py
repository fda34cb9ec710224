"""Software offload for links without it: segments super-segments and completes checksums."""

from collections.abc import Iterator

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.vnet import VNET

ETHERNET = 14
_TAGS = (b"\x81\x00", b"\x88\xa8")  # 802.1Q, 802.1ad


class Plain:
    """Turns batches into batches of plain frames that fit the device's MTU, and counts the others."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._scratch: Batch | None = None

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """Yield batches of plain frames, each valid until the next. An already plain batch is passed on."""
        limit = VNET + ETHERNET + self._device.mtu
        for frame in batch:
            if not VNET + ETHERNET <= len(frame) <= limit or frame[0] & vnet.F_NEEDS_CSUM or frame[1]:
                yield from self._rework(batch, limit)
                return
        yield batch

    def _rework(self, batch: Batch, limit: int) -> Iterator[Batch]:
        drops = self._device.drops
        out = self._scratch = self._scratch or Batch()
        out.clear()
        for frame in batch:
            if len(frame) < VNET + ETHERNET:
                drops[Drop.RUNT] += 1
                continue
            try:
                pieces = segment(frame)
            except Malformed:
                drops[Drop.MALFORMED] += 1
                continue
            for piece in pieces:
                if len(piece) > limit and len(piece) > limit + _tag_octets(piece):
                    drops[Drop.TOO_BIG] += 1
                    continue
                if out.count == out.slots:
                    yield out
                    out.clear()
                out.append(piece)
        if out:
            yield out


def _tag_octets(frame: bytearray | memoryview) -> int:
    """Return the octets of up to two VLAN tags, which an MTU does not include."""
    if bytes(frame[VNET + 12 : VNET + 14]) not in _TAGS:
        return 0
    return 8 if bytes(frame[VNET + 16 : VNET + 18]) in _TAGS else 4
