"""A VM that takes the place of another behind vtl-fw: by a new tap, by another program at the tap, by a veth.

A VM here is whoever holds the host-only interface, and sends frames from an Ethernet address of its choice.
"""

import fcntl
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge
from vtl_tools.common.packet.vnet import NONE

pytestmark = [pytest.mark.lab]

OLD, NEW, NEWER = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:03"
ADDRESS = "10.9.0.5"
RULES = "allow out udp port 9\ndeny any\n"
_TUNSETIFF, _TAP = 0x400454CA, 0x5002  # IFF_TAP | IFF_NO_PI | IFF_VNET_HDR


class VM(Protocol):
    """Sends frames as a VM does."""

    def send(self, frame: bytes) -> None: ...
    def close(self) -> None: ...


class AtTap:
    """A program that has a tap open, as QEMU does."""

    def __init__(self, host: Host, name: str) -> None:
        with host.enter():
            self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP))

    def send(self, frame: bytes) -> None:
        os.write(self.fd, NONE + frame)

    def close(self) -> None:
        os.close(self.fd)


class AtVeth:
    """A container, in which the attacker is root."""

    def __init__(self, host: Host) -> None:
        self.wire = host.wire("eth0")

    def send(self, frame: bytes) -> None:
        self.wire.sock.send(frame)

    def close(self) -> None:
        self.wire.close()


class AtSocket:
    """A process that has the other end of a qemu: link, as a QEMU has."""

    PROGRAM = """
import socket, sys
sock = None
for line in sys.stdin:
    if line == "again\\n" and sock is not None:
        sock.close()
    if line == "again\\n":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(sys.argv[1])
        continue
    frame = bytes.fromhex(line)
    sock.sendall(len(frame).to_bytes(4, "big") + frame)
"""

    def __init__(self, host: Host, path: Path) -> None:
        self.process: subprocess.Popen[str] = host.popen(
            sys.executable, "-uc", self.PROGRAM, path, stdin=subprocess.PIPE, text=True
        )
        self.connect()

    def connect(self) -> None:
        self._say("again")

    def send(self, frame: bytes) -> None:
        self._say(frame.hex())

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Firewall(Bridge):
    """A running vtl-fw, and the lines that it warned in."""

    def __init__(self, lab: Lab, process: "subprocess.Popen[str]", socket: Path, warnings: Path) -> None:
        self._warnings = warnings
        super().__init__(lab, process, socket)

    def warnings(self) -> list[str]:
        return self._warnings.read_text().splitlines()

    def refused(self) -> int:
        return int(self.status()["drops"].get("spoofed-mac", 0))


class Scene:
    """VM - vmnet1 [middle] eth0 - server."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.middle, self.server = lab.host("middle", ipv6=False), lab.host("server", ipv6=False)
        lab.veth(self.middle, "eth0", self.server, "eth0")
        self.wire = self.server.wire()
        self.count = 0

    @contextmanager
    def firewall(self, *arguments: str, iface: str = "vmnet1", forget: bool = True) -> Iterator[Firewall]:
        rules, socket, warnings = (self.lab.dir / name for name in ("fw.rules", "s.sock", "warnings"))
        rules.write_text(RULES)
        links = ("--iface", iface, "--uplink", "eth0", "--rules", rules, "--address", ADDRESS)
        with warnings.open("w") as stderr:
            process = self.middle.popen(
                BIN / "vtl-fw", *links, *arguments, *["--forget"] * forget, "--guard", "process", "--json",
                "--control", socket, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip
        yield Firewall(self.lab, process, socket, warnings)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, warnings.read_text()

    def frame(self, mac: str) -> bytes:
        self.count += 1
        head = Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / IP(src=ADDRESS, dst="10.9.0.9")
        return bytes(head / UDP(sport=9, dport=9) / f"frame {self.count}".encode())

    def gets_out(self, vm: VM, mac: str) -> None:
        """Let a VM send until a frame comes out: the first ones may come before the host's news."""
        self.wire.read()

        def came_out() -> bool:
            vm.send(frame := self.frame(mac))
            return any(got[6:12] == frame[6:12] for got in self.wire.read())

        until(came_out, f"a frame of {mac}")

    def awaits(self, running: Firewall, is_next: bool) -> bool:
        """Whether the service takes the next Ethernet address for the VM's, as it should or should not."""
        return bool(running.status()["identity"]["awaits_next"] is is_next)

    def is_refused(self, vm: VM, mac: str, running: Firewall) -> None:
        """Let a VM send, and see that the service drops it."""
        self.wire.read()
        before = running.refused()
        vm.send(self.frame(mac))
        until(lambda: running.refused() > before, "the end of a frame")
        assert all(got[6:12] != bytes.fromhex(mac.replace(":", "")) for got in self.wire.read())


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        yield Scene(lab)


