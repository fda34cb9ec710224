"""Forwarded ports: bounds. Clients are real sockets on the loopback interface; the guest is not there."""

import socket
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from lab.wait import until
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.relay.poller import Poller
from vtl_tools.services.split import forward_udp
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.forward import Forward
from vtl_tools.services.split.forwarding import Forwarding
from vtl_tools.services.split.stage import SplitBySockets
from vtl_tools.services.split.tuning import Tuning

GUEST = ip_address("10.0.2.15")
MAC = bytes.fromhex("020000000009")


class Pending:
    """A connector whose stream does not open."""

    def __init__(self) -> None:
        self.stream = socket.socket()

    def step(self, events: int) -> None:
        return None


class Own(set[bytes]):
    version = 0


class Ports:
    """A forwarded port of each protocol. frames: those sent to the guest, without ARP."""

    def __init__(self, connections: int = 100) -> None:
        self.network, self.poller = GuestAddresses(), Poller()
        self.sent: list[Packet] = []
        own = Own({ip_address("127.0.0.1").packed})
        self.forwarding = Forwarding(
            [Forward(protocol, ip_address("127.0.0.1"), 0, GUEST, 80) for protocol in ("tcp", "udp")],
            self.network,
            Destinations(self.network, own, lambda _: None),
            self.poller,
            send=lambda frames, _: self.sent.extend(Packet.at(b"".join(frame)) for frame in frames),
            limits=RelayLimits(connections=connections),
            drops=Counter(),
            is_taken=lambda *_: False,
        )
        owners = [owner for _, owner in self.poller._handlers.values()]
        self.at = {forward.protocol: sock.getsockname() for sock, forward in owners}
        self.datagrams, self.connections = self.forwarding.datagrams, self.forwarding.connections

    def turn(self) -> None:
        self.poller.poll(0.0)
        self.forwarding.settle(0.0)

    def guest_answers_arp(self) -> None:
        self.forwarding.hear(
            Packet.at(
                build.arp(
                    src_mac=MAC, dst_mac=self.network.mac, oper=2, sha=MAC, spa=GUEST.packed,
                    tha=self.network.mac, tpa=self.network.gateway,
                )
            ),
            0.0,
        )  # fmt: skip

    @property
    def datagrams_sent(self) -> list[Packet]:
        return [pkt for pkt in self.sent if pkt.udp is not None]


@pytest.fixture
def ports() -> Iterator[Ports]:
    made = Ports()
    yield made
    made.forwarding.on_stop(0.0)


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    made = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(5)]
    for each in made:
        each.settimeout(60)
    yield made
    for each in made:
        each.close()


def answer(pkt: Packet) -> bytes:
    """Return the parties of the guest's answer to a datagram."""
    assert pkt.udp is not None
    assert pkt.ip is not None
    return pkt.ip.dst + pkt.ip.src + pkt.udp.dport.to_bytes(2, "big") + pkt.udp.sport.to_bytes(2, "big")


def test_a_guest_that_is_not_there_makes_a_bounded_number_of_datagrams_wait(ports, clients):
    for number in range(200):
        clients[0].sendto(bytes([number]), ports.at["udp"])
    for _ in range(5):
        ports.turn()
    assert not ports.datagrams_sent
    assert [pkt.arp.tpa for pkt in ports.sent] == [GUEST.packed]
    ports.guest_answers_arp()
    assert [bytes(pkt.udp.payload)[0] for pkt in ports.datagrams_sent] == list(range(64))


def test_the_guest_answers_the_clients_that_were_heard_last(ports, clients, monkeypatch):
    monkeypatch.setattr(forward_udp, "CLIENTS_MAX", 3)
    ports.guest_answers_arp()
    for each in clients:
        each.sendto(b"question", ports.at["udp"])
    until(lambda: ports.turn() or len(ports.datagrams_sent) == 5, "the questions")
    taken = [ports.datagrams.take(answer(pkt), memoryview(b"answer"), 0) for pkt in ports.datagrams_sent]
    assert taken == [False, False, True, True, True]
    assert [each.recv(9) for each in clients[2:]] == [b"answer"] * 3
    assert {pkt.ip.src for pkt in ports.datagrams_sent} == {ports.network.gateway}


def test_answers_that_the_guest_segments_are_datagrams_again(ports, clients):
    ports.guest_answers_arp()
    clients[0].sendto(b"", ports.at["udp"])
    until(lambda: ports.turn() or ports.datagrams_sent, "the question")
    assert ports.datagrams.take(answer(ports.datagrams_sent[0]), memoryview(b"aabbc"), 2)
    assert ports.datagrams.take(answer(ports.datagrams_sent[0]), memoryview(b""), 0)
    assert [clients[0].recv(9) for _ in range(4)] == [b"aa", b"bb", b"c", b""]


def test_connections_that_wait_for_the_guest_are_bounded():
    ports = Ports(connections=2)
    made = [socket.create_connection(ports.at["tcp"], 60) for _ in range(3)]
    until(lambda: ports.turn() or ports.connections.status()["opened"] == 2, "the connections")
    until(lambda: ports.turn() or _is_reset(made[2]), "the reset of the third")
    assert ports.connections.status()["connections"] == 2
    ports.forwarding.on_stop(0.0)
    until(lambda: all(map(_is_reset, made)), "the resets of the others")
    for each in made:
        each.close()


def test_a_client_whose_port_the_guest_has_just_connected_to_gets_another():
    network, own = GuestAddresses(), Own({ip_address("127.0.0.1").packed})
    stage = SplitBySockets(
        Destinations(network, own, lambda _: None),
        Tuning(None, 1e9, 1 << 20),
        network=network,
        forwards=[Forward("tcp", ip_address("127.0.0.1"), 0, GUEST, 80)],
    )
    pending, sent = Pending(), []
    stage.relay.dial = lambda path: pending
    stage.out_pieces[0] = lambda frames: sent.extend(Packet.at(b"".join(frame)) for frame in frames)
    (owner,) = (owner for _, owner in stage.relay.poller._handlers.values())
    client = socket.create_connection(owner[0].getsockname(), 60)
    port = client.getsockname()[1]
    until(lambda: (stage.relay.poll(0.0), stage.settle(0.0), sent)[2], "the question where the guest is")
    ends = {"src_mac": MAC, "dst_mac": network.mac}
    guest, gateway = GUEST.packed, network.gateway
    syn = build.tcp(**ends, src=guest, dst=gateway, sport=80, dport=port, flags=tcp.SYN)
    located = build.arp(**ends, oper=2, sha=MAC, spa=guest, tha=network.mac, tpa=gateway)
    stage.on_batch(0, Batch.of([syn, located]), 0.0)
    stage.settle(0.0)
    assert len(stage.relay.flows) == 1
    (to_guest,) = (pkt.tcp for pkt in sent if pkt.tcp is not None)
    assert to_guest.sport != port
    stage.on_stop(0.0)
    stage.relay.close()
    client.close()


def _is_reset(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
