"""A machine of its own within this one, as far as the network goes."""

import contextlib
import logging
import os
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from lab import kernel
from lab.errors import CommandFailed
from lab.wait import PATIENCE_S
from lab.wire import Wire
from vtl_tools.common.selftest import namespaces

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


class Host:
    """A machine with a network stack of its own, and everything else shared. Made by Lab.host().

    name: for messages only. netns: a path that names the network namespace to other programs, good
    until the lab ends (nsenter --net=PATH, ip link set ... netns PATH).
    """

    def __init__(self, name: str, init_pid: int, ipv6: bool) -> None:
        self.name = name
        self.netns = ""
        self.processes: list[subprocess.Popen[Any]] = []
        self._wires: list[Wire] = []
        self._thread = ThreadPoolExecutor(1, f"host-{name}")
        try:
            self.call(self._become, init_pid)
            self._settle(ipv6)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.netns}>"

    def _become(self, init_pid: int) -> None:
        namespaces.unshare(namespaces.CLONE_NEWNET | namespaces.CLONE_NEWNS)
        namespaces.setns(f"/proc/{init_pid}/ns/pid", namespaces.CLONE_NEWPID)
        kernel.mount("none", "/", None, kernel.MS_REC_PRIVATE)
        kernel.mount("sysfs", "/sys", "sysfs")  # /sys/class/net shows the namespace it was mounted in
        self.netns = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"

    def _settle(self, ipv6: bool) -> None:
        for scope in "all", "default":
            self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)  # addresses are usable at once
            self.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", int(not ipv6))
        self.run("ip", "link", "set", "dev", "lo", "up")

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function within this host, in the host's own thread, and return what it returns.

        It sees this host's /sys and /proc/sys/net; processes that it starts stay in this host.
        """
        return self._thread.submit(function, *args, **kwargs).result()

    @contextlib.contextmanager
    def enter(self) -> Iterator[Self]:
        """Move the calling thread into this host's network and back at the end.

        Sockets opened within stay in this host for good, also after the end and in other threads.
        /sys stays the one outside.
        """
        with namespaces.inside_network(self.netns):
            yield self

    def popen(self, *command: str | os.PathLike[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a process in this host. options: as subprocess.Popen takes them (user=, stdout=, ...).

        It is killed at the end of the lab, with all its descendants.
        """
        options.setdefault("cwd", os.getcwd())  # noqa: PTH109 - the thread has a working directory of its own
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("start_new_session", True)  # a ^C is for the test, which ends the lab
        if "user" in options:
            options.setdefault("extra_groups", [])
        log.debug("%s: %s", self.name, command)
        process: subprocess.Popen[Any] = self.call(lambda: subprocess.Popen(command, **options))
        self.processes.append(process)
        return process

    def run(
        self,
        *command: str | os.PathLike[str],
        check: bool = True,
        timeout: float | None = PATIENCE_S,
        input: str | None = None,  # noqa: A002 - as in subprocess.run
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this host to its end, and return its status and its output as text.

        check: raise CommandFailed, with the output in the message, unless the status is 0.
        timeout: seconds; then the command is killed and subprocess.TimeoutExpired is raised.
        """
        pipe = subprocess.PIPE
        stdin = subprocess.DEVNULL if input is None else pipe
        process = self.popen(*command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, **options)
        with process:
            try:
                out, err = process.communicate(input, timeout)
            except BaseException:
                process.kill()
                raise
            finally:
                self.processes.remove(process)
        if check and process.returncode:
            raise CommandFailed(self.name, [str(word) for word in command], process.returncode, out + err)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def addr(self, interface: str, *addresses: str, detect: bool = False) -> None:
        """Give an interface addresses, as 10.0.0.2/24 or fd00::2/64, and set it up.

        detect: run duplicate address detection for IPv6. Otherwise the addresses are usable at once.
        """
        for address in addresses:
            at_once = ["nodad"] if ":" in address and not detect else []
            self.run("ip", "addr", "add", address, "dev", interface, *at_once)
        self.run("ip", "link", "set", "dev", interface, "up")

    def route(self, destination: str, gateway: str) -> None:
        """Send what goes to `destination` (a prefix, or "default") by way of `gateway`."""
        self.run("ip", "route", "add", destination, "via", gateway)

    def sysctl(self, name: str, value: object) -> None:
        """Set a kernel variable of this host's network, as net.ipv4.ip_forward (an interface's: with /)."""
        path = name if "/" in name else name.replace(".", "/")
        self.call(Path("/proc/sys", path).write_text, str(value))

    def tap(self, interface: str, user: int | None = None, multi_queue: bool = False) -> None:
        """Make a tap interface and set it up. user: numeric id of the one who may open it, besides root."""
        owner = [] if user is None else ["user", str(user)]
        if user is not None:
            self.call(_let_all_open_tun)
        queues = ["multi_queue"] if multi_queue else []
        self.run("ip", "tuntap", "add", "dev", interface, "mode", "tap", "vnet_hdr", *owner, *queues)
        self.run("ip", "link", "set", "dev", interface, "up")

    def mac(self, interface: str) -> str:
        """Return the Ethernet address of an interface."""
        return self.call(Path(f"/sys/class/net/{interface}/address").read_text).strip()

    def wire(self, interface: str = "eth0") -> Wire:
        """Open a raw socket on an interface. It is closed at the end of the lab."""
        with self.enter():
            self._wires.append(Wire(interface))
        return self._wires[-1]

    def close(self) -> None:
        """Kill what runs in this host and let go of its namespaces. Idempotent."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            for stream in process.stdin, process.stdout, process.stderr:
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self.processes.clear()
        for wire in self._wires:
            wire.close()
        self._thread.shutdown()


def _let_all_open_tun() -> None:
    """Give the calling thread's mount namespace a /dev/net/tun as udev makes it: anybody may open it."""
    tun = Path("/dev/net/tun")
    device = tun.stat().st_rdev
    if not tun.stat().st_mode & 0o006:
        kernel.mount("tmpfs", "/dev/net", "tmpfs")
        os.mknod(tun, stat.S_IFCHR | 0o666, device)
        tun.chmod(0o666)  # whatever the umask
