"""Overhearing an interface, and speaking on it in the VM's place, with real kernels around it."""

import select
import socket
import struct
import time
from contextlib import ExitStack
from threading import Thread

import pytest

from lab.wait import until
from tests.unit.device.helpers import octets, plain, tcp
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.interface_sides import NetworkSide, VMSide
from vtl_tools.common.device.ring import SNAP, Ring
from vtl_tools.common.errors import DeviceError
from vtl_tools.common.host.guard import MARK
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import FIN, SYN
from vtl_tools.common.packet.vnet import VNET

pytestmark = pytest.mark.lab


@pytest.fixture
def scene(lab):
    """vm (10.9.0.1) - vnet0 [host, 10.9.0.2]."""
    vm, host = lab.host("vm"), lab.host("host")
    lab.veth(vm, "eth0", host, "vnet0")
    vm.addr("eth0", "10.9.0.1/24", "fd09::1/64")
    host.addr("vnet0", "10.9.0.2/24", "fd09::2/64")
    vm.run("ping", "-c1", "10.9.0.2")
    vm.run("ping", "-c1", "fd09::2")
    return vm, host


class Heard:
    """What a ring tells: which octets, and from whom."""

    def __init__(self, host, name="vnet0"):
        self.frames, self.host = [], host
        with host.enter():
            self.ring = Ring(name, self.take)

    def take(self, frame, from_vm, now):
        self.frames.append((bytes(frame), from_vm))

    def poll(self, seconds=0.1):
        """Hear what comes until nothing does for so long."""
        with self.host.enter():
            while select.select([self.ring], [], [], seconds)[0]:
                while self.ring.poll(time.monotonic()):
                    pass
        return self.frames


def exchange(vm, host, size, address="10.9.0.2"):
    """A connection of the VM, which sends so many octets, and one gets an answer of as many."""
    with host.call(lambda: socket.create_server((address, 0), family=_family(address))) as listener:
        near = vm.call(lambda: socket.create_connection((address, listener.getsockname()[1]), 5))
        with near, listener.accept()[0] as far:
            for source, sink in (near, far), (far, near):
                sending = Thread(target=source.sendall, args=(bytes(size),))
                sending.start()
                with sink.makefile("rb") as come:
                    assert len(come.read(size)) == size
                sending.join()
            return near.getsockname()[1]


def _family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.mark.parametrize("address", ["10.9.0.2", "fd09::2"])
def test_a_ring_hears_tcp_both_ways_and_nothing_else(scene, address):
    vm, host = scene
    heard = Heard(host)
    vm.run("ping", "-c1", address)
    size = 1_000_000
    port = exchange(vm, host, size, address)
    said = {True: 0, False: 0}
    flags = {True: 0, False: 0}
    for frame, from_vm in heard.poll():
        assert len(frame) <= VNET + SNAP
        at = VNET + (54 if ":" in address else 34)
        sport, dport = struct.unpack_from("!HH", frame, at)
        assert (sport if from_vm else dport) == port
        total = struct.unpack_from("!H", frame, VNET + (18 if ":" in address else 16))[0]
        header = frame[at + 12] >> 4 << 2
        said[from_vm] += total - header - (0 if ":" in address else 20)
        flags[from_vm] |= frame[at + 13]
    assert said == {True: size, False: size}
    assert all(f & (SYN | FIN) == SYN | FIN for f in flags.values())
    assert heard.ring.status()["missed"] == 0
    heard.ring.close()
    heard.ring.close()


def test_a_ring_that_samples_hears_all_that_opens_or_closes(scene):
    vm, host = scene
    heard = Heard(host)
    heard.ring.sample(1_000_000)
    exchange(vm, host, 3_000_000)
    flags = [Packet.at(bytearray(frame)).tcp.flags for frame, _ in heard.poll()]
    assert sum(bool(f & SYN) for f in flags) == 2
    assert sum(bool(f & FIN) for f in flags) == 2
    assert len(flags) < 8
    heard.ring.close()


def test_a_ring_hears_within_a_vlan_tag(scene):
    vm, host = scene
    heard = Heard(host)
    tagged = bytearray(tcp(b"x" * 50))
    tagged[:VNET] = bytes(VNET)
    tagged[VNET + 12 : VNET + 12] = b"\x81\x00\x00\x07"
    with vm.enter(), PacketDevice("eth0") as device:
        device.write(Batch.of([tagged, tcp(b"y" * 50, flags=0)]))
    frames = heard.poll()
    assert [(frame[VNET:], from_vm) for frame, from_vm in frames] == [
        (bytes(tagged[VNET:]), True),
        (tcp(b"y" * 50, flags=0)[VNET:], True),
    ]
    heard.ring.close()


