"""Real guests: a Debian kernel in QEMU, with busybox, on a tap or a QEMU socket; ready in 3 to 4 seconds.

    with Lab() as lab:
        host = lab.host("host")
        host.tap("vmnet1")
        host.addr("vmnet1", "10.0.0.1/24")
        guest = lab.guest("vm", on=host, tap="vmnet1", address="10.0.0.2/24")
        assert guest.sh("ping -c1 10.0.0.1").status == 0

Guests boot side by side with wait=False, then guest.ready() on each.
"""

import contextlib
import logging
import math
import os
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.agent import Agent, Hangup, Late, Monitor, Result
from lab.cache import frames_program, guest_kernel
from lab.errors import CommandFailed, LabError
from lab.host import Host
from lab.initramfs import initramfs
from lab.wait import PATIENCE_S

log = logging.getLogger(__name__)

QEMU = "qemu-system-x86_64"
BOOT_S = 2 * PATIENCE_S  # 3 to 4 s on an idle core
LOG_LINES = 60  # of the boot log, in an error's message


@dataclass(frozen=True)
class Machine:
    """The parts of a guest; the keywords of Lab.guest().

    tap: a tap interface of the host (vnet header and offloads on). qemu_socket: instead of a tap, the
    address of a frame stream, "unix:PATH" or "HOST:PORT": the guest connects to it once, at its start; or
    "...,server": the guest listens there. user: the name or id of who runs QEMU; a tap must be theirs.
    address: one or more, as "10.0.0.2/24" or "10.0.0.2/24 fd00::2/64", given to eth0 after the boot.
    gateway: one or more, for the default route. mtu: told to the guest by the device (host_mtu).
    extra: programs of this machine for the guest, as "/usr/bin/iperf3". modules: kernel modules for the
    guest. extra_netdev: further interfaces, eth1 and on, each a QEMU -netdev without its id, as
    "tap,ifname=vmnet2,script=no,downscript=no". nic: more properties of eth0's virtio-net-pci, as
    "mrg_rxbuf=off". args: more of QEMU's arguments. append: more of the kernel's.
    """

    tap: str | None = None
    qemu_socket: str | None = None
    mac: str | None = None
    address: str | None = None
    gateway: str | None = None
    mtu: int | None = None
    mem: str = "256M"
    smp: int = 1
    user: str | int | None = None
    extra: Sequence[str] = ()
    modules: Sequence[str] = ()
    extra_netdev: Sequence[str] = ()
    nic: str = ""
    args: Sequence[str] = ()
    append: str = ""


@dataclass
class _Run:
    """One life of a guest's QEMU."""

    process: subprocess.Popen[bytes]
    sockets: list[socket.socket]
    agent: Agent
    monitor: Monitor | None = field(default=None)


