"""Two modules of vtl-udt in one process: real sessions over unix sockets, on a manual clock.

client = modules.client.open(80)          # a TCP endpoint at the near site
modules.run()                             # until nothing moves any more
server = modules.server.accepted[0]       # its other end at the far site
"""

import os
import socket
from collections import deque
from dataclasses import replace

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC
from vtl_tools.common.packet import arp, derive
from vtl_tools.common.packet.address import ip, mac
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.session.base import PacketCounts
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.udt.allowed import AllowList
from vtl_tools.services.udt.near import FarModule
from vtl_tools.services.udt.stage import Transformer
from vtl_tools.services.udt.start import EVERYWHERE
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.dialer import Dialer
from vtl_tools.services.udt.transport.session import SessionConfig

KEY = b"k" * 32
CONFIG = replace(Config(), delayed_ack_s=0.0, time_wait_s=1.0, no_delay=True)


class Wire(socket.socket):
    """A connection of a transport: one end of a pair of unix sockets."""

    remote = ("198.51.100.1", 40000)

    def connected(self, events):
        return 0

    def packets(self):
        return PacketCounts()

    def expect(self, rate):
        pass


class Cable:
    """A transport within the process; a listener at one end at most."""

    capabilities: frozenset[int] = frozenset()

    def __init__(self, name="tcp"):
        self.name, self.address = name, ("198.51.100.2", 7700)
        self._waiting = deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)

    def start(self):
        pass

    def connect(self, address, rtt_s):
        ours, theirs = (Wire(fileno=end.detach()) for end in socket.socketpair())
        for end in ours, theirs:
            end.setblocking(False)
        self._waiting.append(theirs)
        os.eventfd_write(self._bell, 1)
        return ours

    def window(self, rtt_s):
        return 1 << 20

    def listen(self, address):
        return self

    def accept(self):
        if not self._waiting:
            raise BlockingIOError
        return self._waiting.popleft()

    def fileno(self):
        return self._bell

    def close(self):
        for end in self._waiting:
            end.close()
        self._waiting.clear()
        if self._bell >= 0:
            os.close(self._bell)
            self._bell = -1


class Station:
    """A machine at one site: TCP endpoints, and ARP for its address. refuses: SYNs; is_mute: no ARP."""

    def __init__(self, address, hardware):
        self.address, self.mac = ip(address), mac(hardware)
        self.endpoints, self.accepted, self.heard = {}, [], []
        self.refuses = self.is_mute = False
        self._port = 40000

    def open(self, port, address="10.2.0.5"):
        """Connect to an address behind the gateway."""
        self._port += 1
        path = Path(self.mac, GATEWAY_MAC, self.address, ip(address), self._port, port)
        endpoint = Endpoint(path, b"client", 0.0, CONFIG)
        endpoint.connect()
        self.endpoints[endpoint.framer.expected] = endpoint
        return endpoint

    def take(self, frame, now):
        """Take a frame of the module; return those that answer it at once."""
        pkt = Packet.at(bytearray(frame))
        self.heard.append(pkt)
        if pkt.arp is not None:
            asked = pkt.arp.oper == arp.REQUEST and pkt.arp.tpa == self.address and not self.is_mute
            return [derive.arp_reply(pkt, self.mac)] if asked else []
        if pkt.tcp is None:
            return []
        endpoint = next((each for each in self.endpoints.values() if self._is_of(each, pkt)), None)
        if endpoint is None:
            if not pkt.is_syn:
                return []
            if self.refuses:
                return [derive.rst(pkt)]
            endpoint = Endpoint(Path.answering(frame), b"server", now, CONFIG)
            endpoint.listen()
            endpoint.receive(bytearray(frame), now)
            endpoint.accept()
            self.endpoints[endpoint.framer.expected] = endpoint
            self.accepted.append(endpoint)
            return []
        endpoint.receive(bytearray(frame), now)
        return []

    @staticmethod
    def _is_of(endpoint, pkt):
        path = endpoint.path
        ends = (path.remote, path.local, path.remote_port, path.local_port)
        return ends == (pkt.ip.src, pkt.ip.dst, pkt.tcp.sport, pkt.tcp.dport)

    def frames(self, now):
        """Return the segments that its endpoints send."""
        for endpoint in self.endpoints.values():
            due = endpoint.deadline()
            if due is not None and now >= due:
                endpoint.wake(now)
        return [bytes(frame) for each in self.endpoints.values() for frame in each.transmit(now)]


class Site:
    """One module and the station behind it. events: those of the stage; uplinked: frames on its uplink."""

    def __init__(self, stage, station):
        self.stage, self.station = stage, station
        self.events, self.uplinked, self._sent = [], [], []
        stage.event = lambda name, **fields: self.events.append((name, fields))
        stage.out_pieces[0] = lambda frames: self._sent.extend(b"".join(pieces) for pieces in frames)
        if len(stage.out) > 1:
            stage.out[1] = lambda batch, now: self.uplinked.extend(bytes(frame) for frame in batch)
            stage.out[0] = lambda batch, now: self._sent.extend(bytes(frame) for frame in batch)

    def push(self, frames, now, port=0):
        """Let frames come in at a port."""
        if frames:
            self.stage.on_batch(port, Batch.of(frames), now)

    def turn(self, now):
        """Carry once; return whether anything moved."""
        frames = self.station.frames(now)
        self.push(frames, now)
        moved = bool(frames)
        for source in self.stage.sources:
            moved |= source.poll(now)
        self.stage.settle(now)
        due = self.stage.deadline()
        if due is not None and now >= due:
            self.stage.wake(now)
            self.stage.settle(now)
        sent, self._sent = self._sent, []
        answers = [bytes(answer) for frame in sent for answer in self.station.take(frame, now)]
        self.push(answers, now)
        return moved or bool(sent)


class Modules:
    """A near and a far module, joined by a cable. allowed: of the far one; uplink: of the near one.

    stations: of both.
    """

    def __init__(self, allowed=None, *, uplink=False, behind=None, limits=None, far_key=KEY, stations=None):
        self.now = 100.0
        self.cable = Cable()
        config, limits = SessionConfig(), limits or RelayLimits()

        def told(name, **fields):
            self.near.stage.event(name, **fields)

        self.dialer = Dialer(self.cable, self.cable.address, KEY, config, event=told)
        self.module = FarModule("far", {"tcp": self.dialer}, has_bbr=True, event=told)
        behind = [(net, self.module) for net in behind or EVERYWHERE]
        nobody = AllowList([], [])
        stations = stations or {}
        near = Transformer(behind, nobody, secret=bytes(32), uplink=uplink, limits=limits, stations=stations)
        far = Transformer([], allowed or nobody, secret=bytes(32), limits=limits, stations=stations)
        self.near = Site(near, Station("10.1.0.5", "02:00:00:00:00:01"))
        self.far = Site(far, Station("10.2.0.5", "02:00:00:00:00:02"))

        def answerer(on_flow):
            return Answerer(
                self.cable, self.cable.address, far_key, config, on_flow,
                event=lambda name, **fields: far.event(name, **fields),
            )  # fmt: skip

        far.listen("tcp", answerer)
        self.client, self.server = self.near.station, self.far.station
        self.run()

    def run(self, seconds=0.0):
        """Let time pass and everything move, until nothing does."""
        end = self.now + seconds
        while True:
            for _ in range(2000):
                if not self.near.turn(self.now) | self.far.turn(self.now):
                    break
            if self.now >= end:
                return
            self.now = min(end, self.now + 0.05)

    def close(self):
        for site in self.near, self.far:
            for source in site.stage.sources:
                source.close()
        self.cable.close()
