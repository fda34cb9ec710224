"""Our framings against QEMU's own: a hub in QEMU, without a guest, joins a stream and a datagram link."""

import select

import pytest

from tests.unit.device.helpers import ether, plain, read_all, until
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.spec import open_device
from vtl_tools.services.freeze.qmp import Monitor

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


def test_a_monitor_is_told_that_a_machine_stops_and_goes_on(lab):
    ours, theirs = (lab.dir / name for name in ("ours.qmp", "theirs.qmp"))
    told = []
    monitor = Monitor(str(ours), lambda name, data, now: told.append(name))  # waits for QEMU
    lab.host("qemu").popen(
        *("qemu-system-x86_64", "-machine", "none", "-display", "none", "-nodefaults"),
        *("-qmp", f"unix:{ours},server=on,wait=off", "-qmp", f"unix:{theirs},server=on,wait=off"),
    )

    def wait_for(*names):
        while told != list(names):
            assert select.select([monitor], [], [], 10)[0], told
            monitor.poll(0.0)

    wait_for("STATUS")
    operator = Monitor(str(theirs), lambda name, data, now: None)
    while not operator.up:
        assert select.select([operator], [], [], 10)[0]
        operator.poll(0.0)
    operator._ask("stop")
    wait_for("STATUS", "STOP")
    operator._ask("cont")
    wait_for("STATUS", "STOP", "RESUME")
    operator._ask("quit")
    wait_for("STATUS", "STOP", "RESUME", "SHUTDOWN")
    for one in operator, monitor:
        one.close()
