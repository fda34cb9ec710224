"""Active endpoints: they speak for a client, and their streams behave as sockets do."""

import errno
import select
import socket
from dataclasses import replace

import pytest
from far import CLIENT_MAC, HOP_MAC, FarScene, path_of, read

from vtl_tools.common.packet import build, tcp
from vtl_tools.common.relay.active import ACTIVE
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import Ended, State

IN, OUT, RDHUP, ERR = select.EPOLLIN, select.EPOLLOUT, select.EPOLLRDHUP, select.EPOLLERR
LINGER = socket.SOL_SOCKET, socket.SO_LINGER, b""


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def scene(request):
    scene = FarScene(request.param)
    yield scene
    assert not scene.active.drops


@pytest.fixture
def opened(scene):
    return scene, *scene.open()


def test_the_server_sees_the_clients_addresses(opened):
    scene, _, server = opened
    syn = scene.heard[0]
    path = path_of(scene.version)
    assert (syn.eth.src, syn.eth.dst) == (CLIENT_MAC, HOP_MAC)
    assert (syn.ip.src, syn.ip.dst, syn.tcp.sport, syn.tcp.dport) == (path.local, path.remote, 40000, 80)
    assert server.state is State.ESTABLISHED
    assert scene.active.status()["established"] == 1


def test_the_connection_is_open_once_the_server_has_answered(scene):
    scene.silent = True
    connector = scene.connector()
    assert connector.step(0) is None
    scene.turn()
    assert not scene.told
    assert connector.step(0) is None
    scene.silent = False
    scene.pass_(1.5)
    assert scene.told[0] & OUT
    assert connector.step(scene.told[0]) == b""


def test_octets_go_both_ways(opened):
    scene, stream, server = opened
    assert stream.sendmsg([b"a" * 5000, memoryview(bytearray(b"b" * 3000))]) == 8000
    scene.turn()
    assert b"".join(bytes(piece) for piece in server.pieces) == b"a" * 5000 + b"b" * 3000
    with pytest.raises(BlockingIOError):
        read(stream)
    server.write(b"answer" * 1000)
    scene.turn()
    assert scene.told[-1] & IN
    assert read(stream, 1000) + read(stream) == b"answer" * 1000


def test_sent_octets_are_copied(opened):
    scene, stream, server = opened
    scene.lose = lambda pkt: bool(len(pkt.tcp.payload))
    octets = bytearray(b"x" * 10_000)
    assert stream.send(memoryview(octets)) == 10_000
    octets[:] = b"y" * 10_000
    scene.turn()
    scene.lose = lambda pkt: False
    scene.pass_(2.0)
    assert server.readable == 10_000
    assert set(b"".join(bytes(piece) for piece in server.pieces)) == set(b"x")


