"""The TCP endpoint and a real kernel over a wire that loses, reorders, doubles and damages segments."""

import time
from random import Random

import pytest
from test_tcp_kernel import HOSTS, OUR_MAC, THEIR_MAC, Wire, active, exchange, passive

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.services.wan.path import WanPath
from vtl_tools.services.wan.settings import UNCHANGED, changed

pytestmark = pytest.mark.lab

FAULTS = {
    "perfect": ({}, 4_000_000),
    "loss-1%": ({"loss": "1%"}, 3_000_000),
    "loss-5%": ({"loss": "5%"}, 500_000),
    "loss-20%": ({"loss": "20%"}, 40_000),
    "reordered": ({"reorder": "5%"}, 2_000_000),
    "doubled": ({"duplicate": "10%"}, 2_000_000),
    "damaged": ({"corrupt": "2%"}, 1_000_000),
    "everything": ({"loss": "2%", "reorder": "5%", "duplicate": "5%", "corrupt": "2%"}, 1_000_000),
}
MEMORY = 64 << 20
SILENT = "tx off rx off tso off gso off gro off"


class FaultyWire(Wire):
    """The paths of vtl-wan are between the endpoint and its link.

    Faults fall on segments as on a real wire: neither end leaves cutting or summing to the other.
    """

    def __init__(self, device, host, version, seed, changes):
        super().__init__(device, host, version)
        both = zip(changed((UNCHANGED, UNCHANGED), changes), ("there", "back"), strict=True)
        self.there, self.back = (WanPath(path, Random(seed + way), MEMORY) for path, way in both)

    def turn(self):
        now, end = time.monotonic(), self.endpoint
        arrived = self.device.read()
        self.back.push(arrived, arrived.count, arrived.octets, now)
        while frames := self.back.pop(now):
            for frame in frames:
                end.receive(bytearray(frame), now)
        if (due := end.deadline()) is not None and due <= now:
            end.wake(now)
        for frame in end.transmit(now):
            self.there.push([memoryview(frame)], 1, len(frame) - VNET, now)
        while frames := self.there.pop(now):
            for frame in frames:
                self.device.write(Batch.of([frame]))


@pytest.fixture
def faulty(lab):
    """A function that joins an endpoint to a kernel by a wire with faults."""
    devices = []

    def join(version, seed, faults):
        host, us = lab.host("host"), lab.host("us", ipv6=False)
        lab.veth(host, "eth0", us, "vm", left_mac=THEIR_MAC)
        host.addr("eth0", "10.0.0.2/24", "fd00::2/64")
        for end, name in (host, "eth0"), (us, "vm"):
            end.run("ethtool", "-K", name, *SILENT.split())
        mac = address.format_mac(OUR_MAC)  # known, as faults on ARP are not what is tested
        host.run(
            "ip", "neigh", "replace", HOSTS[version][0], "lladdr", mac, "dev", "eth0", "nud", "permanent"
        )
        device = PacketDevice("vm")
        with us.enter():
            device.connect()
        devices.append(device)
        return FaultyWire(device, host, version, seed, faults)

    yield join
    for device in devices:
        device.close()


@pytest.mark.parametrize("opening", [active, passive])
@pytest.mark.parametrize("name", FAULTS)
def test_every_octet_arrives_both_ways_whatever_the_wire_does(faulty, name, opening):
    faults, octets = FAULTS[name]
    wire = faulty(version=4 if opening is active else 6, seed=opening.__name__ + name, faults=faults)
    with opening(wire) as sock:
        ours, theirs = Random(1).randbytes(octets), Random(2).randbytes(octets)
        assert exchange(wire, sock, ours, b"")[1] == ours, "upload"
        assert exchange(wire, sock, b"", theirs)[0] == theirs, "download"
        drops = wire.endpoint.info().drops
        assert bool(drops.get("checksum")) == ("corrupt" in faults)
        assert bool(wire.back.drops["lost"]) == bool(wire.there.drops["lost"]) == ("loss" in faults)
        wire.endpoint.close()
    wire.until(lambda: wire.endpoint.state in (State.TIME_WAIT, State.CLOSED), "the end")
    assert wire.endpoint.ended in (None, Ended.CLOSED)
