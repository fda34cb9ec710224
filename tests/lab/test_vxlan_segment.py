"""One segment of three VXLAN implementations: ours, the kernel's, and Open vSwitch's in user space."""

import pytest

from lab.netns import Host, Lab
from lab.ovs import OpenVSwitch
from lab.wait import until
from tests.running import bridge

pytestmark = pytest.mark.lab

OURS, KERNEL, OVS = "10.0.0.1", "10.0.0.2", "10.0.0.3"
PLAIN = ("tx", "off", "tso", "off", "gso", "off")
"""A veth would pass super-segments within the tunnel, with sums that nobody completes."""


def member(lab: Lab, switch: Host, name: str, address: str) -> Host:
    host = lab.host(name, ipv6=False)
    lab.veth(host, "eth0", switch, name)
    host.run("ethtool", "-K", "eth0", *PLAIN)
    if address:
        host.addr("eth0", f"{address}/24")
    switch.run("ip", "link", "set", "dev", name, "master", "lan")
    return host


def station(lab: Lab, name: str, host: Host, number: int) -> Host:
    made = lab.host(name, ipv6=False)
    lab.veth(made, "eth0", host, "v1", mtu=1450)
    made.run("ethtool", "-K", "eth0", *PLAIN)
    made.addr("eth0", f"10.9.0.{number}/24")
    return made


def test_the_kernel_open_vswitch_and_we_are_one_segment(lab: Lab) -> None:
    switch = lab.host("lan", ipv6=False)
    lab.bridge(switch, "lan", [])
    ours, kernel = member(lab, switch, "ours", OURS), member(lab, switch, "kernel", KERNEL)
    other = member(lab, switch, "ovs", "")
    vms = [station(lab, "vm1", ours, 1), lab.host("vm2", ipv6=False), station(lab, "vm3", other, 3)]
    kernel.run(*f"ip link add vx7 type vxlan id 7 local {KERNEL} remote {OURS} dstport 4789".split())
    lab.veth(vms[1], "eth0", kernel, "v1", mtu=1450)
    vms[1].addr("eth0", "10.9.0.2/24")
    lab.bridge(kernel, "br0", ["vx7", "v1"])
    openvswitch = OpenVSwitch(lab, other, "eth0", f"{OVS}/24")
    openvswitch.plug("v1")
    openvswitch.vxlan(7, OURS, 4790)
    links = ("--attach", f"kernel=vxlan:{KERNEL}/7,local={OURS}")
    links += ("--attach", f"ovs=vxlan:{OVS}:4790/7,local={OURS},port=4790")
    content = bytes(range(256)) * 8192
    with bridge(lab, ours, "--iface", "v1", *links, service="vtl-vnet") as running:
        for number, vm in enumerate(vms, 1):
            lab.http(vm, 80, {"file": content})
            for peer in {1, 2, 3} - {number}:
                ask = ("ping", "-c1", "-W1", f"10.9.0.{peer}")
                until(lambda vm=vm, ask=ask: not vm.run(*ask, check=False).returncode, f"{number} to {peer}")
        for one, two in (1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2):
            got = lab.dir / f"{one}-{two}"
            vms[one - 1].run("curl", "-s", "-o", got, f"http://10.9.0.{two}/file")
            assert got.read_bytes() == content
        stations = running.status()["stations"]
        assert {stations[vm.mac("eth0")]["link"] for vm in vms} == {"v1", "kernel", "ovs"}
