"""QEMU's monitor, with a made-up QEMU: what comes in pieces, in masses, or as nonsense."""

import json
import select
import socket

import pytest

from vtl_tools.services.freeze import qmp

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@pytest.fixture
def talk(tmp_path):
    """A monitor, what it told, and a function that is QEMU: accept, then the socket to speak on."""
    path = str(tmp_path / "qmp")
    told = []
    monitor = qmp.Monitor(path, lambda name, data, now: told.append((name, data)))
    listener = socket.socket(socket.AF_UNIX)
    yield monitor, told, listener, path
    monitor.close()
    monitor.close()
    listener.close()


def run(monitor):
    while select.select([monitor], [], [], 0.05)[0]:
        monitor.poll(0.0)


def accepted(monitor, listener, path):
    listener.bind(path)
    listener.listen(4)
    listener.settimeout(5)
    again(monitor)
    return listener.accept()[0]


def again(monitor):
    """Let the monitor's alarm go off."""
    assert select.select([monitor], [], [], 5)[0]
    run(monitor)


def test_events_come_after_the_greeting_was_answered(talk):
    monitor, told, listener, path = talk
    run(monitor)
    with accepted(monitor, listener, path) as qemu:
        assert not monitor.up
        for octet in GREETING:
            qemu.send(bytes([octet]))
            run(monitor)
        asked = [json.loads(line)["execute"] for line in qemu.recv(4096).splitlines()]
        assert asked == ["qmp_capabilities", "migrate-set-capabilities", "query-status"]
        assert monitor.up
        qemu.send(b'{"return": {}}\n{"return": {"running": true, "status": "running"}}\n')
        qemu.send(
            b'{"event": "STOP", "timestamp": {}}\n{"event": "MIGRATION", "data": {"status": "active"}}\n'
        )
        run(monitor)
    assert told == [
        ("STATUS", {"running": True, "status": "running"}),
        ("STOP", {}),
        ("MIGRATION", {"status": "active"}),
    ]


@pytest.mark.parametrize(
    "said", [b"hello\n", b"[]\n", b"7\n", b"[" * 100_000 + b"\n", b"x" * (qmp.LINE_MAX + 1)]
)
def test_nonsense_ends_the_connection_and_it_is_tried_again(talk, said):
    monitor, told, listener, path = talk
    with accepted(monitor, listener, path) as qemu:
        qemu.send(GREETING)
        run(monitor)
        qemu.setblocking(False)
        rest = memoryview(said)
        while rest:
            try:
                rest = rest[qemu.send(rest) :]
            except BlockingIOError:
                pass
            except BrokenPipeError:
                break
            run(monitor)
        run(monitor)
        assert not monitor.up
    again(monitor)
    with listener.accept()[0] as qemu:
        qemu.send(GREETING + b'{"event": "RESUME"}\n')
        run(monitor)
    assert told == [("RESUME", {})]
    assert monitor.losses == 1


def test_a_mass_of_events_is_taken_in_turns(talk):
    monitor, told, listener, path = talk
    with accepted(monitor, listener, path) as qemu:
        qemu.send(GREETING + b'{"event": "STOP"}\n' * 3 * qmp.LINES)
        assert select.select([monitor], [], [], 5)[0]
        monitor.poll(0.0)
        assert len(told) < qmp.LINES
        run(monitor)
        assert len(told) == 3 * qmp.LINES


@pytest.mark.parametrize("data", ["null", "7", '"x"', "[]"])
def test_data_of_another_kind_is_none(talk, data):
    monitor, told, listener, path = talk
    with accepted(monitor, listener, path) as qemu:
        qemu.send(
            GREETING + b'{"event": "STOP", "data": ' + data.encode() + b'}\n{"event": 7}\n{"return": 7}\n'
        )
        run(monitor)
        assert told == [("STOP", {})]
