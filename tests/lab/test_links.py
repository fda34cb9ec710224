"""Links against the kernel: its VXLAN, its taps and its TCP through them, and libpcap."""

import os
import select
import socket
from contextlib import contextmanager

import pytest

from lab.wait import until as seen
from tests.unit.device.helpers import ether, plain, read_all, until
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.dgram import DgramDevice
from vtl_tools.common.device.libpcap import LibpcapDevice
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.device.tap import TapDevice
from vtl_tools.common.device.vxlan import VxlanDevice
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.vnet import VNET

pytestmark = pytest.mark.lab


@contextmanager
def opened(host, device):
    """The device, opened in a host's network."""
    with host.enter(), device:
        yield device


def carry(left, right, process):
    """Be the bridge between two devices until a process ends; return the octets of the largest frame."""
    largest = 0
    while process.poll() is None:
        for device in select.select([left, right], [], [], 0.05)[0]:
            batch = device.read()
            largest = max([largest, *batch.lengths])
            (right if device is left else left).write(batch)
    out = process.stdout.read()
    assert process.returncode == 0, out
    return largest


def start(host, *command):
    return host.popen(*command, stdout=-1, stderr=-2, text=True)


def transfer(left, right, client, server, address):
    """Send a few megabytes by the kernels' TCP, both ways, through a bridge between two devices."""
    start(server, "iperf3", "-s", "-1", "-D")
    server.run("sh", "-c", "until ss -Hltn sport = :5201 | grep -q .; do :; done")
    return carry(left, right, start(client, "iperf3", "-c", address, "-n", "8M", "--bidir"))


@pytest.fixture
def guest(lab):
    """A host whose only interface is a tap, and the device on the other side of it."""
    host = lab.host("guest")
    with opened(host, TapDevice("eth0")) as tap:
        host.addr("eth0", "192.168.7.1/24", "fd07::1/64")
        yield host, tap


@pytest.mark.parametrize(
    ("ours", "theirs", "mtu"),
    [("10.0.0.1", "10.0.0.2", 1450), ("fd00::1", "fd00::2", 1430)],
    ids=["IPv4", "IPv6"],
)
def test_vxlan_peers_with_the_kernel(lab, guest, ours, theirs, mtu):
    host, tap = guest
    near, far = lab.host("near"), lab.host("far")
    lab.veth(near, "eth0", far, "eth0")
    bits = "/64" if ":" in ours else "/24"
    near.addr("eth0", ours + bits)
    far.addr("eth0", theirs + bits)
    tunnel = ["type", "vxlan", "id", "7", "local", theirs, "remote", ours, "dstport", "4789"]
    far.run("ip", "link", "add", "vx7", "mtu", str(mtu), *tunnel)
    # A veth would pass super-segments within the tunnel, with sums that nobody completes.
    far.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
    far.addr("vx7", "192.168.7.2/24")
    with opened(near, VxlanDevice("vxlan:test", (theirs, 4789), 7, local=ours)) as vxlan:
        assert vxlan.mtu == mtu
        host.run("ip", "link", "set", "eth0", "mtu", str(mtu))
        size = str(mtu - 28)
        carry(tap, vxlan, start(host, "ping", "-c2", "-i0.1", "-W9", "-Mdo", "-s", size, "192.168.7.2"))
        assert vxlan.drops == {}
        transfer(tap, vxlan, host, far, "192.168.7.2")
        assert set(vxlan.drops) <= {Drop.QUEUE_FULL}
        # One octet more than the tunnel takes is counted, not fragmented.
        assert vxlan.write(Batch.of([plain(1, 14 + mtu), plain(2, 14 + mtu + 1)])) == 1
        assert vxlan.drops[Drop.TOO_BIG] == 1


def test_vxlan_without_a_route_is_down_until_a_frame_comes(lab):
    near, far = lab.host("near"), lab.host("far", ipv6=False)
    lab.veth(near, "eth0", far, "eth0")
    with opened(near, VxlanDevice("vxlan:test", ("10.0.0.2", 4789), 7)) as vxlan:
        assert vxlan.mtu == 1450
        assert vxlan.write(Batch.of([plain(1), plain(2)])) == 0
        assert vxlan.drops == {Drop.LINK_DOWN: 2}
        assert not vxlan.up
        near.addr("eth0", "10.0.0.1/24")
        far.addr("eth0", "10.0.0.2/24")
        far.run(
            "ip", "link", "add", "vx7", "type", "vxlan", "id", "7", "remote", "10.0.0.1", "dstport", "4789"
        )
        far.addr("vx7", "192.168.7.2/24")
        ping = start(far, "ping", "-c1", "-W1", "192.168.7.9")  # which asks by ARP who that is
        until(lambda: vxlan.up, vxlan)
        ping.wait()
        assert vxlan.write(Batch.of([plain(1)])) == 1


