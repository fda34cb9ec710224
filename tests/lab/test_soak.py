"""Ten million frames, and what a service holds of memory stays what it was."""

import re
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from tests.running import bridge
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import NONE

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FRAMES = 10_000_000


def resident_kib(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1])


@pytest.mark.timeout(600)
def test_resident_memory_is_flat_over_ten_million_frames(lab):
    rng = Random(1)
    client, middle, server = (lab.host(name, ipv6=False) for name in ("client", "middle", "server"))
    lab.veth(client, "eth0", middle, "vmnet1")
    lab.veth(server, "eth0", middle, "eth0")
    with client.enter():
        source = PacketDevice("eth0", receive=False)
        source.connect()

    def batch() -> Batch:
        # To nobody, from ever other stations, of all sizes, mostly small ones.
        sizes = [min(int(rng.expovariate(1 / 100)), 1490) for _ in range(64)]
        return Batch.of(NONE + rng.randbytes(12) + b"\x88\xb5" + bytes(size) for size in sizes)

    batches = [batch() for _ in range(200)]
    with closing(source), bridge(lab, middle, "--iface", "vmnet1", "--iface", "eth0") as running:

        def carry(frames: int) -> int:
            """Send until the bridge has carried so many in all; return what it holds."""
            while True:
                for _ in range(50):
                    for each in batches:
                        source.write(each)
                        # A sender that never pauses would only fill the receive buffer.
                if running.status()["links"][1]["tx_frames"] >= frames:
                    return resident_kib(running.process.pid)

        early = carry(FRAMES // 10)
        late = carry(FRAMES)
        assert late - early < 1024, f"{early} KiB after a tenth, {late} KiB after all"
