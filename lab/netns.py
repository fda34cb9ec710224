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
then kills the rest, daemons and those that changed their user included. After kill -9 a directory
of files stays, and the next lab removes it.

Programs in a lab must not trust PIDs across the border: os.getpid() inside differs from Popen.pid
outside, and outside (where /proc is) is where Popen.pid and os.kill count.
"""

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from lab import http
from lab.guest import Guest, Machine
from lab.host import Host
from lab.rundir import run_dir
from vtl_tools.common.errors import PermissionNeededError
from vtl_tools.common.selftest import namespaces

__all__ = ["Guest", "Host", "Lab"]


class Lab:
    """Hosts and the wires between them; a context manager. Many may exist at once, in any process.

    dir: a directory for files that end with the lab.
    """

    def __init__(self) -> None:
        if os.geteuid() != 0:
            raise PermissionNeededError("lab: namespaces and taps are not permitted; run as root")
        self.hosts: list[Host] = []
        self.guests: list[Guest] = []
        self._servers = 0
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

    def bridge(self, host: Host, name: str, ports: Iterable[str]) -> None:
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

    def guest(self, name: str, *, on: Host, wait: bool = True, **machine: Any) -> Guest:
        """Boot a real guest whose QEMU runs within the host `on`.

        machine: the fields of lab.guest.Machine, as tap="vmnet1", address="10.0.0.2/24".
        wait=False: return at once; guest.ready() waits. So that several boot side by side.
        """
        number = len(self.guests) + 1
        guest = Guest(name, on, Machine(**machine), self.dir / f"{number}-{name}", number)
        self.guests.append(guest)
        self._stack.callback(guest.kill)
        return guest.ready() if wait else guest

    def http(self, host: Host, port: int = 80, files: Mapping[str, bytes] | None = None) -> http.Server:
        """Run an HTTP server in a host, on all its addresses, and return it when it listens.

        files: what it serves, by path, as {"index.html": b"hello"}.
        """
        self._servers += 1
        return http.serve(host, port, files or {}, self.dir / f"http-{self._servers}")

    def close(self) -> None:
        """End everything made within. Idempotent."""
        self._stack.close()


def _start_init() -> subprocess.Popen[bytes]:
    """Start the first process of a new PID namespace. It ends with its standard input, hence with us.

    A shell that waits for another program also reaps the daemons of the lab that end.
    """

    def start() -> subprocess.Popen[bytes]:
        namespaces.unshare(namespaces.CLONE_NEWPID)
        return subprocess.Popen(
            ["sh", "-c", "cat; exit"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    with ThreadPoolExecutor(1) as thread:  # its children are in there, ours are not
        return thread.submit(start).result()


def _end_init(init: subprocess.Popen[bytes]) -> None:
    init.kill()
    init.communicate()
