"""The cookies of TCP fast open: whose they are, for how long, and how many."""

from dataclasses import replace

from talk import PLAIN, Talk

from vtl_tools.common.packet import address
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.wire import Path

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")


def path(remote=1, local=1, remote_port=40000):
    return Path(*MACS, bytes((10, 0, 1, local)), bytes((10, 0, 2, remote)), 80, remote_port)


def test_a_cookie_is_of_a_client_at_any_port_and_of_our_address():
    jar = FastOpen(b"one")
    cookie = jar.cookie(path())
    assert jar.knows(path(remote_port=1), cookie)
    assert not jar.knows(path(remote=2), cookie)
    assert not jar.knows(path(local=2), cookie)
    assert not FastOpen(b"two").knows(path(), cookie)
    assert not jar.knows(path(), b"")


def test_a_cookie_survives_one_rotation():
    jar = FastOpen(b"one")
    cookie = jar.cookie(path())
    jar.rotate(b"two")
    assert jar.knows(path(), cookie)
    assert jar.cookie(path()) != cookie, "new ones are of the new secret"
    jar.rotate(b"three")
    assert not jar.knows(path(), cookie)


def test_pending_connections_are_bounded_and_resets_count_for_a_minute():
    jar = FastOpen(b"one", pending_max=3)
    assert [jar.admit(0.0) for _ in range(4)] == [True, True, True, False]
    jar.pending -= 1
    jar.was_reset(10.0)
    assert not jar.admit(69.0)
    assert jar.admit(70.0)
    for _ in range(100):
        jar.was_reset(80.0)
    assert not jar.admit(139.0)
    assert not jar.admit(141.0), "three are pending"


def test_a_client_remembers_the_servers_that_it_asked_last():
    jar = FastOpen(b"one", remembered_max=2)
    for remote in 1, 2:
        jar.learn(path(remote), bytes(4), 1000)
    assert jar.offer(path(1), 0.0).cookie == bytes(4)
    jar.learn(path(3), bytes(6), 900)
    assert [jar.offer(path(remote), 0.0).cookie for remote in (1, 2, 3)] == [bytes(4), b"", bytes(6)]
    assert jar.offer(path(3), 0.0).mss == 900


def test_a_blocked_port_is_one_of_a_server_and_only_for_some_time():
    jar = FastOpen(b"one", remembered_max=2)
    jar.learn(path(), bytes(4), 1000)
    jar.block(path(), 0.0)
    assert jar.offer(path(), 3599.0) is None
    assert jar.offer(path(remote_port=1), 0.0).cookie == bytes(4)
    assert jar.offer(path(), 3600.0).cookie == bytes(4)
    for port in range(3):
        jar.block(path(remote_port=port), 4000.0)
    assert jar.offer(path(remote_port=0), 4001.0) is not None, "the oldest is forgotten"
    assert jar.offer(path(remote_port=1), 4001.0) is None


def test_a_former_cookie_opens_early_and_draws_the_new_one():
    peer = Talk(replace(PLAIN, fast_open=True))
    cookie = peer.jar.cookie(peer.path)
    peer.jar.rotate(b"next")
    peer.tcp.listen()
    peer.inject("S", 0, b"hello", mss=1000, cookie=cookie)
    peer.tcp.accept()
    heard = peer.expect("S.", seq=0, ack=6)
    assert peer.tcp.read() == b"hello"
    assert dict(heard.options())[34] == peer.jar.cookie(peer.path) != cookie