@contextmanager
def tap(scene: Scene) -> Iterator[None]:
    scene.middle.tap("vmnet1")
    yield
    scene.middle.run("ip", "link", "del", "vmnet1")


def anew(scene: Scene) -> None:
    scene.middle.run("ip", "link", "del", "vmnet1")
    scene.middle.tap("vmnet1")


def test_a_recreated_vm_is_cut_off_and_the_operator_is_told(scene: Scene) -> None:
    """Once, with the remedy; and the remedy helps."""
    with tap(scene), scene.firewall() as running:
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
        anew(scene)
        running.wait_for("link", up=True)
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            for _ in range(20):
                scene.is_refused(vm, NEW, running)
            told = running.wait_for("identity")
            assert (told["reason"], told["refused"], told["mac"]) == ("spoofed-mac", NEW, OLD)
            lines = [line for line in running.warnings() if "spoofed-mac" in line]
            assert len(lines) == 1
            assert f"{NEW} is not the Ethernet address of the VM ({OLD}" in lines[0]
            assert "'vtl-fw forget --link vmnet1'" in lines[0]
            refused = running.status()["refused"]
            assert (refused["refused"], refused["last_refused"]) == (20, NEW)
            ran = scene.middle.run(BIN / "vtl-fw", "forget", "--link", running.socket)
            assert f"forgot {OLD}, no IP address" in ran.stderr, "its address was given, and still holds"
            assert running.wait_for("identity", reason="forgotten")["mac"] == OLD
            scene.gets_out(vm, NEW)
            scene.is_refused(vm, OLD, running)
            whys = [event["reason"] for event in running.events if event["event"] == "identity"]
            assert whys == ["spoofed-mac", "forgotten"]


def test_a_tap_that_is_deleted_and_created_again_has_another_vm(scene: Scene) -> None:
    with tap(scene), scene.firewall("--vm", "reappearing") as running:
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
            scene.is_refused(vm, NEW, running)
        anew(scene)
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, NEW)
            told = running.wait_for("identity", reason="replaced")
            assert (told["former"], told["mac"]) == (OLD, NEW)
            scene.is_refused(vm, OLD, running)
            scene.is_refused(vm, NEWER, running)


def test_a_tap_that_another_program_opens_has_another_vm(scene: Scene) -> None:
    """As persistent taps are used: the interface stays."""
    with tap(scene), scene.firewall("--vm", "reappearing") as running:
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, NEW)
            scene.is_refused(vm, OLD, running)


def test_a_vm_that_floods_at_its_end_does_not_lock_the_next_one_out(scene: Scene) -> None:
    """By frames that wait in the service's buffer when the next one is there."""
    with tap(scene), scene.firewall("--vm", "reappearing") as running:
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
            os.kill(running.process.pid, signal.SIGSTOP)  # so that they wait
            for _ in range(3000):
                vm.send(scene.frame(NEWER))
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            os.kill(running.process.pid, signal.SIGCONT)
            scene.gets_out(vm, NEW)
            assert running.refused() >= 3000


def test_a_vm_that_comes_back_keeps_what_is_known_of_it(scene: Scene) -> None:
    """As one does that was suspended: nobody else can have its place any more."""
    with tap(scene), scene.firewall("--vm", "reappearing") as running:
        for is_back in (False, True):
            with closing(AtTap(scene.middle, "vmnet1")) as vm:
                until(partial(scene.awaits, running, is_back), "the news of the tap")
                scene.gets_out(vm, OLD)
                until(partial(scene.awaits, running, False), "its first frame")
                scene.is_refused(vm, NEW, running)
        flows = scene.middle.run(BIN / "vtl-fw", "flows", "--link", running.socket, "--json").stdout
        assert ADDRESS in flows


def test_what_root_in_a_guest_can_do_to_its_link_makes_it_no_other_vm(scene: Scene) -> None:
    """It has the tap as long as its hypervisor does; of a veth, it takes the other end down and up."""
    with tap(scene), scene.firewall("--vm", "reappearing") as running:
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
            for state in "down", "up":
                scene.middle.run("ip", "link", "set", "dev", "vmnet1", state)
                running.wait_for("link", up=state == "up")
            scene.gets_out(vm, OLD)
            scene.is_refused(vm, NEW, running)
    container = scene.lab.host("container", ipv6=False)
    scene.lab.veth(container, "eth0", scene.middle, "vmnet1")
    with scene.firewall("--vm", "reappearing") as running:
        scene.gets_out(AtVeth(container), OLD)
        container.run("ip", "link", "set", "dev", "eth0", "down")
        container.run("ip", "link", "set", "dev", "eth0", "up")
        container.run("ip", "link", "set", "dev", "eth0", "address", NEW)
        scene.is_refused(AtVeth(container), NEW, running)
        container.run("ip", "link", "del", "eth0")
        running.wait_for("link", up=False)
        scene.lab.veth(container, "eth0", scene.middle, "vmnet1")  # only the host can
        scene.gets_out(AtVeth(container), NEW)
    container.run("ip", "link", "del", "eth0")


