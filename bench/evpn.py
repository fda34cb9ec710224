"""Convergence and cost of BGP EVPN with FRR, gobgpd and vtl-vnet, in one run.

usage: bench/evpn.py [--quick] [--json]      (needs root)

From the first frame of a station to the table of another host, medians (and _max_ms, the longest):

kernel_new_ms       a new MAC at a host of FRR, until the kernel of another one sends there
kernel_moved_ms     the same for a MAC that moved
heard_new_ms        a new MAC at a host of FRR, until vtl-vnet sends there
heard_moved_ms      the same for one that was at vtl-vnet
own_new_ms          a new MAC at vtl-vnet, until the kernel of a host of FRR sends there
own_moved_ms        the same for one that was at that host
killed_ms           bgpd is killed, until another host does not send there any more
ended_ms            vtl-vnet ends, until the same
silent_ms           the cable is cut, until the same: the hold time of BGP, here 9 s

A thousand hosts (with --quick 200) with 20 stations each; a speaker announces the routes of 200 of them:

hosts, routes
reflector_mb, frr_mb, gobgpd_mb, vnet_mb   memory for the routes: of bgpd of the reflector; of bgpd and zebra
                                           of a host; of gobgpd; of vtl-vnet
reflector_us, frr_us, gobgpd_us, vnet_us   CPU of the same for a route, microseconds
session_kb                                 memory of the reflector for each further host, by 8 hosts with FRR
frr_s, vnet_s                              until the kernel of a host of FRR has all, until vtl-vnet has
routes_per_s                               a second, in the slower of both
"""

import argparse
import json
import os
import re
import socket
import statistics
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scene import Service, say, services

from lab.frr import AS, Fabric, FabricHost, GobgpHost
from lab.netns import Lab
from lab.wait import until
from vtl_tools.services.vnet.evpn import gobgp_api as api
from vtl_tools.services.vnet.evpn.grpc import GrpcConnection, GrpcEnd, GrpcMessage

VNI = 100
STATIONS = 20
HOSTS_OF_SPEAKER = 200
"""A speaker hears none of the routes, and has few of its own: GoBGP 3.10 compares each with all others."""
_NEIGHBOURS = 4  # RTMGRP_NEIGH
_RCVBUFFORCE = 33
_NEW, _GONE = 28, 29
_DESTINATION, _LLADDR = 1, 2
EVERY = bytes(6)


class Table:
    """The kernel's forwarding to VTEPs in a host, as it changes."""

    def __init__(self, host: FabricHost) -> None:
        with host.host.enter():
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
        self._sock.bind((0, _NEIGHBOURS))
        self._sock.settimeout(60)

    def until(self, kind: int, mac: bytes, vtep: str) -> float:
        """Return when an entry came or went."""
        while True:
            octets, now = self._sock.recv(1 << 16), time.monotonic()
            if (kind, mac, socket.inet_aton(vtep)) in self._read(octets):
                return now

    def count(self, most: int) -> float:
        """Return when so many entries have come."""
        found: set[bytes] = set()
        while len(found) < most:
            found |= {mac + vtep for kind, mac, vtep in self._read(self._sock.recv(1 << 16)) if kind == _NEW}
        return time.monotonic()

    def _read(self, octets: bytes) -> list[tuple[int, bytes, bytes]]:
        found, at = [], 0
        while at < len(octets):
            size, kind = struct.unpack_from("=IH", octets, at)
            attributes, where = {}, at + 28
            while where < at + size:
                length, number = struct.unpack_from("=HH", octets, where)
                attributes[number] = octets[where + 4 : where + length]
                where += (length + 3) & ~3
            found.append((kind, attributes.get(_LLADDR, b""), attributes.get(_DESTINATION, b"")))
            at += (size + 3) & ~3
        return found

    def close(self) -> None:
        self._sock.close()


class Stations:
    """Sends a frame of any station at a host: v1 is a port of its bridge, or a link of vtl-vnet."""

    def __init__(self, lab: Lab, host: FabricHost) -> None:
        vm = lab.host(f"vm-{host.host.name}", ipv6=False)
        lab.veth(vm, "eth0", host.host, "v1")
        self._sock: socket.socket = vm.call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
        self._sock.bind(("eth0", 0))
        lab.defer(self._sock.close)

    def speak(self, mac: bytes) -> float:
        now = time.monotonic()
        self._sock.send(b"\xff" * 6 + mac + b"\x88\xb5" + bytes(46))
        return now


