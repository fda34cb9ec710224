"""Calls, on real sockets and the real poller, which tells of each edge once."""

import select
import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from carry import Scene

from tests.descriptors import descriptors
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet import address
from vtl_tools.common.relay import connector
from vtl_tools.common.relay.connector import (
    SocksConnector,
    TCPConnector,
    close_spares,
    make_spares,
    note_bulk,
)
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.socks import Credentials, Reason

DEADLINE_S = 10.0
GREETING, METHOD = b"\5\1\0", b"\5\0"
GRANTED = b"\5\0\0\1\0\0\0\0\0\0"


class Owner:
    """Advances a call as its stream becomes ready, and notes what it comes to."""

    def __init__(self, call, poller):
        self.call, self.outcome, self.seen = call, None, 0
        poller.add(call.stream, self, Owner.on_event)
        self.outcome = call.step(0)

    def on_event(self, events, now):
        self.seen |= events
        if self.outcome is None:
            self.outcome = self.call.step(events)


@pytest.fixture
def poller():
    poller = Poller()
    yield poller
    poller.end()
    poller.end()


def until(poller, condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, "not in time"
        select.select([poller], [], [], 0.1)
        poller.poll(0.0)


def outcome_of(call, poller):
    owner = Owner(call, poller)
    until(poller, lambda: owner.outcome is not None)
    return owner.outcome


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def server(request):
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=request.param) as server:
        server.settimeout(DEADLINE_S)
        yield server


def call_to(server):
    host, port = server.getsockname()[:2]
    return TCPConnector((host, port), server.family)


def test_a_tcp_call_stands(server, poller):
    call = call_to(server)
    assert outcome_of(call, poller) == b""
    far, _ = server.accept()
    with far, closing(call.stream) as stream:
        stream.send(b"hello")
        far.settimeout(DEADLINE_S)
        assert far.recv(10) == b"hello"


def opened(scene, call):
    """Open a flow of the scene by a real call; return its guest."""
    scene.calls.append(call)
    guest = scene.guest()
    guest.syn()
    scene.made.clear()  # the scene tells of scripted streams, and the poller of this
    end = time.monotonic() + DEADLINE_S
    while not scene.said:
        assert time.monotonic() < end, "not in time"
        select.select([scene.relay], [], [], 0.1)
        scene.turn()
    guest.expect("S.")
    return guest


def test_writes_leave_at_once_from_the_second_on(server):
    """Many a short connection makes one, which leaves at once anyway."""
    scene = Scene()
    call = call_to(server)
    guest = opened(scene, call)
    guest.inject(".", 1, b"a", ack=1)
    assert not call.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    guest.inject(".", 2, b"b", ack=1)
    assert call.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    far, _ = server.accept()
    with far:
        far.settimeout(DEADLINE_S)
        assert far.recv(2, socket.MSG_WAITALL) == b"ab"
    scene.relay.close()


def test_a_second_write_of_the_same_turn_leaves_at_once(server):
    """The data that came meanwhile may be more pieces than one system call takes."""
    scene, call = Scene(), call_to(server)
    guest = opened(scene, call)
    segments = [guest.frame(".", 1 + at, b"a", ack=1) for at in range(SLOTS + 1)]
    for some in segments[:SLOTS], segments[SLOTS:]:
        scene.relay.on_batch(0, Batch.of(some), scene.now)
    scene.relay.settle(scene.now)
    assert call.stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    scene.relay.close()


def congestion(stream):
    return stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0")


@pytest.mark.parametrize("octets", [1000, 100 << 20], ids=["few", "bulk"])
def test_bulk_data_is_not_paced_by_bbr_to_an_end_within_the_host(server, octets):
    has_bbr = b"bbr" in Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_bytes().split()
    scene, first = Scene(), call_to(server)
    usual = congestion(first.stream)
    if has_bbr:
        first.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
    paced = congestion(first.stream) == b"bbr"
    guest = opened(scene, first)
    guest.flow.endpoint.rcv.received += octets
    scene.now += 1
    guest.inject(".", 1, b"a", ack=1)
    later, elsewhere = call_to(server), TCPConnector(("192.0.2.1", 80))
    assert congestion(later.stream) == (b"reno" if paced and octets > 1000 else usual)
    assert congestion(elsewhere.stream) == usual
    later.stream.close()
    elsewhere.stream.close()
    scene.relay.close()


def test_bulk_data_to_a_socket_of_a_short_name_is_noted_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as proxy, socket.socket(socket.AF_UNIX) as stream:
        proxy.bind("p")
        proxy.listen()
        stream.connect("p")
        connector.note_bulk(stream, 100 << 20)


