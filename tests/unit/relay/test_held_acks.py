"""Streams that open together, on real sockets: which segments their handshakes take."""

import select
import socket
import struct
import time

import pytest
from carry import Scene

from tests.descriptors import descriptors
from vtl_tools.common.relay.connector import TCPConnector

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
    """So many guests call in one turn; their streams are open, and they have their SYN|ACK."""

    def __init__(self, server, count, early_ack=False):
        self.scene = scene = Scene(early_ack=early_ack)
        host, port = server.getsockname()[:2]
        self.streams = []
        for _ in range(count):
            call = TCPConnector((host, port), server.family)
            scene.calls.append(call)
            self.streams.append(call.stream)
        self.guests = [scene.guest(40000 + i) for i in range(count)]
        scene.push(*(guest.frame("S", options={"mss": 1000}) for guest in self.guests))
        scene.made.clear()  # the scene tells of scripted streams, and the poller of these
        end = time.monotonic() + DEADLINE_S
        while len(scene.said) < count:
            assert time.monotonic() < end, "not in time"
            select.select([scene.relay], [], [], 0.1)
            scene.turn()
        for guest in self.guests:
            guest.expect("S.")

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
    end = time.monotonic() + DEADLINE_S
    while len(burst.scene.said) < MANY:
        assert time.monotonic() < end, "not in time"
        select.select([burst.scene.relay], [], [], 0.1)
        burst.scene.turn()
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


@pytest.mark.parametrize(("count", "early_ack"), [(MANY - 1, False), (MANY, True)], ids=["few", "early"])
def test_no_ack_is_held_of_few_streams_nor_where_guests_are_answered_early(server, count, early_ack):
    burst = Burst(server, count, early_ack)
    assert burst.held == [False] * count
    assert burst.sent == [2] * count
    burst.scene.relay.close()