def mac_of(number: int) -> bytes:
    return bytes((2, 0)) + number.to_bytes(4)


def heard(service: Service, mac: bytes, vtep: str) -> float:
    def is_there() -> bool:
        return service.status()["stations"].get(mac.hex(":"), {}).get("vtep") == vtep

    until(is_there, f"{mac.hex(':')} at {vtep}")
    return time.monotonic()


def figures(name: str, took: list[float]) -> dict[str, float]:
    ms = [1000 * one for one in took]
    say(f"{name}: {min(ms):.0f} to {max(ms):.0f} ms, median {statistics.median(ms):.0f}")
    return {f"{name}_ms": statistics.median(ms), f"{name}_max_ms": max(ms)}


def vtep(lab: Lab, own: GobgpHost) -> Any:
    spec = f"dc=evpn:{VNI},local={own.address},gobgp=unix:{own.api}"
    return services(lab, "vtl-vnet", (own.host, ("--iface", "v1", "--attach", spec)))


def convergence(lab: Lab, rounds: int) -> dict[str, float]:
    fabric = Fabric(lab)
    one, two, three = (fabric.host(name) for name in ("one", "two", "three"))
    own = fabric.gobgp("own")
    stations = {host.host.name: Stations(lab, host) for host in (one, two, three, own)}
    for host in one, two, three:
        host.overlay(VNI, "v1")
    fabric.ready(VNI)
    found: dict[str, float] = {}
    numbers = iter(range(1, 1 << 20))
    table = Table(three)
    lab.defer(table.close)
    with ExitStack() as stack:
        (service,) = stack.enter_context(vtep(lab, own))
        until(lambda: own.address in three.floods_to(VNI), "vtl-vnet's VTEP")

        def kernel(source: FabricHost, mac: bytes) -> float:
            began = stations[source.host.name].speak(mac)
            return table.until(_NEW, mac, source.address) - began

        def ours(source: FabricHost, mac: bytes) -> float:
            began = stations[source.host.name].speak(mac)
            return heard(service, mac, source.address) - began

        def settled(mac: bytes, where: FabricHost) -> None:
            """Wait until all know: one frame that comes before the route to its station is no move."""
            for host in {one, two, three} - {where}:
                until(lambda h=host: h.reaches(VNI, mac.hex(":"), where.address), "the route")

        took: dict[str, list[float]] = {}
        for _ in range(rounds):
            mac = mac_of(next(numbers))
            took.setdefault("kernel_new", []).append(kernel(one, mac))
            settled(mac, one)
            took.setdefault("kernel_moved", []).append(kernel(two, mac))
            mac = mac_of(next(numbers))
            took.setdefault("own_new", []).append(kernel(own, mac))
            settled(mac, own)
            took.setdefault("heard_moved", []).append(ours(one, mac))
            settled(mac, one)
            took.setdefault("own_moved", []).append(kernel(own, mac))
            mac = mac_of(next(numbers))
            took.setdefault("heard_new", []).append(ours(one, mac))
        for name, each in took.items():
            found |= figures(name, each)
        began = time.monotonic()
    found["ended_ms"] = 1000 * (table.until(_GONE, EVERY, own.address) - began)
    daemon = one.daemon("bgpd")
    began = time.monotonic()
    daemon.kill()
    found["killed_ms"] = 1000 * (table.until(_GONE, EVERY, one.address) - began)
    began = time.monotonic()
    fabric.switch.run("ip", "link", "set", two.port, "down")
    found["silent_ms"] = 1000 * (table.until(_GONE, EVERY, two.address) - began)
    return found