def test_a_port_that_the_kernel_s_vxlan_holds_is_an_error(lab):
    host = lab.host("host")
    host.run("ip", "link", "add", "vx7", "type", "vxlan", "id", "7", "remote", "10.0.0.1", "dstport", "4789")
    host.addr("vx7", "192.168.7.2/24")
    with pytest.raises(DeviceError, match="Address already in use"):
        with opened(host, VxlanDevice("vxlan:test", ("10.0.0.2", 4789), 7)):
            pass


@pytest.mark.parametrize("address", ["192.168.7.2", "fd07::2"])
def test_the_kernels_tcp_passes_two_taps_in_super_segments(lab, guest, address):
    host, tap = guest
    server = lab.host("server")
    with opened(server, TapDevice("eth0")) as other:
        server.addr("eth0", "192.168.7.2/24", "fd07::2/64")
        assert transfer(tap, other, host, server, address) > 30_000
        for device in tap, other:
            assert set(device.drops) <= {Drop.QUEUE_FULL}


def test_a_tap_and_an_interface_by_af_packet(lab, guest):
    host, tap = guest
    near, server = lab.host("near"), lab.host("server")
    lab.veth(near, "eth0", server, "eth0")
    server.addr("eth0", "192.168.7.2/24")
    with opened(near, PacketDevice("eth0")) as packet:
        assert transfer(tap, packet, host, server, "192.168.7.2") > 30_000


def test_frames_of_one_piece_and_of_several_stay_in_order_and_are_counted(lab):
    left, right = (lab.host(name, ipv6=False) for name in ("left", "right"))
    lab.veth(left, "eth0", right, "eth0")
    bad = b"\x01\x01\0\0\xe8\x03\xff\xff\xff\xff" + plain(1)[10:]
    with opened(left, PacketDevice("eth0")) as ours, opened(right, PacketDevice("eth0")) as theirs:
        ours.write_pieces([(plain(n),) for n in range(40)])
        ours.write_pieces([(plain(40)[:30], plain(40)[30:])])
        ours.write_pieces([(plain(n),) for n in range(41, 60)])
        ours.write(Batch.of([plain(60)]))
        ours.write_pieces([(plain(61),)] * 8 + [(bad,)] + [(plain(62),)] * 8)
        counted = ours.status()
        assert read_all(theirs, 77) == [ether(n) for n in (*range(61), *[61] * 8, *[62] * 8)]
        assert (counted["tx_frames"], counted["tx_octets"]) == (77, 77 * 60)
        assert counted["drops"] == {"refused": 1}
        left.run("ip", "link", "set", "eth0", "down")
        ours.write_pieces([(plain(63),)] * 10)
        assert ours.status()["drops"] == {"refused": 1, "link-down": 10}


def test_frames_in_pieces_leave_together_and_in_order_and_are_counted(lab):
    def pieces(n):
        view = memoryview(bytearray(plain(n)))
        return bytes(view[:24]), view[24:40], view[40:]

    left, right = (lab.host(name, ipv6=False) for name in ("left", "right"))
    lab.veth(left, "eth0", right, "eth0")
    for end in left, right:  # until then the kernel drops what is sent
        seen(lambda end=end: "state UP" in end.run("ip", "link", "show", "eth0").stdout, "a cable")
    bad = b"\x01\x01\0\0\xe8\x03\xff\xff\xff\xff" + plain(1)[10:]
    with opened(left, PacketDevice("eth0")) as ours, opened(right, PacketDevice("eth0")) as theirs:
        assert ours.write_pieces([pieces(n) for n in range(20)]) == 20
        few = [pieces(20), (bad,), pieces(21), (plain(22)[:30], plain(22)[30:])]
        assert ours.write_pieces(few) == 3
        assert read_all(theirs, 23) == [ether(n) for n in range(23)]
        counted = ours.status()
        assert (counted["tx_frames"], counted["tx_octets"]) == (23, 23 * 60)
        assert counted["drops"] == {"refused": 1}
        assert ours.write_pieces([pieces(23), (bad,), pieces(24)]) == 2
        assert read_all(theirs, 2) == [ether(23), ether(24)]
        left.run("ip", "link", "set", "eth0", "down")
        assert ours.write_pieces([pieces(25)] * 10) == 0
        assert ours.status()["drops"] == {"refused": 2, "link-down": 10}


def test_a_tap_that_is_deleted_is_made_anew(lab):
    host = lab.host("host")
    with opened(host, TapDevice("vtl0")) as tap:
        host.run("ip", "link", "del", "vtl0")
        until(lambda: not tap.up, tap)
        assert tap.write(Batch.of([plain(1)])) == 0
        assert tap.drops == {Drop.LINK_DOWN: 1}
        until(lambda: tap.up, tap)
        host.addr("vtl0", "192.168.7.1/24")
        assert tap.write(Batch.of([plain(1)])) == 1
        assert tap.losses == 1
    assert "vtl0" not in host.run("ip", "-br", "link").stdout


