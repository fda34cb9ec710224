"""BGP EVPN as data centres run it: FRR (bgpd and zebra) in hosts of the lab, kernel VXLAN, a route reflector.

    fabric = Fabric(lab)
    one, two = fabric.host("one"), fabric.host("two")
    one.overlay(VNI)              # a kernel bridge whose stations FRR announces
    fabric.ready(VNI)

Each daemon has a directory of its own within the lab's, and ends with the lab. Nothing in /etc is read.
"""

import json
import os
import pwd
import subprocess
from pathlib import Path
from typing import Any, Final

from lab.errors import LabError
from lab.host import Host
from lab.netns import Lab
from lab.wait import until

AS: Final = 65000
REFLECTOR: Final = "10.0.0.254"
FRR: Final = Path("/usr/lib/frr")
_PORT: Final = "4789"
_EVERY: Final = "00:00:00:00:00:00"
_ROUTER: Final = """\
router bgp {asn}
 bgp router-id {address}
 no bgp default ipv4-unicast
 neighbor F peer-group
 neighbor F remote-as {asn}
 neighbor F timers 3 9
 neighbor F timers connect 1
 neighbor F advertisement-interval 0
 {peers}
 address-family l2vpn evpn
  neighbor F activate
  {evpn}
 exit-address-family
"""
_GOBGPD: Final = """\
[global.config]
as = {asn}
router-id = "{address}"
[[neighbors]]
[neighbors.config]
neighbor-address = "{reflector}"
peer-as = {asn}
[neighbors.timers.config]
hold-time = 9
keepalive-interval = 3
[neighbors.transport.config]
passive-mode = true
[[neighbors.afi-safis]]
[neighbors.afi-safis.config]
afi-safi-name = "l2vpn-evpn"
"""


class FabricHost:
    """A host of the fabric. address: of its VTEP; port: its interface in the underlay's switch."""

    def __init__(self, fabric: "Fabric", host: Host, address: str, port: str) -> None:
        self.fabric, self.host, self.address, self.port = fabric, host, address, port
        self.vnis: list[int] = []
        self._dir = fabric.lab.dir / f"frr-{host.name}"

    def start(self, peers: str, evpn: str) -> None:
        """Start zebra and bgpd, and wait until both listen for commands."""
        user = pwd.getpwnam("frr")
        self._dir.mkdir(mode=0o755)
        os.chown(self._dir, user.pw_uid, user.pw_gid)
        (self._dir / "zebra.conf").write_text("")
        (self._dir / "bgpd.conf").write_text(
            _ROUTER.format(asn=AS, address=self.address, peers=peers, evpn=evpn)
        )
        self._daemon("zebra")
        until((self._dir / "zserv.api").exists, f"{self.host.name}: zebra")
        self._daemon("bgpd", "--no_kernel")
        for name in "zebra", "bgpd":
            until((self._dir / f"{name}.vty").exists, f"{self.host.name}: {name}")

    def _daemon(self, name: str, *more: str) -> None:
        at = self._dir
        command = [FRR / name, "--vty_socket", at, "-z", at / "zserv.api", "-i", at / f"{name}.pid"]
        log = (at / f"{name}.log").open("w")
        self.host.popen(*command, "-f", at / f"{name}.conf", "-P", "0", *more, stdout=log, stderr=log)
        log.close()

    def daemon(self, name: str) -> "subprocess.Popen[bytes]":
        """Return the process of a daemon."""
        for process in self.host.processes:
            if process.args[0] == FRR / name and process.poll() is None:
                return process
        raise LabError(f"{self.host.name}: no {name} runs")

    def configure(self, *lines: str) -> None:
        """Change the configuration of bgpd."""
        words = [word for line in ("configure terminal", *lines) for word in ("-c", line)]
        self.host.run("vtysh", "--vty_socket", self._dir, "-d", "bgpd", *words)

    def overlay(self, vni: int, *ports: str) -> None:
        """Make the bridge br<vni> of these ports and of the kernel's VXLAN, as FRR's users do."""
        bridge, tunnel = f"br{vni}", f"vx{vni}"
        run = self.host.run
        kind = ["type", "vxlan", "id", str(vni), "dstport", _PORT, "local", self.address, "nolearning"]
        run("ip", "link", "add", tunnel, *kind)
        self.fabric.lab.bridge(self.host, bridge, [tunnel, *ports])
        run("ip", "link", "set", "dev", tunnel, "type", "bridge_slave", "learning", "off")
        self.vnis.append(vni)

    def plug(self, port: str, vni: int) -> None:
        """Make an interface a port of a bridge."""
        self.host.run("ip", "link", "set", "dev", port, "master", f"br{vni}", "up")

    def forwarding(self, vni: int) -> set[tuple[str, str]]:
        """Return the (MAC, VTEP) that the kernel's VXLAN sends to; the MAC of flooding is all zeros."""
        said = self.host.run("bridge", "-j", "fdb", "show", "dev", f"vx{vni}").stdout
        return {(row["mac"], row["dst"]) for row in json.loads(said or "[]") if "dst" in row}

    def reaches(self, vni: int, mac: str, vtep: str) -> bool:
        """Return whether frames for a MAC are sent to a VTEP."""
        return (mac, vtep) in self.forwarding(vni)

    def floods_to(self, vni: int) -> set[str]:
        """Return the VTEPs that a frame for all is sent to."""
        return {vtep for mac, vtep in self.forwarding(vni) if mac == _EVERY}