class Guest:
    """A virtual machine. Made by Lab.guest().

    log: the file with its boot log. qmp_socket: a QMP socket for the programs under test; the lab has
    another for itself.
    """

    def __init__(self, name: str, host: Host, machine: Machine, directory: Path, number: int) -> None:
        if shutil.which(QEMU) is None:
            raise LabError(f"guest: no {QEMU} here; install Debian's qemu-system-x86")
        if machine.tap and machine.qemu_socket:
            raise LabError(f"guest {name}: a tap and a qemu_socket; give one")
        self.name, self.host, self.machine, self.dir = name, host, machine, directory
        self.log = directory / "boot.log"
        self.qmp_socket = directory / "qmp.sock"
        self.mac = machine.mac or f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}"
        self._number = number
        self._run: _Run | None = None
        directory.mkdir()
        if machine.user is not None:
            shutil.chown(directory, machine.user)
        self.start()

    def __repr__(self) -> str:
        return f"<Guest {self.name} on {self.host.name}>"

    def start(self) -> None:
        """Start QEMU. Returns at once; ready() waits for the guest."""
        if self._run is not None:
            raise LabError(f"guest {self.name}: runs already")
        kernel = guest_kernel()
        archive = initramfs(kernel, self.machine.extra, self.machine.modules)
        ours, theirs = zip(*(socket.socketpair() for _ in range(2)), strict=True)
        fds = [sock.fileno() for sock in theirs]
        command = [QEMU, *self._command(kernel.image, archive, fds)]
        options: dict[str, Any] = {"pass_fds": fds, "umask": 0o022, "cwd": "/"}
        if self.machine.user is not None:
            options["user"] = self.machine.user
            options["group"] = _group(self.machine.user)
        with (self.dir / "qemu.log").open("wb") as messages:
            process = self.host.popen(*command, stdout=messages, stderr=messages, **options)
        for sock in theirs:
            sock.close()
        self._run = _Run(process, list(ours), Agent(ours[0]))

    def _command(self, image: Path, archive: Path, fds: list[int]) -> list[str]:
        machine = self.machine
        command = ["-name", self.name, "-smp", str(machine.smp), "-m", machine.mem]
        command += boot_arguments(image, archive, self.log, machine.append)
        command += ["-chardev", f"socket,id=agent,fd={fds[0]}"]
        command += ["-chardev", f"socket,id=qmp,fd={fds[1]}", "-mon", "chardev=qmp,mode=control"]
        command += ["-qmp", f"unix:{self.qmp_socket},server=on,wait=off"]
        return [*command, *self._nics(), *machine.args]

    def _nics(self) -> list[str]:
        machine = self.machine
        netdevs = []
        if machine.tap:
            netdevs.append(f"tap,ifname={machine.tap},script=no,downscript=no,vhost=off")
        elif machine.qemu_socket:
            netdevs.append(stream_netdev(machine.qemu_socket))
        arguments = []
        for index, netdev in enumerate([*netdevs, *machine.extra_netdev]):
            mac = self.mac if index == 0 else f"52:54:{index:02x}:00:{self._number & 255:02x}:{index:02x}"
            properties = [f"virtio-net-pci,netdev=net{index},mac={mac},romfile="]
            if index == 0 and machine.mtu:
                properties.append(f"host_mtu={machine.mtu}")
            if index == 0 and machine.nic:
                properties.append(machine.nic)
            kind, comma, rest = netdev.partition(",")
            arguments += ["-netdev", f"{kind},id=net{index}{comma}{rest}", "-device", ",".join(properties)]
        return arguments

    def ready(self, timeout: float = BOOT_S) -> "Guest":
        """Wait until the guest has booted and its addresses are set; return it."""
        begin = time.monotonic()
        setup = ["set -e"]
        if self.machine.tap or self.machine.qemu_socket or self.machine.extra_netdev:
            setup.append("for path in /sys/class/net/eth*; do ip link set ${path##*/} up; done")
        if self.machine.tap and ":" in (self.machine.address or ""):  # IPv6 waits for the link, up to 1 s
            setup.append("until grep -q up /sys/class/net/eth0/operstate; do usleep 10000; done")
        setup += [f"ip addr add {address} dev eth0" for address in (self.machine.address or "").split()]
        setup += [f"ip route add default via {gateway}" for gateway in (self.machine.gateway or "").split()]
        self.sh("\n".join(setup), timeout=timeout, check=True)
        log.debug("guest %s: ready after %.2f s of waiting", self.name, time.monotonic() - begin)
        return self

    def sh(
        self, script: str, *, stdin: bytes = b"", timeout: float = PATIENCE_S, check: bool = False
    ) -> Result:
        """Run a shell script in the guest, as root, to its end, and return its status and output.

        Start servers with `command >/tmp/log 2>&1 &`: they go on, and later calls find them running.
        timeout: seconds; then the script is killed in the guest, and LabError raised. check: raise
        CommandFailed unless the status is 0. LabError, with the end of the boot log, if the guest is
        gone or does not answer.
        """
        run = self._running()
        limit = math.ceil(timeout)
        try:
            result = run.agent.sh(script, stdin, limit)
        except (Hangup, Late) as error:
            raise LabError(f"guest {self.name}: {script!r}: {error}\n{self.report()}") from None
        if result.status == 137:  # what timeout(1) -s KILL leaves
            raise LabError(
                f"guest {self.name}: {script!r}: killed, as after {limit} s\n{result.out}{result.err}"
            )
        if check and result.status:
            raise CommandFailed(f"guest {self.name}", [script], result.status, result.out + result.err)
        return result

    def lease(self) -> dict[str, str]:
        """Have eth0, and the resolver, set up by DHCP, as by any system; return what was leased.

        By udhcpc's names: ip, mask (bits), router, dns, mtu, lease (seconds), serverid. CommandFailed if
        nobody answers.
        """
        ran = self.sh("udhcpc -i eth0 -n -q -f -t 5 -T 1 2>&1 && cat /run/lease >&2", check=True)
        lines = ran.err.splitlines()
        return dict(line.partition(" ")[::2] for line in lines)

    def put(self, path: str, data: bytes) -> None:
        """Write a file in the guest."""
        self.sh(f"cat >{shlex.quote(path)}", stdin=data, check=True)

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        return self.sh(f"cat {shlex.quote(path)}", check=True).stdout

    def inject(self, frames: Iterable[bytes], interface: str = "eth0") -> list[str]:
        """Have root in the guest send frames as they are, in order; the kernel adds nothing.

        frames: each begins with a virtio_net_hdr, as the tools' do; it may lie, too. Returns a line for
        each that the guest's kernel refused: its number, from 1, and why.
        """
        program = "/bin/frames"
        if self.sh(f"test -x {program}").status:
            self.put(program, frames_program().read_bytes())
            self.sh(f"chmod 755 {program}", check=True)
        lines = "".join(f"{frame.hex()}\n" for frame in frames)
        return self.sh(f"{program} {interface}", stdin=lines.encode(), check=True).out.splitlines()

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command, as qmp("stop") or qmp("migrate", uri=...), and return what it returns."""
        run = self._running()
        try:
            if run.monitor is None:
                run.monitor = Monitor(run.sockets[1], PATIENCE_S)
            return run.monitor.execute(command, arguments, PATIENCE_S)
        except (Hangup, Late) as error:
            raise LabError(f"guest {self.name}: qmp {command}: {error}\n{self.report()}") from None

    def kill(self) -> None:
        """End QEMU at once, as a power cut would. Idempotent."""
        if self._run is not None:
            self._run.process.kill()
            self._run.process.wait()
            for sock in self._run.sockets:
                sock.close()
            self._run = None
            self.qmp_socket.unlink(missing_ok=True)

    def restart(self) -> "Guest":
        """Kill QEMU and boot the same machine anew; return it when it is ready. Its files are gone."""
        self.kill()
        self.start()
        return self.ready()

    def report(self) -> str:
        """Return what QEMU said and the end of the boot log, for a message."""
        parts = []
        for path in self.dir / "qemu.log", self.log:
            with contextlib.suppress(FileNotFoundError):
                lines = path.read_text(errors="replace").splitlines()[-LOG_LINES:]
                parts.append("\n".join([f"--- {self.name}: {path.name}", *lines]))
        return "\n".join(parts)

    def _running(self) -> _Run:
        if self._run is None:
            raise LabError(f"guest {self.name}: does not run")
        return self._run


def machine_arguments(log: Path) -> list[str]:
    """Return QEMU's arguments for any machine that is to boot the lab's guest.

    The machine needs memory, and the character device "agent" for Agent. log: the file for its boot log.
    """
    kernel = guest_kernel()
    return boot_arguments(kernel.image, initramfs(kernel), log)


def boot_arguments(image: Path, archive: Path, log: Path, append: str = "") -> list[str]:
    """Return QEMU's arguments that boot an archive, and connect its shell to the character device "agent"."""
    accel = os.environ.get("VTL_GUEST_ACCEL", "tcg")  # kvm where it works
    kernel_line = f"console=ttyS0 panic=-1 cryptomgr.notests apparmor=0 {append}"
    command = ["-accel", accel, "-cpu", "max", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-no-reboot", "-kernel", str(image), "-initrd", str(archive), "-append", kernel_line]
    command += ["-serial", f"file:{log}"]
    return [*command, "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent"]


def _group(user: str | int) -> int:
    """Return a user's own group. One without an entry has none, and gets the group of its number."""
    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, int):
            return user
        raise LabError(f"guest: no user {user}") from None
    return entry.pw_gid


def stream_netdev(spec: str) -> str:
    """Turn "unix:PATH" or "HOST:PORT", perhaps with ",server", into QEMU's -netdev stream, without id."""
    address, _, role = spec.partition(",")
    server = "on" if role == "server" else "off"
    kind, _, rest = address.partition(":")
    where = f"addr.type=unix,addr.path={rest}"
    if kind != "unix":
        where = f"addr.type=inet,addr.host={kind},addr.port={rest}"
    return f"stream,server={server},{where}"