def test_a_full_stream_tells_when_it_has_room_again(scene):
    scene.config = Config(receive_buffer=4096)
    stream, server = scene.open()
    size = stream.send(bytes(ACTIVE.send_buffer))
    assert size < ACTIVE.send_buffer, "what waits is bounded by a window"
    with pytest.raises(BlockingIOError):
        stream.send(b"more")
    scene.turn()
    assert stream.buffered >= size - 4096
    scene.told.clear()
    for _ in range(size // 2048):
        server.read()
        scene.pass_(0.01)
        if any(events & OUT for events in scene.told):
            break
    else:
        raise AssertionError("it was never told")
    assert stream.send(bytes(size)) >= size // 2


def test_a_reader_that_stops_stops_the_server(opened):
    scene, stream, server = opened
    size = 4 * ACTIVE.receive_buffer
    while server.write(bytes(1 << 16)):
        scene.turn()
    scene.pass_(5.0)
    assert stream.endpoint.readable <= ACTIVE.receive_buffer
    got = 0
    while got < size:
        got += len(read(stream))
        server.write(bytes(1 << 16))
        scene.turn()


def test_half_close_crosses_in_both_orders(opened):
    scene, stream, server = opened
    stream.send(b"question")
    stream.shutdown(socket.SHUT_WR)
    scene.turn()
    assert server.read() == b"question"
    assert server.at_eof
    server.write(b"answer")
    server.close()
    scene.turn()
    assert scene.told[-1] & (IN | RDHUP) == IN | RDHUP
    assert (read(stream), read(stream)) == (b"answer", b"")
    stream.close()
    scene.pass_(1.0)
    assert stream.endpoint.state is State.TIME_WAIT
    scene.pass_(ACTIVE.time_wait_s)
    assert not scene.active.streams


def test_the_server_closes_first(opened):
    scene, stream, server = opened
    server.close()
    scene.turn()
    assert read(stream) == b""
    assert stream.send(b"still there") == 11
    stream.shutdown(socket.SHUT_WR)
    stream.close()
    scene.pass_(1.0)
    assert server.read() == b"still there"
    assert server.at_eof
    assert not scene.active.streams


def test_a_refusal_is_a_reason(scene):
    connector = scene.connector()
    connector.step(0)
    server = scene.server()
    scene.active.settle(scene.now)
    server.receive(bytearray(scene.wire.pop()), scene.now)
    server.refuse()
    scene.turn()
    assert scene.told[-1] & ERR
    assert connector.step(scene.told[-1]) is Reason.REFUSED
    assert not scene.active.streams


def test_a_server_that_does_not_answer_is_a_reason(scene):
    scene.silent = True
    connector = scene.connector()
    connector.step(0)
    scene.pass_(ACTIVE.syn_timeout_s + 1)
    assert connector.step(scene.told[-1]) is Reason.TTL_EXPIRED
    assert not scene.active.streams
    assert scene.active.deadline() is None
    assert scene.active.status()["failed"] == 1


def test_a_reset_crosses_after_the_octets_before_it(opened):
    scene, stream, server = opened
    server.write(b"last words")
    scene.turn()
    server.abort()
    scene.turn()
    assert scene.told[-1] & ERR
    assert read(stream) == b"last words"
    with pytest.raises(ConnectionResetError):
        read(stream)
    with pytest.raises(ConnectionResetError):
        stream.send(b"more")
    assert not scene.active.streams


def test_lingering_closes_by_a_reset(opened):
    scene, stream, server = opened
    stream.send(b"lost")
    stream.shutdown(socket.SHUT_WR)
    stream.setsockopt(*LINGER)
    stream.close()
    scene.turn()
    assert server.ended is Ended.RESET
    assert not scene.active.streams


def test_closing_without_a_shutdown_is_a_reset(opened):
    scene, stream, server = opened
    stream.close()
    scene.turn()
    assert server.ended is Ended.RESET


def test_closing_with_unread_octets_is_a_reset(opened):
    scene, stream, server = opened
    server.write(b"unread")
    scene.turn()
    stream.shutdown(socket.SHUT_WR)
    stream.close()
    scene.turn()
    assert server.ended is Ended.RESET


def test_an_owner_that_gives_up_while_opening_leaves_nothing(scene):
    scene.silent = True
    connector = scene.connector()
    connector.step(0)
    scene.turn()
    connector.stream.close()
    scene.turn()
    assert not scene.active.streams


def test_an_orphan_delivers_what_it_took(opened):
    scene, stream, server = opened
    scene.lose = lambda pkt: bool(len(pkt.tcp.payload))
    stream.send(bytes(100_000))
    stream.shutdown(socket.SHUT_WR)
    stream.close()
    scene.turn()
    assert scene.active.status()["orphans"] == 1
    assert scene.active.status()["orphaned"] >= 100_000
    scene.lose = lambda pkt: False
    scene.pass_(10.0)
    assert server.readable == 100_000
    server.skip(100_000)
    assert server.at_eof
    server.close()
    scene.pass_(ACTIVE.time_wait_s + 1)
    assert scene.active.status()["orphans"] == scene.active.status()["orphaned"] == 0


def test_an_orphan_that_is_sent_data_resets(opened):
    scene, stream, server = opened
    stream.shutdown(socket.SHUT_WR)
    stream.close()
    server.write(b"for nobody")
    scene.turn()
    assert server.ended is Ended.RESET


def test_an_orphan_does_not_wait_for_a_silent_peer(opened):
    scene, stream, _ = opened
    stream.shutdown(socket.SHUT_WR)
    stream.close()
    scene.pass_(100.0)
    assert not scene.active.streams


def test_orphans_are_bounded(scene):
    scene.active.orphaned_max = 200_000
    streams = [scene.open(port)[0] for port in range(40000, 40004)]
    scene.lose = lambda pkt: bool(len(pkt.tcp.payload))
    for stream in streams:
        stream.send(bytes(90_000))
        stream.shutdown(socket.SHUT_WR)
        stream.close()
        scene.turn()
    assert scene.active.status()["orphaned"] <= 200_000
    assert scene.active.status()["evicted"] == 2
    assert [pkt.tcp.sport for pkt in scene.heard if pkt.is_rst] == [40000, 40001]


def test_a_connection_of_the_same_ports_waits_for_the_earlier_one(opened):
    scene, stream, server = opened
    again = scene.connector()
    with pytest.raises(BlockingIOError) as found:
        again.step(0)
    assert found.value.errno == errno.EADDRINUSE
    stream.shutdown(socket.SHUT_WR)
    scene.turn()
    server.close()
    scene.turn()
    assert read(stream) == b""
    stream.close()
    scene.turn()
    del scene.servers[40000]
    assert stream.endpoint.state is State.TIME_WAIT
    assert again.step(0) is None
    scene.turn()
    assert again.step(0) == b""


def test_a_connection_that_waits_for_an_earlier_one_can_be_given_up(opened):
    scene, stream, _ = opened
    again = scene.connector()
    with pytest.raises(BlockingIOError):
        again.step(0)
    again.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 1)
    again.stream.close()
    scene.turn()
    assert scene.active.streams == {stream.key: stream}