def test_a_service_that_is_started_again_knows_that_another_vm_is_there(scene: Scene) -> None:
    with tap(scene):
        with scene.firewall("--vm", "reappearing"), closing(AtTap(scene.middle, "vmnet1")) as vm:
            scene.gets_out(vm, OLD)
        with closing(AtTap(scene.middle, "vmnet1")) as vm:
            with scene.firewall(forget=False) as running:
                scene.is_refused(vm, NEW, running)
                until(
                    lambda: any("is in other hands than before" in line for line in running.warnings()),
                    "the warning",
                )
                scene.gets_out(vm, OLD)
            with scene.firewall("--vm", "reappearing", forget=False) as running:
                scene.is_refused(vm, NEW, running)
            with scene.firewall("--vm", "reappearing") as running:
                scene.gets_out(vm, NEW)
        with (
            closing(AtTap(scene.middle, "vmnet1")) as vm,
            scene.firewall("--vm", "reappearing", forget=False) as running,
        ):
            scene.gets_out(vm, NEWER)
            scene.is_refused(vm, NEW, running)


def test_another_process_at_a_socket_is_another_vm_and_a_new_connection_is_not(scene: Scene) -> None:
    """A guest may make its QEMU connect again, as by a frame that is too long."""
    path = scene.lab.dir / "vm"
    link = f"qemu:unix:{path},server"
    with scene.firewall("--vm", "reappearing", iface=link) as running:
        with closing(AtSocket(scene.middle, path)) as vm:
            scene.gets_out(vm, OLD)
            vm.connect()
            running.wait_for("link", up=False)
            running.wait_for("link", up=True)
            scene.is_refused(vm, NEW, running)
            scene.gets_out(vm, OLD)
        running.wait_for("link", up=False)
        with closing(AtSocket(scene.middle, path)) as vm:
            scene.gets_out(vm, NEW)
            scene.is_refused(vm, OLD, running)


def test_a_kernel_that_behaves_warns_nobody(scene: Scene) -> None:
    """It claims its addresses before it uses them, and asks routers."""
    vm = scene.lab.host("vm")
    for scope in "all", "default":
        vm.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 1)
    prefix = ICMPv6NDOptPrefixInfo(prefix="fd09::", prefixlen=64, L=1, A=1)
    head = Ether(src=scene.server.mac("eth0"), dst="33:33:00:00:00:01")
    news = head / IPv6(src="fe80::2", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=0) / prefix
    scene.middle.run("ip", "link", "add", "vmnet1", "type", "veth", "peer", "eth0", "netns", vm.netns)
    scene.middle.run("ip", "link", "set", "vmnet1", "up")
    with scene.firewall() as running:
        vm.run("ip", "link", "set", "eth0", "up")

        def has_its_address() -> bool:
            scene.wire.sock.send(bytes(news))
            return any(one.startswith("fd09::") for one in running.status()["identity"]["addresses"])

        until(has_its_address, "an address of the prefix")
        assert running.status()["refused"] == {"refused": 0}
        assert not [line for line in running.warnings() if "spoofed" in line]
    scene.middle.run("ip", "link", "del", "vmnet1")


@pytest.mark.parametrize("link", ["qemu:127.0.0.1:5000,server", "channel:/run/x,server", "tap:vmnet1"])
def test_a_link_of_which_nothing_tells_who_is_there_is_refused(scene: Scene, link: str) -> None:
    ran = scene.middle.run(
        BIN / "vtl-fw", "--iface", link, "--uplink", "eth0", "--rules", "/dev/null", "--vm", "reappearing",
        check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "use 'vtl-fw forget' instead" in ran.stderr


def test_forget_without_a_link_cuts_off_no_other_vm(scene: Scene) -> None:
    """Where several services run, one is to be named."""
    environment = {**os.environ, "VTL_RUN": str(scene.lab.dir)}
    with tap(scene):
        for name in "one", "two":
            (scene.lab.dir / f"vtl-fw-{name}.sock").unlink(missing_ok=True)
        with scene.firewall() as running:
            for name in "one", "two":
                (scene.lab.dir / f"vtl-fw-{name}.sock").symlink_to(running.socket)
            ran = scene.middle.run(BIN / "vtl-fw", "forget", check=False, env=environment)
    assert ran.returncode == 2
    assert "choose one by --link" in ran.stderr
