"""Namespaces as hosts: a network of real kernels' network stacks, within one test.

    with Lab() as lab:
        host, server = lab.host("host"), lab.host("server")
        lab.veth(host, "vmnet1", server, "eth0")
        host.addr("vmnet1", "10.0.0.1/24")
        server.addr("eth0", "10.0.0.2/24")
        host.run("ping", "-c1", "10.0.0.2")

Nothing here needs cleaning up, even after kill -9. A host is a *thread* of this process that lives in
network and mount namespaces of its own; they have no name, and go with the thread. All processes that a
lab starts live in one PID namespace, whose first process ends when a pipe from us closes; the kernel
then kills the rest, daemons and those that changed their user included. What stays after kill -9 is a
directory of files, and the next lab removes it.

What runs in a lab must not trust PIDs across the border: os.getpid() inside differs from Popen.pid
outside, and outside (where /proc is) is where Popen.pid and os.kill count.
"""

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from lab import kernel
from lab.errors import CommandFailed
from lab.rundir import run_dir
from vtl_tools.common.errors import PermissionNeededError

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

RUN_S = 30.0  # a command that takes longer than this is stuck


class Host:
    """A machine with a network stack of its own, and everything else shared. Made by Lab.host().

    name: for messages only. netns: a path that names the network namespace to other programs, good
    until the lab ends (nsenter --net=PATH, ip link set ... netns PATH).
    """

    def __init__(self, name: str, init_pid: int, ipv6: bool) -> None:
        self.name = name
        self.netns = ""
        self.processes: list[subprocess.Popen[Any]] = []
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
        kernel.unshare(kernel.CLONE_NEWNET | kernel.CLONE_NEWNS)
        kernel.setns(f"/proc/{init_pid}/ns/pid", kernel.CLONE_NEWPID)
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
        outside = os.open(kernel.NET_NS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            kernel.setns(self.netns, kernel.CLONE_NEWNET)
            try:
                yield self
            finally:
                kernel.setns_fd(outside, kernel.CLONE_NEWNET)
        finally:
            os.close(outside)

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
        timeout: float | None = RUN_S,
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

    def addr(self, interface: str, *addresses: str) -> None:
        """Give an interface addresses, as 10.0.0.2/24 or fd00::2/64, and set it up."""
        for address in addresses:
            self.run("ip", "addr", "add", address, "dev", interface)
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
        queues = ["multi_queue"] if multi_queue else []
        self.run("ip", "tuntap", "add", "dev", interface, "mode", "tap", "vnet_hdr", *owner, *queues)
        self.run("ip", "link", "set", "dev", interface, "up")

    def mac(self, interface: str) -> str:
        """Return the Ethernet address of an interface."""
        return self.call(Path(f"/sys/class/net/{interface}/address").read_text).strip()

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
        self._thread.shutdown()


class Lab:
    """Hosts and the wires between them; a context manager. Many may exist at once, in any process.

    dir: a directory for files that end with the lab.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise PermissionNeededError("lab: namespaces and taps are not permitted; run as root")
        self.hosts: list[Host] = []
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:  # undoes the half that was done, if the rest fails
            self.dir = stack.enter_context(run_dir())
            self._init = _start_init()
            stack.callback(_end_init, self._init)
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def defer(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function at the end of the lab, before the hosts go. Latest first."""
        self._stack.callback(function, *args)

    def host(self, name: str, ipv6: bool = True) -> Host:
        """Add a host that has only its loopback interface. ipv6=False: it says nothing unasked."""
        host = Host(name, self._init.pid, ipv6)
        self.hosts.append(host)
        self._stack.callback(host.close)
        return host

    def veth(
        self,
        left: Host,
        left_name: str,
        right: Host,
        right_name: str,
        *,
        left_mac: str | None = None,
        right_mac: str | None = None,
        mtu: int | None = None,
    ) -> None:
        """Join two hosts (or one with itself) by a cable with an interface at each end, both up."""

        def end(mac: str | None) -> list[str]:
            size = [] if mtu is None else ["mtu", str(mtu)]
            return size if mac is None else [*size, "address", mac]

        peer = ["peer", "name", right_name, *end(right_mac), "netns", right.netns]
        left.run("ip", "link", "add", "name", left_name, *end(left_mac), "type", "veth", *peer)
        left.run(
            "ip", "link", "set", "dev", left_name, "up"
        )  # not in the line above: the peer is not there yet
        right.run("ip", "link", "set", "dev", right_name, "up")

    def bridge(self, host: Host, name: str, ports: list[str]) -> None:
        """Make a kernel bridge in a host; it forwards at once, silently, and past the host's filters."""
        bridge_nf = Path("/proc/sys/net/bridge")
        for table in "arptables", "ip6tables", "iptables":
            if (bridge_nf / f"bridge-nf-call-{table}").exists():
                host.sysctl(f"net.bridge.bridge-nf-call-{table}", 0)
        quiet = ["stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"]
        host.run("ip", "link", "add", name, "type", "bridge", *quiet)
        for port in ports:
            host.run("ip", "link", "set", "dev", port, "master", name)
            host.run("ip", "link", "set", "dev", port, "up")
        host.run("ip", "link", "set", "dev", name, "up")

    def close(self) -> None:
        """End everything made within. Idempotent."""
        self._stack.close()


def _start_init() -> subprocess.Popen[bytes]:
    """Start the first process of a new PID namespace. It ends with its standard input, hence with us."""

    def start() -> subprocess.Popen[bytes]:
        kernel.unshare(kernel.CLONE_NEWPID)
        return subprocess.Popen(
            ["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
        )

    with ThreadPoolExecutor(1) as thread:  # its children are in there, ours are not
        return thread.submit(start).result()


def _end_init(init: subprocess.Popen[bytes]) -> None:
    init.kill()
    init.communicate()
