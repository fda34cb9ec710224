"""The clients' connections to vortex-backend, over loopback."""

import time
from collections.abc import Iterator

import pytest

from lab.wait import until
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.session import caller_limit
from vtl_tools.common.session.base import PathProfile
from vtl_tools.common.session.keys import key_id
from vtl_tools.common.session.tcp import TCPConnection, TCPTransport
from vtl_tools.common.session.tcp_link import TCPLink
from vtl_tools.services.vortex.listener import HELLO, ClientListener
from vtl_tools.services.vortex.wormhole_client import WormholeClient

KEYS = {"alice": b"a" * 32, "bob": b"b" * 32}
FRAME = bytes(10) + b"\x02" * 12 + b"\x08\x00" + bytes(20)


@pytest.fixture
def listener() -> Iterator[ClientListener]:
    made = ClientListener(("127.0.0.1", 0))
    made.serve(WormholeClient(number, *one) for number, one in enumerate(KEYS.items(), 1))
    yield made
    made.close()


def call(listener: ClientListener, name: str) -> TCPLink:
    link = TCPLink(
        "tcp:", listener.address, server=False, key=KEYS[name], hello=HELLO, introduction=key_id(KEYS[name])
    )
    link.__enter__()

    def is_up() -> bool:
        link.read()
        listener.poll(time.monotonic())
        return link.up

    until(is_up, "the session")
    return link


def test_a_client_that_sends_much_has_a_batch_in_its_turn(listener: ClientListener) -> None:
    turns: list[tuple[str, int]] = []
    listener.on_frames = lambda client, batch, now: turns.append((client.name, batch.count))
    links = [call(listener, name) for name in KEYS]
    batch = Batch.of([FRAME] * SLOTS)
    for link, count in zip(links, (40, 1), strict=True):
        for _ in range(count):
            assert link.write(batch) == SLOTS
    per_turn = []

    def is_through() -> bool:
        before = len(turns)
        listener.poll(time.monotonic())
        per_turn.append([name for name, _ in turns[before:]])
        return sum(count for _, count in turns) == 41 * SLOTS

    until(is_through, "all frames")
    assert max(names.count("alice") for names in per_turn) <= 2
    assert max(count for _, count in turns) <= SLOTS
    for link in links:
        link.close()


def test_a_source_that_tries_again_and_again_gets_no_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_limit, "BURST", 3.0)
    monkeypatch.setattr(caller_limit, "PER_S", 1e-6)
    limited = ClientListener(("127.0.0.1", 0))
    limited.serve([WormholeClient(1, "alice", KEYS["alice"])])
    transport = TCPTransport(PathProfile())
    held: list[TCPConnection] = []
    for _ in range(6):
        held.append(transport.connect(limited.address))
        until(lambda: not held[-1].connect_ex(limited.address), "the connection")
        held[-1].sendall(key_id(KEYS["alice"]))

    def is_refused() -> bool:
        limited.poll(time.monotonic())
        return limited.refused >= 3

    until(is_refused, "the refusals")
    assert limited.refused == 3
    for connection in held:
        connection.close()
    limited.close()