class Speaker:
    """Announces the routes of many hosts by one gobgpd."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._grpc = GrpcConnection("gobgpd")
        self._call = self._grpc.call(f"{api.SERVICE}AddPathStream", api.add_paths([]), more=True)

    def say(self, paths: list[bytes]) -> None:
        for at in range(0, len(paths), 20):
            message = api.add_paths(paths[at : at + 20])
            while self._grpc.room(self._call) < len(message):
                self._exchange()
            self._grpc.send(self._call, message)
        self._exchange()

    def _exchange(self) -> list[GrpcMessage | GrpcEnd]:
        self._sock.settimeout(60)
        self._sock.sendall(self._grpc.outbox)
        self._grpc.outbox.clear()
        self._sock.settimeout(0.01)
        try:
            return self._grpc.receive(self._sock.recv(1 << 16))
        except TimeoutError:
            return []

    def close(self) -> None:
        self._sock.close()


def routes(hosts: int) -> list[bytes]:
    told = []
    for host in range(hosts):
        network = api.OwnNetwork(VNI, f"10.1.{host // 250}.{host % 250 + 1}", f"65000:{VNI}")
        told.append(api.path(network, b"", 0))
        told += [
            api.path(network, bytes((6, 0, 0)) + (host * 256 + n).to_bytes(3), 0) for n in range(STATIONS)
        ]
    return told


def memory_mb(*pids: int) -> float:
    def rss(pid: int) -> int:
        match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(match[1]) if match else 0

    return sum(map(rss, pids)) / 1024


def cpu_s(*pids: int) -> float:
    def ticks(pid: int) -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    return sum(map(ticks, pids)) / os.sysconf("SC_CLK_TCK")


def scale(lab: Lab, hosts: int) -> dict[str, float]:
    fabric = Fabric(lab)
    reflector = fabric.reflector.daemon("bgpd").pid
    first = memory_mb(reflector)
    frr = [fabric.host(f"h{n}") for n in range(9)]
    for host in frr[:2]:
        host.overlay(VNI)
    own = fabric.gobgp("own")
    speakers = [fabric.gobgp(f"many{n}") for n in range(max(1, hosts // HOSTS_OF_SPEAKER))]
    fabric.ready(VNI)
    silent = ["route-map none deny 10", "exit", f"router bgp {AS}", "address-family l2vpn evpn"]
    fabric.reflector.configure(*silent, *(f"neighbor {one.address} route-map none out" for one in speakers))
    found: dict[str, float] = {"session_kb": 1024 * (memory_mb(reflector) - first) / 9}
    far = frr[0]
    for host in (fabric.reflector, *fabric.hosts):  # a route to a next hop is looked for
        host.host.run("ip", "route", "add", "10.1.0.0/16", "dev", "eth0")
    told = routes(hosts)
    Stations(lab, own)
    with vtep(lab, own) as (service,):
        until(lambda: own.address in far.floods_to(VNI), "vtl-vnet's VTEP")
        gobgpd = own.process.pid
        parts: dict[str, tuple[int, ...]] = {
            "reflector": (reflector,), "frr": (far.daemon("bgpd").pid, far.daemon("zebra").pid),
            "gobgpd": (gobgpd,), "vnet": (service.process.pid,),
        }  # fmt: skip
        before = {name: (memory_mb(*pids), cpu_s(*pids)) for name, pids in parts.items()}
        table, senders = Table(far), [Speaker(one.api) for one in speakers]
        began = time.monotonic()
        for n, sender in enumerate(senders):
            sender.say(told[n :: len(senders)])
        table.count(len(told))
        found["frr_s"] = time.monotonic() - began
        while service.status()["overlay"]["dc"]["evpn"]["routes"] < len(told):
            time.sleep(0.25)  # the status of so many stations costs vtl-vnet milliseconds
        found["vnet_s"] = time.monotonic() - began
        for name, pids in parts.items():
            found[f"{name}_mb"] = memory_mb(*pids) - before[name][0]
            found[f"{name}_us"] = 1e6 * (cpu_s(*pids) - before[name][1]) / len(told)
        for each in (table, *senders):
            each.close()
    found |= {"hosts": hosts, "routes": len(told)}
    found["routes_per_s"] = len(told) / max(found["frr_s"], found["vnet_s"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    parts: list[tuple[Callable[[Lab, int], dict[str, float]], int]] = [
        (convergence, 10 if options.quick else 50), (scale, 200 if options.quick else 1000)
    ]  # fmt: skip
    found: dict[str, float] = {}
    for part, size in parts:
        with Lab() as lab:
            found |= part(lab, size)
    found = {key: round(value, 3) for key, value in found.items()}
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:20} {value}")


if __name__ == "__main__":
    main()