def test_a_host_without_another_congestion_control_keeps_its_own(monkeypatch):
    """A socket that refuses it, as where net.ipv4.tcp_allowed_congestion_control does not name it."""
    monkeypatch.setitem(connector._unpaced, ("192.0.2.1", 80), True)
    TCPConnector(("192.0.2.1", 80), socket.AF_UNIX).stream.close()


def test_a_refused_tcp_call_is_refused(server, poller):
    call = call_to(server)
    server.close()
    assert outcome_of(call, poller) is Reason.REFUSED
    call.stream.close()


def test_a_tcp_call_to_nowhere_fails(poller):
    call = TCPConnector(("255.255.255.255", 80))
    assert outcome_of(call, poller) in (Reason.NET_UNREACHABLE, Reason.PROHIBITED, Reason.HOST_UNREACHABLE)
    call.stream.close()


def test_an_end_that_came_with_the_connection_is_told(server, poller):
    call = call_to(server)
    seen = []
    owner = Owner(call, poller)
    far, _ = server.accept()
    far.send(b"bye")
    far.close()
    until(poller, lambda: seen.append(owner.seen) or owner.seen & select.EPOLLRDHUP)
    assert owner.outcome == b""
    call.stream.close()


# --- a proxy


class Proxy:
    """A SOCKS proxy that says to a call what it is told to. steps: (octets to hear, octets to say)."""

    def __init__(self, server, steps, close):
        self.server, self.steps, self.close = server, steps, close
        self.heard, self.sock = [], None
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        self.sock = sock = self.server.accept()[0]
        sock.settimeout(DEADLINE_S)
        for hear, say in self.steps:
            heard = b""
            while len(heard) < hear:
                heard += sock.recv(hear - len(heard))
            self.heard.append(heard)
            for piece in say if isinstance(say, list) else [say]:
                sock.sendall(piece)
                time.sleep(0.01 if isinstance(say, list) else 0)
        if self.close:
            sock.close()


@pytest.fixture(params=["tcp", "unix"])
def listening(request, tmp_path):
    if request.param == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server, server.getsockname()
    else:
        with socket.socket(socket.AF_UNIX) as server:
            path = str(tmp_path / "proxy")
            server.bind(path)
            server.listen()
            yield server, path


@pytest.fixture
def proxy(listening):
    """A function that makes the proxy do its steps."""
    made = []

    def make(*steps, close=False):
        made.append(Proxy(listening[0], steps, close))
        return made[-1]

    yield make
    for each in made:
        each.thread.join(DEADLINE_S)
        each.sock.close()


def test_a_proxy_grants(listening, proxy, poller):
    _, where = listening
    served = proxy((3, METHOD), (10, GRANTED))
    call = SocksConnector(where, address.ip("192.0.2.1"), 80)
    assert outcome_of(call, poller) == b""
    served.thread.join()
    assert served.heard == [GREETING, b"\5\1\0\1\xc0\0\2\1\0\x50"]
    served.sock.send(b"hello")
    call.stream.settimeout(DEADLINE_S)
    assert call.stream.recv(10) == b"hello"
    call.stream.close()


def test_a_proxy_that_speaks_in_pieces_grants(listening, proxy, poller):
    _, where = listening
    proxy((3, [b"\5", b"\0"]), (18, [bytes([octet]) for octet in GRANTED]))
    call = SocksConnector(where, "example.com", 80)
    assert outcome_of(call, poller) == b""
    call.stream.close()


def test_what_follows_a_grant_is_the_beginning_of_the_stream(listening, proxy, poller):
    _, where = listening
    proxy((3, METHOD), (18, GRANTED + b"and so it begins"))
    call = SocksConnector(where, "example.com", 80)
    assert outcome_of(call, poller) == b"and so it begins"
    call.stream.close()


def test_a_pipelined_request_needs_no_waiting(listening, proxy, poller):
    _, where = listening
    served = proxy((3 + 9 + 18, b"\5\2\1\0" + GRANTED + b"data"))
    call = SocksConnector(where, "example.com", 80, Credentials(b"guest", b"1"), pipelined=True)
    assert outcome_of(call, poller) == b"data"
    served.thread.join()
    call.stream.close()


@pytest.mark.parametrize(
    ("say", "reason"), [(b"\5\5\0\1" + bytes(6), Reason.REFUSED), (b"\5\2\0\1" + bytes(6), Reason.PROHIBITED)]
)
def test_a_proxy_denies(listening, proxy, poller, say, reason):
    _, where = listening
    proxy((3, METHOD), (18, say), close=True)
    call = SocksConnector(where, "example.com", 80)
    assert outcome_of(call, poller) is reason
    call.stream.close()


