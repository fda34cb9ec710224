"""The scene of the paper's Figure 6: two VMs on one LAN, whose networks are two far ones.

    vm1 - [host1] - wide area - [proxy1] - gw1 - wide area - gw2 - [proxy2] - wide area - [host2] - vm2
              '------------------------------ LAN ------------------------------'

A VM is on its proxy's network by a tunnel of its host (VXLAN, by the kernel). Traffic of the two crosses
the wide area three times. Each machine is a host of the lab. The wide area is a vtl-wan between two kernel
bridges: of the machines that talk to each other, each bridge has one.
"""

import subprocess
import sys
from pathlib import Path

from lab.errors import LabError
from lab.host import Host
from lab.netns import Lab

WAN_MTU = 1600
"""So that the tunnels carry packets of 1500 octets."""
WAN = {"host1": 1, "host2": 2, "proxy1": 11, "proxy2": 12, "gw1": 21, "gw2": 22}
"""The hosts on the wide area, with the last octet of their address there."""
SHORES = {"west": ("host1", "host2", "gw1"), "east": ("proxy1", "proxy2", "gw2")}
"""The bridges at both ends of the wide area, with their hosts."""
PLAIN = "tx off rx off tso off gso off gro off"
"""So that the wide area carries packets as a real one would: no vnet header tells of a tunnel's segments."""


class Figure6:
    """The machines by name, and how to address them. delay_s: of one passage of the wide area."""

    def __init__(self, lab: Lab, delay_s: float = 0.004) -> None:
        self.lab = lab
        self.hosts: dict[str, Host] = {name: lab.host(name) for name in ("vm1", "vm2", *WAN)}
        self.wan, self.lan = lab.host("wan", ipv6=False), lab.host("lan", ipv6=False)
        self._wide_area(delay_s)
        lab.bridge(self.lan, "lan", [])
        for n in 1, 2:
            self._site(n)
            self._host(n)
        gw1, gw2 = self.hosts["gw1"], self.hosts["gw2"]
        for gw, far, number in (gw1, 2, WAN["gw2"]), (gw2, 1, WAN["gw1"]):
            gw.route(f"10.{far}.0.0/24", f"198.51.100.{number}")
            gw.run("ip", "-6", "route", "add", f"fd0{far}::/64", "via", f"fd99::{number}")

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @staticmethod
    def address(n: int, *, v6: bool = False) -> str:
        """The address of VM n."""
        return f"fd0{n}::5" if v6 else f"10.{n}.0.5"

    def links(self, n: int) -> tuple[str, ...]:
        """The options that give vtl-subnet on host n its links."""
        return ("--iface", f"vm{n}", "--default", "proxylink", "--direct", "lanlink")

    def _wide_area(self, delay_s: float) -> None:
        for name, number in WAN.items():
            host = self.hosts[name]
            self.lab.veth(host, "wan", self.wan, name, mtu=WAN_MTU)
            host.run("ethtool", "-K", "wan", *PLAIN.split())
            self.wan.run("ethtool", "-K", name, *PLAIN.split())
            host.addr("wan", f"198.51.100.{number}/24", f"fd99::{number}/64")
        for shore, hosts in SHORES.items():
            self.lab.veth(self.wan, shore, self.wan, f"{shore}-end", mtu=WAN_MTU)
            self.lab.bridge(self.wan, f"{shore}-lan", [f"{shore}-end", *hosts])
        command = [Path(sys.executable).with_name("vtl-wan"), "--delay", f"{delay_s}s", "--json"]
        links = [word for shore in SHORES for word in ("--iface", shore)]
        control = ("--control", self.lab.dir / "wide-area.sock")
        process = self.wan.popen(*command, *links, *control, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if '"ready"' not in (line := process.stdout.readline()):
            raise LabError(f"wide area: {line}")

    def _site(self, n: int) -> None:
        """proxy n, which bridges the tunnel from host n to the LAN of gateway n."""
        proxy, gateway = self.hosts[f"proxy{n}"], self.hosts[f"gw{n}"]
        self.lab.veth(gateway, "site", proxy, "site")
        gateway.addr("site", f"10.{n}.0.1/24", f"fd0{n}::1/64")
        gateway.sysctl("net.ipv4.ip_forward", 1)
        gateway.sysctl("net.ipv6.conf.all.forwarding", 1)
        tunnel(proxy, "overlay", n, WAN[f"proxy{n}"], WAN[f"host{n}"])
        self.lab.bridge(proxy, "br0", ["site", "overlay"])

    def _host(self, n: int) -> None:
        """host n with VM n, the tunnel, and the LAN."""
        vm, host = self.hosts[f"vm{n}"], self.hosts[f"host{n}"]
        self.lab.veth(vm, "eth0", host, f"vm{n}")
        vm.addr("eth0", f"10.{n}.0.5/24", f"fd0{n}::5/64")
        vm.route("default", f"10.{n}.0.1")
        vm.run("ip", "-6", "route", "add", "default", "via", f"fd0{n}::1")
        for scope in "all", "eth0":
            vm.sysctl(f"net.ipv4.conf.{scope}.rp_filter", 1)
        tunnel(host, "proxylink", n, WAN[f"host{n}"], WAN[f"proxy{n}"])
        self.lab.veth(host, "lanlink", self.lan, f"host{n}")
        self.plug(n)

    def plug(self, n: int) -> None:
        """Put host n's cable into the switch of the LAN."""
        self.lan.run("ip", "link", "set", "dev", f"host{n}", "master", "lan")

    def unplug(self, n: int) -> None:
        """Take it out. Neither end can see it by its interface."""
        self.lan.run("ip", "link", "set", "dev", f"host{n}", "nomaster")


def tunnel(host: Host, name: str, vni: int, own: int, far: int) -> None:
    """Make an end of a tunnel over the wide area."""
    ends = ["local", f"198.51.100.{own}", "remote", f"198.51.100.{far}", "dstport", "4789"]
    host.run("ip", "link", "add", name, "mtu", "1500", "type", "vxlan", "id", str(vni), *ends, "dev", "wan")
    host.run("ip", "link", "set", "dev", name, "up")
