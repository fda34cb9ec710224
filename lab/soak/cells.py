"""The cells of all services: their networks, what is promised there, and how an interface comes back."""

import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

from lab.figure6 import Figure6
from lab.host import Host
from lab.netns import Lab
from lab.soak.cell import BIN, RECOVERY_S, Broken, Cell, count_of
from lab.soak.flow import Flow
from lab.wait import until
from vtl_tools.common.runtime import control

CLIENT_MAC: Final = "52:54:00:00:00:01"
MIDDLE_MAC: Final = "52:54:00:00:00:02"
DENIED_PORT: Final = 666
RULES: Final = """
allow out tcp to 10.9.0.2, fd09::2
allow arp
allow icmp6
deny any log
"""
CUT: Final = """
table netdev cut {
  chain both { type filter hook ingress devices = { left, right } priority 0; policy drop; }
}
"""
FOREIGN: Final = """
table inet soak {
  counter leaked { }
  chain c { type filter hook prerouting priority 0; ip saddr != 10.2.0.0/24 counter name leaked; }
}
"""


class Line(Cell):
    """client 10.9.0.1, fd09::1 - vmnet1 [service] eth0 - server 10.9.0.2, fd09::2."""

    guarded = "vmnet1"

    def __init__(self, lab: Lab, rng: Random, preload: tuple[Path, Path]) -> None:
        self.client = lab.host(f"{self.service}-client")
        self.server = lab.host(f"{self.service}-server")
        super().__init__(lab, lab.host(f"{self.service}-middle", ipv6=False), rng, preload)
        self._cable(vm=True)
        self._cable(vm=False)
        self.observe()
        self.start()
        self._connect()

    def _connect(self) -> None:
        addresses = "10.9.0.2", "fd09::2"
        self.flows = [Flow(self.client, self.server, to, f"{self.service} {to}") for to in addresses]

    def _cable(self, *, vm: bool) -> None:
        if vm:
            macs = {"left_mac": CLIENT_MAC, "right_mac": MIDDLE_MAC}
            self.lab.veth(self.client, "eth0", self.middle, "vmnet1", **macs)
            self.client.addr("eth0", "10.9.0.1/24", "fd09::1/64")
        else:
            self.lab.veth(self.server, "eth0", self.middle, "eth0", left_mac="52:54:00:00:00:03")
            self.server.addr("eth0", "10.9.0.2/24", "fd09::2/64")

    def cables(self) -> list[tuple[Host, str]]:
        return [(self.middle, "vmnet1"), (self.middle, "eth0"), (self.client, "eth0"), (self.server, "eth0")]

    def readdress(self) -> None:
        for host, address in (self.client, "fd09::1/64"), (self.server, "fd09::2/64"):
            host.run("ip", "addr", "replace", address, "dev", "eth0", "nodad")

    def delete(self) -> None:
        vm = self.rng.random() < 0.5
        self.middle.run("ip", "link", "del", "dev", "vmnet1" if vm else "eth0")
        time.sleep(self.rng.uniform(0.0, 2.0))
        self._cable(vm=vm)


class BridgeCell(Line):
    """vtl-bridge: whatever the one end sends, the other gets."""

    service = "vtl-bridge"

    def command(self) -> list[str]:
        return ["--iface", "vmnet1", "--uplink", "eth0", "--guard", "keep"]


class WideAreaCell(Line):
    """vtl-wan: frames are late or lost, and connections bear it."""

    service = "vtl-wan"

    def command(self) -> list[str]:
        path = ["--delay", "5ms", "--jitter", "1ms", "--loss", "0.1%", "--rate", "50mbit"]
        return ["--iface", "vmnet1", "--uplink", "eth0", "--guard", "keep", *path]