@pytest.mark.parametrize("say", [b"", b"\5", b"HTTP/1.0 400 Bad Request\r\n", METHOD])
def test_a_proxy_that_leaves_is_not_waited_for(listening, proxy, poller, say):
    _, where = listening
    proxy((3, say), close=True)
    call = SocksConnector(where, "example.com", 80)
    assert outcome_of(call, poller) is Reason.CLOSED
    call.stream.close()


@pytest.mark.parametrize("answer", [GRANTED[:4], b"\5\0\0\3\xff", b""])
def test_a_proxy_that_leaves_in_the_middle_of_its_answer_is_not_waited_for(listening, proxy, poller, answer):
    """The beginning and the end are told of together."""
    _, where = listening
    served = proxy((3, METHOD), (18, answer), close=True)
    call = SocksConnector(where, "example.com", 80)
    owner = Owner(call, poller)
    end = time.monotonic() + DEADLINE_S
    while served.thread.is_alive():
        assert time.monotonic() < end
        if len(served.heard) < 2:
            select.select([poller], [], [], 0.02)
            poller.poll(0.0)
    until(poller, lambda: owner.outcome is not None)
    assert owner.outcome is Reason.CLOSED
    call.stream.close()


def test_a_proxy_whose_queue_is_full_is_busy(tmp_path):
    path = str(tmp_path / "proxy")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(0)
        calls = [SocksConnector(path, "example.com", 80) for _ in range(4)]
        busy = 0
        for call in calls:
            try:
                assert call.step(0) is None
            except BlockingIOError:
                busy += 1
        assert busy == 3
        server.accept()[0].close()
        assert calls[1].step(0) is None, "now there is room"
        for call in calls:
            call.stream.close()


def test_there_is_no_proxy(tmp_path, poller):
    call = SocksConnector(str(tmp_path / "nothing"), "example.com", 80)
    assert outcome_of(call, poller) is Reason.CLOSED
    call.stream.close()


# --- the poller


class Note:
    """An owner that notes its events. then: what it does upon each."""

    def __init__(self, then=lambda: None):
        self.events, self.then = [], then

    def on_event(self, events, now):
        self.events.append(events)
        self.then()


def nonblocking_pair():
    left, right = socket.socketpair()
    left.setblocking(False)
    return left, right


def test_an_edge_is_told_of_once(poller):
    left, right = nonblocking_pair()
    with left, right:
        note = Note()
        poller.add(left, note, Note.on_event)
        poller.poll(0.0)
        note.events.clear()
        right.send(b"x")
        assert poller.poll(0.0)
        assert not poller.poll(0.0)
        (events,) = note.events
        assert events & select.EPOLLIN
        right.send(b"y")
        assert poller.poll(0.0)


def test_a_stream_that_is_closed_during_events_tells_nobody(poller):
    """And its number is not given to another while events of the old one may be on hand."""
    pairs = [nonblocking_pair() for _ in range(8)]
    notes = []

    def close_all():
        for near, _ in pairs:
            if near.fileno() >= 0 and near not in closed:
                closed.append(near)
                poller.close(near)
        fresh.append(socket.socket())

    closed, fresh = [], []
    for near, _ in pairs:
        notes.append(Note(close_all))
        poller.add(near, notes[-1], Note.on_event)
    assert poller.poll(0.0)
    assert sum(len(note.events) for note in notes) == 1
    assert all(near.fileno() == -1 for near, _ in pairs)
    assert not poller.poll(0.0)
    for sock in [*fresh, *(far for _, far in pairs)]:
        sock.close()


def test_bulk_data_to_a_unix_socket_is_not_noted():
    left, right = nonblocking_pair()
    with left, right:
        assert left.getpeername() == ""
        note_bulk(left, 1 << 40)


def test_a_closed_streams_number_may_be_another_streams(poller):
    left, right = nonblocking_pair()
    old, new = Note(), Note()
    poller.add(left, old, Note.on_event)
    number = left.fileno()
    poller.close(left)
    right.close()
    left, right = nonblocking_pair()
    with left, right:
        assert number in (left.fileno(), right.fileno())
        poller.add(left, new, Note.on_event)
        poller.poll(0.0)
        assert not old.events
        assert new.events


def test_a_socket_waits_for_the_next_stream(server):
    """It is made when there is nothing else to do, once, and closed if nobody takes it."""
    first = call_to(server)
    make_spares()
    make_spares()
    before = descriptors()
    second = call_to(server)
    assert descriptors() == before, "it was there"
    assert second.stream.fileno() != first.stream.fileno()
    make_spares()
    assert descriptors() == before + 1
    close_spares()
    close_spares()
    assert descriptors() == before
    for call in first, second:
        call.stream.close()
