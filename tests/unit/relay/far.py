"""Active endpoints at one side, their peer at the other: an endpoint of our own, on a manual clock."""

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.active import ActiveEndpoints
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.wire import Path, parse

CLIENT_MAC, HOP_MAC = address.mac("02:00:00:00:00:02"), address.mac("02:00:00:00:00:01")
CLIENTS = {4: "10.0.0.2", 6: "fd00::2"}
SERVERS = {4: "192.0.2.1", 6: "2001:db8::1"}


def path_of(version=4, port=40000):
    """The path from the client to the server."""
    client, server = address.ip(CLIENTS[version]), address.ip(SERVERS[version])
    return Path(CLIENT_MAC, HOP_MAC, client, server, port, 80)


def turned(path):
    """The same path from its other end."""
    return Path(path.remote_mac, path.local_mac, path.remote, path.local, path.remote_port, path.local_port)


class FarScene:
    """The active endpoints, and servers that answer, each an endpoint by its client's port.

    heard: frames that reached the servers. unclaimed: those of no connection of ours. told: the events of
    all streams. lose: drops a frame on its way to the server, if it returns True. silent: no server answers.
    """

    def __init__(self, version=4, config=None, **more):
        self.version, self.now, self.config = version, 1000.0, config or Config()
        self.active = ActiveEndpoints(self.send, b"secret", **more)
        self.heard, self.unclaimed, self.told = [], [], []
        self.servers = {}
        self.lose = lambda frame: False
        self.silent = False
        self.wire = []

    def send(self, frames, now):
        for pieces in frames:
            self.wire.extend(bytes(frame) for frame in segment(bytearray(b"".join(pieces))))

    def connector(self, port=40000):
        """Return a connector whose stream tells this scene of its events."""
        made = self.active.connector(path_of(self.version, port), self.now)
        made.stream.on_event = lambda events, now: self.told.append(events)
        return made

    def server(self, port=40000):
        """Return the server's end of a client's connection, which answers."""
        if port not in self.servers:
            end = Endpoint(turned(path_of(self.version, port)), b"other", self.now, self.config)
            end.listen()
            self.servers[port] = end
        return self.servers[port]

    def turn(self):
        """Carry frames both ways until none is left."""
        for _ in range(10_000):
            self.active.settle(self.now)
            wire, self.wire = self.wire, []
            for frame in wire:
                pkt = Packet.at(bytearray(frame))
                assert pkt.verify(), "a right checksum"
                if not self.lose(pkt):
                    self.heard.append(pkt)
                    if not self.silent:
                        self.server(pkt.tcp.sport).receive(bytearray(frame), self.now)
            moved = bool(wire)
            for server in self.servers.values():
                if server.asked:
                    server.accept()
                for frame in server.transmit(self.now):
                    moved = True
                    self.inject(frame)
            if not moved and not self.active.has_more:
                return
        raise AssertionError("it goes round and round")

    def inject(self, frame):
        """Let a frame arrive, whose octets are gone after settling."""
        frame = bytearray(frame)
        try:
            found = parse(memoryview(frame))
        except Malformed:
            found = None
        if found is None or not self.active.on_frame(found, memoryview(frame), self.now):
            self.unclaimed.append(Packet.at(bytearray(frame)))
        self.active.settle(self.now)
        frame[VNET:] = b"\xee" * (len(frame) - VNET)

    def pass_(self, seconds):
        """Let time pass, waking whoever wants to be woken."""
        self.turn()
        end = self.now + seconds
        for _ in range(100_000):
            dues = [self.active.deadline(), *(server.deadline() for server in self.servers.values())]
            due = min((each for each in dues if each is not None), default=None)
            if due is None or due > end:
                self.now = end
                return
            self.now = max(self.now, due)
            self.active.wake(self.now)
            for server in self.servers.values():
                server.wake(self.now)
            self.turn()
        raise AssertionError("it wakes and wakes")

    def open(self, port=40000):
        """Open a connection; return its stream and the server's end."""
        connector = self.connector(port)
        assert connector.step(0) is None
        self.turn()
        assert connector.step(0) == b""
        return connector.stream, self.server(port)


def read(stream, octets=1 << 20):
    """Read what has come, up to so many octets."""
    room = memoryview(bytearray(octets))
    return bytes(room[: stream.recv_into(room, octets)])
