"""Figure 6 in memory and virtual time: VMs of different subnets, a long way between them, and a LAN."""

import heapq
from contextlib import suppress
from itertools import count
from random import Random

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.services.subnet.stage import DEFAULT, DIRECT, FROM_VM, Subnet
from vtl_tools.services.subnet.vm import VM

import ipaddress  # isort: skip

LONG_S, SHORT_S = 0.05, 0.0001
LONG_TTL, SHORT_TTL = 62, 63
ALLOW = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]


class Site:
    """A VM, its gateway, and its vtl-subnet."""

    def __init__(self, world, number, **options):
        self.world, self.number = world, number
        self.mac = address.mac(f"52:54:00:00:00:0{number}")
        self.gateway = address.mac(f"02:00:00:00:00:f{number}")
        self.ip, self.ip6 = address.ip(f"10.{number}.0.5"), address.ip(f"fd0{number}::5")
        self.restart(**options)

    def restart(self, *, mac=None, networks=(), **options):
        options.setdefault("allow", ALLOW)
        if options.get("key") is not None and not networks:
            networks = [ipaddress.ip_network(own) for own in (self.ip, self.ip6)]
        self.got, self.told, self.long, self.direct, self.events = [], [], [], [], []
        vm = VM(mac, networks, learns=options.get("key") is None)
        self.stage = Subnet(vm, nonce=Random(self.number).randbytes, **options)
        self.stage.out = [self._to_vm, self._to_default, self._to_direct]
        self.stage.event = lambda name, cause, **fields: self.events.append((name, fields))
        for port in FROM_VM, DEFAULT, DIRECT:
            self.stage.on_mtu(port, 1500)
        self.dead = False

    @property
    def peers(self):
        return self.stage.peers

    def push(self, port, *frames):
        if not self.dead:
            self.stage.on_batch(port, Batch.of(frames), self.world.now)
            self.stage.settle(self.world.now)

    def _to_vm(self, batch, now):
        for frame in map(bytes, batch):
            with suppress(Malformed):
                (self.told if Packet.at(bytearray(frame)).icmp is not None else self.got).append(frame)

    def _to_default(self, batch, now):
        for frame in map(bytes, batch):
            self.long.append(frame)
            self.world.route(self, frame)

    def _to_direct(self, batch, now):
        for frame in map(bytes, batch):
            self.direct.append(frame)
            self.world.lan(self, frame)

    # --- what the VM does

    def packet(self, peer, payload=b"x", *, v6=False, **more):
        src, dst = (self.ip6, peer.ip6) if v6 else (self.ip, peer.ip)
        fields = {
            "src_mac": self.mac,
            "dst_mac": self.gateway,
            "src": src,
            "dst": dst,
            "sport": 5,
            "dport": 6,
        }
        return build.udp(**{**fields, **more}, payload=payload)

    def send(self, peer, *args, **more):
        self.push(FROM_VM, self.packet(peer, *args, **more))

    def took(self):
        """Take what the VM got: TTL, source address and source MAC of each packet."""
        found = [Packet.at(bytearray(frame)) for frame in self.got]
        self.got.clear()
        assert all(pkt.verify() for pkt in found)
        return [(pkt.ip.ttl, pkt.ip.src, pkt.eth.src) for pkt in found]

    def ways(self):
        """Take by which way the VM got each packet."""
        return "".join({LONG_TTL: "l", SHORT_TTL: "s"}[ttl] for ttl, _, _ in self.took())

    def state(self, peer, v6=False):
        shortcut = self.peers.table.shortcuts.get(peer.ip6 if v6 else peer.ip)
        return shortcut and shortcut.state.value

    def crash(self):
        self.dead = True


class World:
    """The LAN, the long way, and the clock."""

    def __init__(self, sites, **options):
        self.now, self._order, self._events = 1000.0, count(), []
        self.cut = set()
        """Pairs of numbers between which the LAN carries nothing in that direction."""
        self.lan_mtu = 1500
        self.heard = []
        self.stations = {}
        """Machines on the LAN that have no process: functions, by name, that get each frame."""
        self.sites = [Site(self, number + 1, **options) for number in range(sites)]

    def __iter__(self):
        return iter(self.sites)

    def later(self, delay_s, do, *args):
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), do, args))

    def route(self, sender, frame):
        try:
            pkt = Packet.at(bytearray(frame))
            if pkt.ip is None or pkt.eth.dst != sender.gateway or pkt.ip.ttl < 3:
                return
        except Malformed:
            return
        for site in self.sites:
            if pkt.ip.dst in (site.ip, site.ip6):
                pkt.eth.src, pkt.eth.dst = site.gateway, site.mac
                pkt.ip.ttl -= 2
                self.later(LONG_S, site.push, DEFAULT, bytes(pkt.buf))

    def lan(self, sender, frame):
        if len(frame) - VNET - 14 > self.lan_mtu:
            return
        self.heard.append(frame)
        for site in self.sites:
            if site is not sender and (sender.number, site.number) not in self.cut:
                self.later(SHORT_S, site.push, DIRECT, frame)
        for station in self.stations.values():
            station(frame)

    def run(self, seconds):
        """Let time go by, from deadline to deadline."""
        until = self.now + seconds
        while True:
            alive = [site.stage for site in self.sites if not site.dead]
            due = min([stage.deadline() for stage in alive], default=until)
            when = min(due, self._events[0][0]) if self._events else due
            if when > until:
                break
            self.now = max(self.now, when)
            while self._events and self._events[0][0] <= self.now:
                _, _, do, args = heapq.heappop(self._events)
                do(*args)
            for stage in alive:
                if stage.deadline() <= self.now:
                    stage.wake(self.now)
                    stage.settle(self.now)
                    assert stage.deadline() > self.now
        self.now = until

    def talk(self, *, v6=False):
        """Let each VM send to each other by way of its gateway, once."""
        for one in self.sites:
            for other in self.sites:
                if one is not other:
                    one.send(other, v6=v6)
        self.run(1.0)
        for site in self.sites:
            site.took()

    def chat(self, seconds, *, every=0.05, v6=False):
        """Let the VMs of the first two sites talk for a while, and return by which ways both got what."""
        one, other = self.sites[:2]
        until = self.now + seconds
        while self.now < until - 1e-9:
            one.send(other, v6=v6)
            other.send(one, v6=v6)
            self.run(every)
        return one.ways(), other.ways()


__all__ = ["ALLOW", "DEFAULT", "DIRECT", "FROM_VM", "LONG_TTL", "SHORT_TTL", "World"]