class GobgpHost(FabricHost):
    """A host whose gobgpd has its interface on a unix socket."""

    @property
    def api(self) -> Path:
        """The socket."""
        return self.fabric.lab.dir / f"gobgp-{self.host.name}.sock"

    process: "subprocess.Popen[bytes]"

    def start_gobgpd(self) -> None:
        """Start gobgpd, and wait until it answers."""
        config = self.api.with_suffix(".toml")
        config.write_text(_GOBGPD.format(asn=AS, address=self.address, reflector=REFLECTOR))
        self.api.unlink(missing_ok=True)
        command = ["gobgpd", "-f", config, "--api-hosts", f"unix://{self.api}", "--log-level=warn"]
        with self.api.with_suffix(".log").open("a") as log:
            process = self.host.popen(*command, stdout=log, stderr=log)
        until(self.api.exists, f"{self.host.name}: gobgpd")
        self.process = process

    def rib(self) -> dict[str, Any]:
        """Return the routes of EVPN that gobgpd has."""
        words = ("--target", f"unix://{self.api}", "global", "rib", "-a", "evpn", "-j")
        found: dict[str, Any] = json.loads(self.host.run("gobgp", *words).stdout)
        return found


class Fabric:
    """An underlay of one switch, and a route reflector. Hosts have the addresses 10.0.0.1, 10.0.0.2, ..."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts: list[FabricHost] = []
        self.switch = lab.host("fabric", ipv6=False)
        lab.bridge(self.switch, "fabric", [])
        self.reflector = self._plug(lab.host("reflector", ipv6=False), REFLECTOR, "reflector")
        self.reflector.start("bgp listen range 10.0.0.0/24 peer-group F", "neighbor F route-reflector-client")

    def bare(self, name: str) -> FabricHost:
        """Add a host of the underlay that runs no FRR."""
        number = len(self.hosts) + 1
        found = self._plug(self.lab.host(name, ipv6=False), f"10.0.0.{number}", f"p{number}")
        self.hosts.append(found)
        return found

    def host(self, name: str) -> FabricHost:
        """Add a host that announces all its VNIs."""
        found = self.bare(name)
        found.start(f"neighbor {REFLECTOR} peer-group F", "advertise-all-vni")
        return found

    def gobgp(self, name: str) -> "GobgpHost":
        """Add a host with gobgpd for a VTEP in user space."""
        one = self.bare(name)
        found = GobgpHost(self, one.host, one.address, one.port)
        self.hosts[-1] = found
        found.start_gobgpd()
        # The reflector connects: gobgpd does so after ten seconds only.
        self.reflector.configure(f"router bgp {AS}", f"neighbor {found.address} peer-group F")
        return found

    def _plug(self, host: Host, address: str, port: str) -> FabricHost:
        self.lab.veth(host, "eth0", self.switch, port)
        # A veth would pass super-segments within the tunnel, with sums that nobody completes.
        host.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
        host.addr("eth0", f"{address}/24")
        self.switch.run("ip", "link", "set", "dev", port, "master", "fabric")
        return FabricHost(self, host, address, port)

    def ready(self, vni: int) -> None:
        """Wait until each host with an overlay floods to each other one."""
        members = [one for one in self.hosts if vni in one.vnis]
        for one in members:
            others = {other.address for other in members} - {one.address}
            until(lambda one=one, others=others: others <= one.floods_to(vni), f"{one.host.name}: EVPN")
