"""Our framings against QEMU's own: a hub in QEMU, without a guest, joins a stream and a datagram link."""

import pytest

from tests.unit.device.helpers import ether, plain, read_all, until
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.spec import open_device

pytestmark = pytest.mark.lab


def hub(lab, stream, dgram):
    """Start QEMU with two netdevs on a hub."""
    return lab.host("qemu").popen(
        *("qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults"),
        *("-netdev", f"stream,id=a,{stream}", "-netdev", "hubport,id=ha,hubid=0,netdev=a"),
        *("-netdev", f"dgram,id=b,{dgram}", "-netdev", "hubport,id=hb,hubid=0,netdev=b"),
    )


@pytest.mark.parametrize("server", [True, False], ids=["we listen", "QEMU listens"])
def test_frames_pass_through_qemu(lab, server):
    path = lab.dir
    spec = f"qemu:unix:{path}/stream" + (",server" if server else "")
    with open_device(spec) as stream, open_device(f"dgram:unix:{path}/qemu,local={path}/ours") as dgram:
        hub(
            lab,
            f"server={'off' if server else 'on'},addr.type=unix,addr.path={path}/stream",
            f"local.type=unix,local.path={path}/qemu,remote.type=unix,remote.path={path}/ours",
        )
        until(lambda: stream.up and dgram.up, stream, dgram)
        for source, target in ((stream, dgram), (dgram, stream)):
            for sizes in ([60, 1514, 14], [9000], [65000]):
                frames = [ether(n, size) for n, size in enumerate(sizes)]
                assert source.write(Batch.of([plain(n, size) for n, size in enumerate(sizes)])) == len(sizes)
                assert read_all(target, len(frames)) == frames
        assert stream.drops == dgram.drops == {}
