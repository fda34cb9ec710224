"""The TCP endpoint and a real kernel over a wire that loses, reorders, doubles and damages segments."""

import time
from random import Random

import pytest
from test_tcp_kernel import HOSTS, OUR_MAC, THEIR_MAC, Wire, active, exchange, passive

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.fault import Fault
from vtl_tools.common.packet import address
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.tcp.state import Ended, State

pytestmark = pytest.mark.lab

FAULTS = {
    "perfect": ({}, 4_000_000),
    "loss-1%": ({"loss": 0.01}, 3_000_000),
    "loss-5%": ({"loss": 0.05}, 500_000),
    "loss-20%": ({"loss": 0.2}, 40_000),
    "reordered": ({"reorder": 0.05}, 2_000_000),
    "doubled": ({"duplicate": 0.1}, 2_000_000),
    "damaged": ({"corrupt": 0.02}, 1_000_000),
    "everything": ({"loss": 0.02, "reorder": 0.05, "duplicate": 0.05, "corrupt": 0.02}, 1_000_000),
}
SILENT = "tx off rx off tso off gso off gro off"


class FaultyWire(Wire):
    """Faults fall on segments as on a real wire: neither end leaves cutting or summing to the other."""

    def turn(self):
        now, end = time.monotonic(), self.endpoint
        for frame in self.device.read():
            end.receive(frame, now)
        if (due := end.deadline()) is not None and due <= now:
            end.wake(now)
        frames = [piece for frame in end.transmit(now) for piece in segment(frame)]
        for at in range(0, len(frames), 64):
            self.device.write(Batch.of(frames[at : at + 64]))


@pytest.fixture
def faulty(lab):
    """A function that joins an endpoint to a kernel by a wire with faults."""
    devices = []

    def join(version=4, seed=1, **faults):
        host, us = lab.host("host"), lab.host("us", ipv6=False)
        lab.veth(host, "eth0", us, "vm", left_mac=THEIR_MAC)
        host.addr("eth0", "10.0.0.2/24", "fd00::2/64")
        for end, name in (host, "eth0"), (us, "vm"):
            end.run("ethtool", "-K", name, *SILENT.split())
        mac = address.format_mac(OUR_MAC)  # known, as faults on ARP are not what is tested
        host.run(
            "ip", "neigh", "replace", HOSTS[version][0], "lladdr", mac, "dev", "eth0", "nud", "permanent"
        )
        device = Fault(PacketDevice("vm"), rng=Random(seed), **faults)
        with us.enter():
            device.connect()
        devices.append(device)
        return FaultyWire(device, host, version)

    yield join
    for device in devices:
        device.close()


@pytest.mark.parametrize("opening", [active, passive])
@pytest.mark.parametrize("name", FAULTS)
def test_every_octet_arrives_both_ways_whatever_the_wire_does(faulty, name, opening):
    faults, octets = FAULTS[name]
    wire = faulty(version=4 if opening is active else 6, seed=name + opening.__name__, **faults)
    with opening(wire) as sock:
        ours, theirs = Random(1).randbytes(octets), Random(2).randbytes(octets)
        assert exchange(wire, sock, ours, b"")[1] == ours, "upload"
        assert exchange(wire, sock, b"", theirs)[0] == theirs, "download"
        drops = wire.endpoint.info().drops
        assert bool(drops.get("checksum")) == ("corrupt" in faults)
        wire.endpoint.close()
    wire.until(lambda: wire.endpoint.state in (State.TIME_WAIT, State.CLOSED), "the end")
    assert wire.endpoint.ended in (None, Ended.CLOSED)