def test_a_tap_that_is_set_down_is_down_until_it_is_up(lab):
    host = lab.host("host")
    with opened(host, TapDevice("vtl0")) as tap:
        host.run("ip", "link", "set", "vtl0", "down")
        assert tap.write(Batch.of([plain(1), plain(2)])) == 0
        assert tap.drops == {Drop.LINK_DOWN: 2}
        assert not tap.up
        host.run("ip", "link", "set", "vtl0", "up")
        until(lambda: tap.up, tap)
        assert tap.write(Batch.of([plain(1)])) == 1


def test_a_tap_that_exists_is_attached_to_and_stays(lab):
    host = lab.host("host")
    host.tap("vtl0")
    with opened(host, TapDevice("vtl0")) as tap:
        assert tap.up
        with pytest.raises(DeviceError, match="busy; end the process that uses it"):
            with TapDevice("vtl0"):
                pass
    assert "vtl0" in host.run("ip", "-br", "link").stdout


def test_what_is_no_tap_is_an_error(lab):
    host = lab.host("host")
    with pytest.raises(DeviceError, match="it must be a tap"):
        with opened(host, TapDevice("lo")):
            pass


def test_frames_that_a_tap_refuses_are_counted(lab):
    host = lab.host("host")
    with opened(host, TapDevice("vtl0")) as tap:
        bad = b"\x01\x01\0\0\xe8\x03\xff\xff\xff\xff" + plain(1)[10:]
        assert tap.write(Batch.of([plain(1), bad, plain(2, 2000), plain(3)])) == 2
        assert tap.drops == {Drop.REFUSED: 1, Drop.TOO_BIG: 1}
        assert tap.tx_octets == 120


@pytest.mark.parametrize("spec", ["tap:lo1", "lo", "libpcap:lo"])
def test_without_privilege_the_error_says_so(lab, spec):
    with opened(lab.host("host"), open_device(spec)):
        pass  # all is imported then, which another user may not be able to
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionNeededError, match=r"not permitted .*; run as root"):
            with open_device(spec):
                pass
    finally:
        os.seteuid(0)


@pytest.fixture
def captured(lab):
    """A host behind a cable without offloads, and libpcap at the other end of it."""
    near, far = lab.host("near", ipv6=False), lab.host("far", ipv6=False)
    lab.veth(near, "eth0", far, "eth0")
    for host in near, far:
        host.run("ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off")
    far.addr("eth0", "192.168.7.2/24")
    with opened(near, LibpcapDevice("eth0")) as device:
        yield near, far, device


def test_libpcap_carries_frames_both_ways(guest, captured):
    host, tap = guest
    _, _, device = captured
    carry(tap, device, start(host, "ping", "-c2", "-i0.1", "-W9", "-s", "1472", "192.168.7.2"))
    assert device.drops == {}
    assert device.rx_frames >= 2


def test_libpcap_survives_its_interface(captured):
    near, far, device = captured
    near.run("ip", "link", "set", "eth0", "down")
    until(lambda: not device.up, device)
    assert device.write(Batch.of([plain(1)])) == 0
    assert device.drops == {Drop.LINK_DOWN: 1}
    near.run("ip", "link", "set", "eth0", "up")
    until(lambda: device.up, device)
    with opened(far, PacketDevice("eth0")) as other:
        other.write(Batch.of([plain(5)]))
        assert read_all(device, 1) == [ether(5)]
        assert device.losses == 1


def test_libpcap_wants_an_interface_that_is_there(lab):
    host = lab.host("host")
    with pytest.raises(DeviceError, match="no such network interface; choose one of lo"):
        with opened(host, LibpcapDevice("eth9")):
            pass


def datagram(number):
    return bytes.fromhex("0800000000000700") + bytes(plain(number))[VNET:]