class FirewallCell(Line):
    """vtl-fw: connections that the rules allow go on, and a datagram that they deny never arrives."""

    service = "vtl-fw"

    def __init__(self, lab: Lab, rng: Random, preload: tuple[Path, Path]) -> None:
        self.rules = lab.dir / "soak.rules"
        self.rules.write_text(RULES)
        super().__init__(lab, rng, preload)
        self.heard = self.server.call(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
        self.heard.bind(("10.9.0.2", DENIED_PORT))
        self.heard.setblocking(False)
        code = (
            "import socket,time\ns=socket.socket(socket.AF_INET,socket.SOCK_DGRAM)\nwhile 1:\n"
            f" time.sleep(0.01)\n try: s.sendto(b'out',('10.9.0.2',{DENIED_PORT}))\n except OSError: pass\n"
        )
        self.client.popen(sys.executable, "-c", code)

    def command(self) -> list[str]:
        identity = [
            "--mac",
            CLIENT_MAC,
            "--address",
            "10.9.0.1",
            "--address",
            "fd09::/64",
            "--address",
            "fe80::/10",
        ]
        return ["--iface", "vmnet1", "--uplink", "eth0", "--rules", str(self.rules), *identity]

    def leaked(self) -> int:
        denied = 0
        try:
            while self.heard.recv(99):
                denied += 1
        except BlockingIOError:
            return denied + super().leaked()

    def close(self) -> None:
        super().close()
        self.heard.close()


class TorCell(Cell):
    """vtl-tor with a proxy that echoes: new connections work after any fault, and nothing gets around it."""

    service = "vtl-tor"
    guarded = "vmnet1"

    def __init__(self, lab: Lab, rng: Random, preload: tuple[Path, Path]) -> None:
        self.guest = lab.host("tor-guest")
        super().__init__(lab, lab.host("tor-middle", ipv6=False), rng, preload)
        self.world = lab.host("tor-world", ipv6=False)
        lab.veth(self.world, "eth0", self.middle, "eth0")
        self.world.addr("eth0", "10.2.0.2/24")
        self.middle.addr("eth0", "10.2.0.1/24")
        self.middle.sysctl("net.ipv4.ip_forward", 1)
        self.world.run("nft", "-f", "-", input=FOREIGN)
        self._cable()
        self.middle.addr("vmnet1", "10.0.2.1/24")  # so that the host would forward, but for the guard
        self.socks = lab.dir / "soak-socks"
        proxy = self.middle.popen(
            sys.executable,
            Path(__file__).with_name("echo_proxy.py"),
            self.socks,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert proxy.stdout is not None
        proxy.stdout.readline()
        self.observe()
        self.start()
        self.echoed = 0

    def _cable(self) -> None:
        self.lab.veth(self.guest, "eth0", self.middle, "vmnet1", left_mac=CLIENT_MAC, right_mac=MIDDLE_MAC)
        self._address()

    def _address(self) -> None:
        self.guest.run("ip", "addr", "replace", "10.0.2.15/24", "dev", "eth0")
        self.guest.run("ip", "route", "replace", "default", "via", "10.0.2.2")

    def command(self) -> list[str]:
        return ["--iface", "vmnet1", "--socks", f"unix:{self.socks}", "--state", str(self.disk / "names")]

    def cables(self) -> list[tuple[Host, str]]:
        return [(self.middle, "vmnet1"), (self.guest, "eth0")]

    def readdress(self) -> None:
        self._address()

    def delete(self) -> None:
        self.middle.run("ip", "link", "del", "dev", "vmnet1")
        time.sleep(self.rng.uniform(0.0, 2.0))
        self._cable()

    def carries(self) -> bool:
        """Return whether a new connection of the guest echoes, byte for byte."""
        sent = self.rng.randbytes(50_000)
        try:
            with self.guest.call(partial(socket.create_connection, ("203.0.113.80", 7), 10.0)) as sock:
                sock.sendall(sent)
                sock.shutdown(socket.SHUT_WR)
                got = b""
                while octets := sock.recv(1 << 16):
                    got += octets
        except OSError:
            return False
        if got != sent:
            raise Broken(f"{len(got)} octets came back for {len(sent)}, or others")
        self.echoed += len(got)
        return True

    def leaked(self) -> int:
        return super().leaked() + count_of(self.world, "leaked")


class FreezeCell(Cell):
    """vtl-freeze: connections outlive the absences of their VM, also when the service is killed meanwhile."""

    service = "vtl-freeze"

    def __init__(self, lab: Lab, rng: Random, preload: tuple[Path, Path]) -> None:
        self.vm, self.cable = lab.host("freeze-vm"), lab.host("freeze-cable", ipv6=False)
        super().__init__(lab, lab.host("freeze-host"), rng, preload)
        lab.veth(self.vm, "eth0", self.cable, "left", left_mac=CLIENT_MAC)
        lab.veth(self.middle, "vnet0", self.cable, "right", left_mac=MIDDLE_MAC)
        lab.bridge(self.cable, "both", ["left", "right"])
        self.vm.addr("eth0", "10.9.0.2/24", "fd09::2/64")
        self.middle.addr("vnet0", "10.9.0.1/24", "fd09::1/64")
        self.start()
        self.flows = [Flow(self.middle, self.vm, to, f"freeze {to}") for to in ("10.9.0.2", "fd09::2")]
        self.faults |= {"away": self.go_away, "away, killed": partial(self.go_away, killed=True)}

    def command(self) -> list[str]:
        return ["--iface", "vnet0", "--state", str(self.disk / "freeze.state")]

    def ask(self, verb: str) -> Any:
        """Ask the service."""
        return self.middle.call(control.ask, self.control, verb)

    def go_away(self, *, killed: bool = False) -> None:
        """Let the VM be away for a while, and perhaps the service die meanwhile."""
        until(
            lambda: self.ask("status")["freeze"]["connections"] >= len(self.flows),
            "flows to be known",
            RECOVERY_S,
        )
        self.cable.run("nft", "-f", "-", input=CUT)
        self.ask("start")
        time.sleep(self.rng.uniform(1.0, 8.0))
        if killed:
            self.kill_and_restart()
            if not self.ask("status")["freeze"]["frozen"]:
                raise Broken("it forgot that the VM is away")
            time.sleep(self.rng.uniform(1.0, 3.0))
        self.cable.run("nft", "delete table netdev cut")
        self.ask("stop")

    def cables(self) -> list[tuple[Host, str]]:
        return [(self.middle, "vnet0"), (self.vm, "eth0")]

    def readdress(self) -> None:
        for host, interface, address in (self.vm, "eth0", "fd09::2/64"), (self.middle, "vnet0", "fd09::1/64"):
            host.run("ip", "addr", "replace", address, "dev", interface, "nodad")

    def delete(self) -> None:
        self.middle.run("ip", "link", "del", "dev", "vnet0")
        time.sleep(self.rng.uniform(0.0, 2.0))
        self.lab.veth(self.middle, "vnet0", self.cable, "right", left_mac=MIDDLE_MAC)
        self.cable.run("ip", "link", "set", "dev", "right", "master", "both")
        self.middle.addr("vnet0", "10.9.0.1/24", "fd09::1/64")


class SubnetCell(Cell):
    """vtl-subnet on both hosts of Figure 6; the faults befall the first."""

    service = "vtl-subnet"
    guarded = "vm1"

    def __init__(self, lab: Lab, rng: Random, preload: tuple[Path, Path]) -> None:
        self.scene = Figure6(lab)
        super().__init__(lab, self.scene["host1"], rng, preload)
        self.observe()
        other = self.scene["host2"].popen(
            BIN / self.service, *self._options(2), "--control", lab.dir / "subnet2.sock", "--json",
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: (lab.dir / "subnet2.sock").exists() or other.poll() is not None, "the other service")
        self.start()
        one, two = self.scene["vm1"], self.scene["vm2"]
        addresses = self.scene.address(2), self.scene.address(2, v6=True)
        self.flows = [Flow(one, two, to, f"subnet {to}") for to in addresses]
        self.faults["direct path cut"] = self.cut

    def _options(self, n: int) -> tuple[str, ...]:
        vm = "--address", f"10.{n}.0.5", "--address", f"fd0{n}::5"
        return *self.scene.links(n), "--allow", "10.0.0.0/8", "--allow", "fd00::/8", *vm

    def command(self) -> list[str]:
        return [*self._options(1), "--guard", "keep"]

    def cables(self) -> list[tuple[Host, str]]:
        return [(self.middle, "lanlink"), (self.scene["vm1"], "eth0")]

    def readdress(self) -> None:
        vm = self.scene["vm1"]
        vm.run("ip", "addr", "replace", "fd01::5/64", "dev", "eth0", "nodad")
        vm.run("ip", "route", "replace", "default", "via", "10.1.0.1")
        vm.run("ip", "-6", "route", "replace", "default", "via", "fd01::1")

    def delete(self) -> None:
        self.middle.run("ip", "link", "del", "dev", "lanlink")
        time.sleep(self.rng.uniform(0.0, 2.0))
        self.lab.veth(self.middle, "lanlink", self.scene.lan, "host1")
        self.scene.plug(1)

    def cut(self) -> None:
        """Take the cable out of the LAN's switch for a while."""
        self.scene.unplug(1)
        time.sleep(self.rng.uniform(1.0, 5.0))
        self.scene.plug(1)


CELLS: Final[dict[str, type[Cell]]] = {
    "bridge": BridgeCell,
    "fw": FirewallCell,
    "freeze": FreezeCell,
    "subnet": SubnetCell,
    "tor": TorCell,
    "wan": WideAreaCell,
}