def test_a_connection_of_the_same_ports_waits_for_the_owner_of_the_earlier_one(opened):
    scene, stream, server = opened
    stream.shutdown(socket.SHUT_WR)
    scene.turn()
    server.close()
    scene.turn()
    assert stream.endpoint.state is State.TIME_WAIT
    with pytest.raises(BlockingIOError):
        scene.connector().step(0)


def test_a_new_connection_of_the_peer_replaces_time_wait(opened):
    scene, stream, server = opened
    stream.shutdown(socket.SHUT_WR)
    scene.turn()
    server.close()
    scene.turn()
    stream.close()
    scene.turn()
    path = path_of(scene.version)
    syn = build.tcp(src_mac=HOP_MAC, dst_mac=CLIENT_MAC, src=path.remote, dst=path.local, sport=80,
                    dport=40000, seq=(server.snd.snd_nxt + 1000) % 2**32, flags=tcp.SYN,
                    options=tcp.encode_options(timestamps=(server.tsval(scene.now) + 1, 0)))  # fmt: skip
    scene.inject(syn)
    assert scene.unclaimed[-1].is_syn
    assert not scene.active.streams


def test_segments_of_no_connection_are_not_ours(opened):
    scene, *_ = opened
    stranger = build.tcp(src_mac=HOP_MAC, dst_mac=CLIENT_MAC, src=path_of(scene.version).remote,
                         dst=path_of(scene.version).local, sport=81, dport=40000, flags=tcp.ACK)  # fmt: skip
    scene.inject(stranger)
    assert [pkt.tcp.sport for pkt in scene.unclaimed] == [81]


def test_a_wrong_checksum_is_dropped():
    scene = FarScene()
    stream, server = scene.open()
    server.write(b"answer")
    (frame,) = server.transmit(scene.now)
    plain = bytearray(frame)
    plain[0] = 0  # the checksum is still partial, so now it is wrong
    scene.inject(plain)
    assert scene.active.drops == {"checksum": 1}
    with pytest.raises(BlockingIOError):
        read(stream)


def test_a_full_memory_takes_no_more_from_a_peer_that_has_some_there():
    full = False
    scene = FarScene(config=Config(no_delay=True), is_full=lambda: full)
    stream, server = scene.open()
    server.write(b"first")
    scene.turn()
    full = True
    server.write(b"second")
    scene.turn()
    assert scene.active.drops == {"memory": 1}
    assert read(stream) == b"first"
    full = False
    scene.pass_(2.0)
    assert read(stream) == b"second"


def test_the_links_mtu_holds(scene):
    scene.active.on_mtu(1280)
    scene.active.config = replace(scene.active.config, super_segment=0)
    stream, _ = scene.open()
    stream.send(bytes(50_000))
    scene.turn()
    assert max(len(pkt.buf) - 10 - 14 for pkt in scene.heard) == 1280


def test_stopping_resets_the_peers(opened):
    scene, _, server = opened
    scene.active.on_stop(scene.now)
    scene.turn()
    assert server.ended is Ended.RESET
    assert scene.told[-1] & ERR
    assert not scene.active.streams


def test_a_connection_is_not_opened_to_a_group(scene):
    path = path_of(scene.version)
    group = b"\xe0\0\0\1" if scene.version == 4 else b"\xff\x02" + bytes(13) + b"\1"
    with pytest.raises(ValueError, match="single host"):
        scene.active.connector(path.replace(remote=group), scene.now)