def test_to_be_taken_for_a_vxlan_peer_of_the_same_link_local_address(lab):
    """Such addresses are of one link each, and eve is on another one."""
    near, far, eve = lab.host("near"), lab.host("far"), lab.host("eve")
    lab.veth(near, "eth0", far, "eth0")
    lab.veth(near, "eth1", eve, "eth0")
    for host in far, eve:
        host.run("ip", "addr", "add", "fe80::99/64", "dev", "eth0", "nodad")
    for name in "eth0", "eth1":
        near.run("ip", "addr", "add", "fe80::1/64", "dev", name, "nodad")
    with opened(near, VxlanDevice("vxlan:test", ("fe80::99%eth0", 4789), 7)) as vxlan:
        for host, number in (eve, 1), (far, 2):
            with host.enter(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
                sock.bind(("fe80::99", 0, 0, socket.if_nametoindex("eth0")))
                sock.sendto(datagram(number), ("fe80::1", 4789, 0, socket.if_nametoindex("eth0")))
        got = []
        until(lambda: got.extend(map(bytes, vxlan.read())) or (vxlan.rx_frames and vxlan.drops), vxlan)
        assert got == [plain(2)]
        assert vxlan.drops == {Drop.FOREIGN: 1}


def test_to_have_a_tunnel_carry_no_large_frames_by_a_made_up_icmp_error(lab):
    lan, near, far, eve = (lab.host(name, ipv6=False) for name in ("lan", "near", "far", "eve"))
    for number, host in enumerate((near, far, eve), 1):
        lab.veth(host, "eth0", lan, host.name)
        host.addr("eth0", f"192.0.2.{number}/24")
    lab.bridge(lan, "br0", ["near", "far", "eve"])
    with opened(near, VxlanDevice("vxlan:test", ("192.0.2.2", 4789), 7, local="192.0.2.1")) as vxlan:
        assert vxlan.write(Batch.of([plain(1, 14 + 1450)])) == 1
        sent = build.udp(
            src_mac=bytes(6), dst_mac=bytes(6), src=address.ip("192.0.2.1"), dst=address.ip("192.0.2.2"),
            sport=4789, dport=4789, payload=bytes(100),
        )  # fmt: skip
        error = bytearray(bytes.fromhex("03040000 0000 0258") + sent[VNET + 14 :][:28])
        error[2:4] = (~ones_sum(error) & 0xFFFF).to_bytes(2, "big")
        with eve.enter(), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            sock.sendto(error, ("192.0.2.1", 0))
        seen(
            lambda: "mtu 600" in near.run("ip", "route", "get", "192.0.2.2").stdout, "the host to believe it"
        )
        assert vxlan.write(Batch.of([plain(1, 14 + 1450)])) == 1
        assert vxlan.drops == {}


def test_to_be_heard_while_there_is_no_way_to_the_peer(lab):
    near, far = lab.host("near", ipv6=False), lab.host("far", ipv6=False)
    lab.veth(near, "eth0", far, "eth0")
    with opened(near, DgramDevice("dgram:test", ("10.0.0.2", 7), ("0.0.0.0", 7))) as device:
        assert not device.up

        def say(host, number, here):
            with host.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((here, 7 if host is far else 0))
                sock.sendto(bytes(plain(number))[VNET:], ("10.0.0.1" if host is far else "127.0.0.1", 7))

        say(near, 1, "127.0.0.1")
        until(lambda: device.read() or device.drops or device.rx_frames, device)
        assert device.rx_frames == 0
        near.addr("eth0", "10.0.0.1/24")
        far.addr("eth0", "10.0.0.2/24")
        say(near, 2, "127.0.0.1")
        until(lambda: device.read() or device.up, device)
        say(far, 3, "10.0.0.2")
        got = []
        until(lambda: got.extend(map(bytes, device.read())) or device.rx_frames, device)
        assert got == [plain(3)]
        assert set(device.drops) == {Drop.FOREIGN}


@pytest.mark.parametrize("dev", ["", "eth0"])
def test_to_write_a_vxlan_peers_address_as_the_source_on_another_interface(lab, dev):
    near, far, eve = (lab.host(name, ipv6=False) for name in ("near", "far", "eve"))
    lab.veth(near, "eth0", far, "eth0")
    lab.veth(near, "eth1", eve, "eth0")
    for name in "all", "eth0", "eth1":
        near.sysctl(f"net.ipv4.conf.{name}.rp_filter", 0)
    near.addr("eth0", "192.0.2.1/24")
    far.addr("eth0", "192.0.2.2/24")
    eve.addr("eth0", "192.0.2.2/24")
    with opened(near, VxlanDevice("vxlan:test", ("192.0.2.2", 4789), 7, dev=dev)) as vxlan:
        for host, number in (eve, 1), (far, 2):
            with host.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(datagram(number), ("192.0.2.1", 4789))
        assert vxlan.write(Batch.of([plain(3)])) == 1
        got = []
        until(lambda: got.extend(map(bytes, vxlan.read())) or plain(2) in got, vxlan)
        assert got == ([plain(2)] if dev else [plain(1), plain(2)])  # the one is told, the other promised


def test_a_vxlan_by_an_interface_that_is_not_there_is_an_error(lab):
    with pytest.raises(DeviceError, match="No such device"):
        with opened(lab.host("near"), VxlanDevice("vxlan:x", ("192.0.2.2", 4789), 7, dev="nil")):
            pass