def test_what_an_inline_service_forwards_is_heard_and_what_we_inject_is_not(scene):
    _, host = scene
    heard = Heard(host)
    theirs, ours = tcp(b"x" * 50, flags=0), tcp(b"y" * 50, flags=0)
    with (
        host.enter(),
        PacketDevice("vnet0", mark=MARK) as inline,
        VMSide("vnet0", mark=MARK) as inner,
        NetworkSide("vnet0", mark=MARK) as outer,
    ):
        for side in inner, outer:
            side.listen(True)
        assert outer.write(Batch.of([ours])) == 1
        assert octets(inline.read()) == [ours[VNET:]]
        assert inline.write(Batch.of([theirs])) == 1
        assert octets(outer.read()) == [theirs[VNET:]]
        assert not octets(inner.read())
    assert [(frame[VNET:], from_vm) for frame, from_vm in heard.poll()] == [(theirs[VNET:], False)]
    heard.ring.close()


def test_a_ring_survives_that_its_interface_is_made_anew(lab, scene):
    vm, host = scene
    heard = Heard(host)
    host.run("ip", "link", "del", "vnet0")
    heard.poll()
    lab.veth(vm, "eth0", host, "vnet0")
    vm.addr("eth0", "10.9.0.1/24")
    host.addr("vnet0", "10.9.0.2/24")

    def hears():
        heard.poll(0.3)  # it looks every 0.25 s
        exchange(vm, host, 10)
        return heard.poll()

    until(hears, "the ring hears the new interface")
    heard.ring.close()


def test_a_missing_interface_is_one_line(lab):
    host = lab.host("host")
    with host.enter(), pytest.raises(DeviceError, match="no such network interface"):
        Ring("vnet0", print)


def test_both_sides_hear_only_when_asked_and_only_their_own(scene):
    vm, host = scene
    with host.enter(), VMSide("vnet0", mark=MARK) as inner, NetworkSide("vnet0", mark=MARK) as outer:
        exchange(vm, host, 10)
        assert not octets(inner.read()) + octets(outer.read())
        for side in inner, outer:
            side.listen(True)
        vm.run("ping", "-c1", "10.9.0.2")
        port = exchange(vm, host, 10)
        for side, column in (inner, 0), (outer, 1):
            ports = [
                struct.unpack_from("!HH", frame, 34)[column]
                for frame in drained(side)
                if frame[12:14] == b"\x08\x00"
            ]
            assert len(ports) >= 4
            assert set(ports) == {port}
        for side in inner, outer:
            side.listen(False)
        exchange(vm, host, 10)
        assert not octets(inner.read()) + octets(outer.read())


def drained(device):
    frames = []
    while batch := device.read():
        frames += octets(batch)
    return frames


@pytest.mark.parametrize("kind", ["veth", "tap", "bridge"])
def test_what_is_written_to_the_network_enters_as_if_the_vm_had_sent_it(lab, kind):
    host, far = lab.host("host"), lab.host("far")
    if kind == "tap":
        host.tap("vnet0")
        host.run("ip", "link", "set", "vnet0", "up")
    else:
        lab.veth(lab.host("vm"), "eth0", host, "vnet0")
    where = host, "vnet0"
    if kind == "bridge":
        lab.veth(far, "eth0", host, "port")
        lab.bridge(host, "br0", ["vnet0", "port"])
        where = far, "eth0"
    frames = [plain(n, 200) for n in range(3)]
    with ExitStack() as stack:
        with host.enter():
            outer = stack.enter_context(NetworkSide("vnet0", mark=MARK))
        with where[0].enter():
            hearing = stack.enter_context(PacketDevice(where[1]))
        got = set()

        def arrived():
            with host.enter():
                outer.write(Batch.of(frames))
            got.update(drained(hearing))
            return set(octets(Batch.of(frames))) <= got

        until(arrived, "the frames arrive")
        assert outer.tx_frames >= 3


def test_a_frame_that_cannot_be_is_counted(scene):
    _, host = scene
    with host.enter(), NetworkSide("vnet0", mark=MARK) as outer:
        assert outer.write(Batch.of([plain(1, 14 + 1501)])) == 0
        assert outer.drops == {Drop.TOO_BIG: 1}
        host.run("ip", "link", "set", "vnet0", "down")
        assert outer.write(Batch.of([plain(1)])) == 0
        assert sum(outer.drops.values()) == 2
