"""Streams that open together, on real sockets: which segments their handshakes take."""

import select
import socket
import struct
import time

import pytest
from carry import Scene

from tests.descriptors import descriptors
from vtl_tools.common.packet.tcp import FIN
from vtl_tools.common.relay.connector import TCPConnector
from vtl_tools.common.tcp.state import State

DEADLINE_S = 10.0
MANY = 4
TCP_INFO, SEGS_OUT = 11, 136  # linux/tcp.h: where tcp_info tells how many segments were sent


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def server(request):
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=request.param) as server:
        server.settimeout(DEADLINE_S)
        yield server


class Burst:
    """So many guests call in one turn; their streams are open, and they have their SYN|ACK.

    before: who spoke first on connections to the server that have ended: "guest" or "server".
    """

    def __init__(self, server, count, early_ack=False, before=("guest",)):
        self.scene, self.server = Scene(early_ack=early_ack), server
        for first in before:
            self.carry_one(first)
        self.guests, self.streams = self.call(*range(40000, 40000 + count))

    def call(self, *ports, seq=0, dport=80):
        """Have guests call in one turn; return them, who have their SYN|ACK, and their streams."""
        scene, streams = self.scene, []
        host, port = self.server.getsockname()[:2]
        for _ in ports:
            call = TCPConnector((host, port), self.server.family)
            scene.calls.append(call)
            streams.append(call.stream)
        guests = [scene.guest(port, dport=dport) for port in ports]
        scene.push(*(guest.frame("S", seq, options={"mss": 1000}) for guest in guests))
        scene.made.clear()  # the scene tells of scripted streams, and the poller of these
        self.hear(len(ports))
        for guest in guests:
            guest.expect("S.")
        return guests, streams

    def hear(self, count):
        """Wait until the relay has said so much."""
        scene, end = self.scene, time.monotonic() + DEADLINE_S
        while len(scene.said) < count:
            assert time.monotonic() < end, "not in time"
            select.select([scene.relay], [], [], 0.1)
            scene.turn()

    def carry_one(self, first):
        """Carry a connection on which both sides speak, and which the guest resets."""
        (guest,), _ = self.call(39999)
        hello = guest.frame(".", 1, b"hello", ack=1)
        self.scene.push(hello if first == "guest" else guest.frame(".", 1, ack=1))
        far, _ = self.server.accept()
        far.send(b"welcome")
        self.hear(1)
        if first == "server":
            self.scene.push(hello)
        with far:
            far.settimeout(DEADLINE_S)
            assert far.recv(10) == b"hello"
            self.scene.push(guest.frame("R", 6))
        assert not self.scene.relay.flows
        self.scene.turn()
        self.scene.said.clear()

    def acknowledge(self):
        """Have all guests complete their handshakes, in one turn."""
        self.scene.push(*(guest.frame(".", 1, ack=1) for guest in self.guests))

    @property
    def held(self):
        """Whether each stream was told to hold its ACK."""
        told = (stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) for stream in self.streams)
        return [seconds > 0 for seconds in told]

    @property
    def sent(self):
        """How many segments each stream has sent, its SYN among them."""
        told = (stream.getsockopt(socket.IPPROTO_TCP, TCP_INFO, 256) for stream in self.streams)
        return [struct.unpack_from("=I", info, SEGS_OUT)[0] for info in told]


def test_the_ack_of_a_stream_that_opens_with_others_leaves_with_the_first_data(server):
    burst = Burst(server, MANY)
    assert burst.held == [True] * MANY
    burst.scene.push(*(guest.frame(".", 1, b"hello", ack=1) for guest in burst.guests))
    for _ in burst.guests:
        far, _ = server.accept()
        with far:
            far.settimeout(DEADLINE_S)
            assert far.recv(10) == b"hello"
    burst.scene.relay.close()


def test_a_server_that_speaks_first_gets_the_ack_in_the_turn_after_the_guests(server):
    burst = Burst(server, MANY)
    burst.acknowledge()
    assert burst.scene.relay.poll(burst.scene.now), "another turn follows at once"
    burst.scene.relay.settle(burst.scene.now)
    assert burst.sent == [2] * MANY
    for _ in burst.guests:
        far, _ = server.accept()
        with far:
            far.send(b"welcome")
    burst.hear(MANY)
    assert sorted(bytes(pkt.tcp.payload) for pkt in burst.scene.said[:MANY]) == [b"welcome"] * MANY
    burst.scene.relay.close()


def test_guests_that_end_before_the_turn_of_the_ack_leave_nothing(server):
    before = descriptors()
    burst = Burst(server, MANY)
    burst.acknowledge()
    burst.scene.push(*(guest.frame("R", 1) for guest in burst.guests))
    burst.scene.turn()
    assert not burst.scene.relay.flows
    burst.scene.relay.close()
    assert descriptors() == before


@pytest.mark.parametrize(
    "before", [(), ("server",), ("guest", "server")], ids=["unknown", "server first", "no longer guest first"]
)
def test_no_ack_is_held_unless_guests_speak_first_to_the_target(server, before):
    burst = Burst(server, MANY, before=before)
    assert burst.held == [False] * MANY
    burst.scene.relay.close()


def test_what_guests_do_at_one_port_of_a_host_says_nothing_of_another(server):
    burst = Burst(server, MANY)
    _, burst.streams = burst.call(*range(41000, 41000 + MANY), dport=81)
    assert burst.held == [False] * MANY
    burst.scene.relay.close()


def test_no_ack_is_held_of_a_guest_that_calls_alone_in_the_time_wait_of_one_that_called_with_others(server):
    burst = Burst(server, MANY)
    burst.scene.push(*(guest.frame(".", 1, b"hello", ack=1) for guest in burst.guests))
    for _ in burst.guests:
        far, _ = server.accept()
        with far:
            assert far.recv(10) == b"hello"
    heard = 0
    while heard < MANY:
        burst.hear(1)
        heard += bool(burst.scene.said.pop(0).tcp.flags & FIN)
    burst.scene.push(*(guest.frame("F.", 6, ack=2) for guest in burst.guests))
    burst.scene.turn()
    assert {flow.endpoint.state for flow in burst.scene.relay.flows.values()} == {State.TIME_WAIT}
    burst.scene.said.clear()
    _, burst.streams = burst.call(40000, seq=100_000)
    assert burst.held == [False]
    burst.scene.relay.close()


@pytest.mark.parametrize(("count", "early_ack"), [(MANY - 1, False), (MANY, True)], ids=["few", "early"])
def test_no_ack_is_held_of_few_streams_nor_where_guests_are_answered_early(server, count, early_ack):
    burst = Burst(server, count, early_ack)
    assert burst.held == [False] * count
    assert burst.sent == [2] * count
    burst.scene.relay.close()
