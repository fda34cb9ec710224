"""TCP fast open of the endpoint with a real kernel, as a server and as a client."""

import socket
import time

import pytest
from test_tcp_kernel import FAMILY, HOSTS, receive, wire  # noqa: F401 - a fixture

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State

pytestmark = pytest.mark.lab

EARLY = Config(fast_open=True)
REQUEST, ANSWER = b"request!" * 20, b"answer" * 500
_SYN_DATA = 32  # tcp_info.tcpi_options: data of a SYN was acknowledged


def took_syn_data(sock):
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[5] & _SYN_DATA)


def got(wire, sock, octets):  # noqa: F811
    """Read so many octets from the kernel's socket."""
    data = bytearray()

    def read():
        data.extend(receive(sock) or b"")
        return len(data) >= octets

    wire.until(read, "the octets")
    return bytes(data)


def call_early(wire, jar):  # noqa: F811
    """Let the kernel send a request in its SYN; return its socket, once the endpoint was asked."""
    with wire.host.enter():
        client = socket.socket(FAMILY[wire.version])
    client.setblocking(False)
    client.bind((HOSTS[wire.version][1], 0))
    path = wire.path.replace(local_port=80, remote_port=client.getsockname()[1])
    wire.endpoint = Endpoint(path, b"secret", time.monotonic(), EARLY, cookies=jar)
    wire.endpoint.listen()
    try:
        took = client.sendto(REQUEST, socket.MSG_FASTOPEN, (HOSTS[wire.version][0], 80))
    except BlockingIOError:  # the kernel has no cookie yet, and only asks for one
        took = 0
    wire.until(lambda: wire.endpoint.asked, "the SYN")
    wire.endpoint.accept()
    return client, took


def test_the_kernel_gets_a_cookie_and_then_sends_its_request_in_the_syn(wire):  # noqa: F811
    wire.host.sysctl("net.ipv4.tcp_fastopen", 3)
    jar = FastOpen(b"jar")
    client, took = call_early(wire, jar)
    assert not took
    wire.until_state(State.ESTABLISHED)
    client.close()
    wire.until(lambda: wire.endpoint.at_eof, "its FIN")

    client, took = call_early(wire, jar)
    assert took == len(REQUEST)
    end = wire.endpoint
    assert (end.state, end.readable) == (State.SYN_RECEIVED, took), "before the handshake is complete"
    assert bytes(end.read()) == REQUEST
    end.write(ANSWER)
    assert got(wire, client, len(ANSWER)) == ANSWER
    assert took_syn_data(client)
    wire.until_state(State.ESTABLISHED)
    assert jar.pending == 0
    client.close()

    jar.rotate(b"one")
    jar.rotate(b"two")
    client, took = call_early(wire, jar)
    assert took == len(REQUEST)
    assert wire.endpoint.readable == 0, "its cookie is of a secret that is gone"
    wire.until(lambda: wire.endpoint.readable == took, "the data again, as usual")
    assert not took_syn_data(client)
    client.close()


def test_we_get_a_cookie_and_then_send_our_request_in_the_syn(wire):  # noqa: F811
    wire.host.sysctl("net.ipv4.tcp_fastopen", 3)
    jar = FastOpen(b"jar")
    with wire.host.enter():
        server = socket.socket(FAMILY[wire.version])
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
    server.bind((HOSTS[wire.version][1], 8000))
    server.listen()
    server.setblocking(False)

    def accept():
        try:
            return server.accept()[0]
        except BlockingIOError:
            return None

    taken = []
    for port in 40001, 40002, 40003:
        path = wire.path.replace(local_port=port)
        wire.endpoint = Endpoint(path, b"secret", time.monotonic(), EARLY, cookies=jar)
        wire.endpoint.connect()
        wire.endpoint.write(REQUEST)
        with wire.until(accept, "accepting") as sock:
            sock.setblocking(False)
            assert got(wire, sock, len(REQUEST)) == REQUEST
            sock.sendall(ANSWER)
            wire.until(lambda: wire.endpoint.readable == len(ANSWER), "the answer")
            wire.until(lambda: wire.endpoint.acknowledged == len(REQUEST), "the acknowledgement")
            taken.append(took_syn_data(sock))
            wire.endpoint.abort()
            wire.turn()
    assert taken == [False, True, True]
    server.close()
