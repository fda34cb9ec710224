"""vtl-freeze's stage, without a network: which port is which, what is kept on disk, what is sampled."""

import pytest
from freeze_talk import PEER_MAC, VM_MAC, Talk

from lab.wait import until
from tests.schemas import validated
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet.address import BROADCAST
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.runtime.events import made
from vtl_tools.common.runtime.snapshot import Snapshot
from vtl_tools.services.freeze import stage as stand_in
from vtl_tools.services.freeze import state
from vtl_tools.services.freeze.freezer import LATE_S, Freezer
from vtl_tools.services.freeze.stage import Freeze


class Ring:
    """As much of a ring as the stage asks for."""

    def __init__(self):
        self.frames = self.missed = 0
        self.sampled = []

    def sample(self, one_in):
        self.sampled.append(one_in)

    def status(self):
        return {}


def plugged(**options):
    """A stage that knows of one connection, and what comes out at its ports, as (port, destination)."""
    talk = Talk().open()
    stage = Freeze(talk.freezer, "web", **options)
    talk.out = []
    for port in range(len(stage.out)):
        stage.out[port] = lambda batch, now, port=port: talk.out.extend(
            (port, Packet.at(bytearray(frame)).eth.dst) for frame in batch
        )
    talk.events = []
    stage.event = lambda name, **fields: talk.events.append(
        validated(made("vtl-freeze", "vnet0", name, fields))["event"]
    )
    return stage, talk


def frame(talk, from_vm, *fields):
    return Batch.of([talk._frame(from_vm, *fields, (5000, 1000), None)])


def test_beside_an_interface_answers_go_to_the_network_and_what_was_kept_to_the_vm():
    heard = []
    stage, talk = plugged(listen=heard.append)
    stage.start(1.0)
    stage.on_batch(1, frame(talk, False, ".", 1001, 201, 10), 1.0)
    stage.settle(1.0)
    assert talk.out == [(1, PEER_MAC)]
    stage.stop(2.0)
    assert talk.out[1:] == [(1, PEER_MAC), (0, VM_MAC)]
    assert heard == [True, False]
    assert talk.events == ["frozen", "thawed"]


def test_between_two_links_frames_pass_unless_they_are_for_a_vm_that_is_away():
    stage, talk = plugged(passes=True)
    stage.on_batch(0, frame(talk, True, ".", 201, 1501, 0), 1.0)
    stage.on_batch(1, frame(talk, False, ".", 1501, 201, 10), 1.0)
    assert talk.out == [(1, PEER_MAC), (0, VM_MAC)]
    assert (talk.connection.vm_ack + 5000) % 2**32 == 1501
    stage.start(2.0)
    stage.on_batch(1, frame(talk, False, ".", 1501, 201, 10), 2.0)
    stage.settle(2.0)
    assert talk.out[2:] == [(1, PEER_MAC)], "an answer"
    other = frame(talk, False, ".", 1501, 201, 10)
    other[0][10:16] = BROADCAST
    stage.on_batch(1, other, 2.0)
    assert talk.out[3:] == [(0, BROADCAST)], "not for it"
    stage.on_batch(0, frame(talk, True, ".", 201, 1501, 0), 3.0)
    stage.on_batch(1, frame(talk, False, ".", 1501, 201, 10), 3.1)
    assert talk.out[4:] == [(1, PEER_MAC), (0, VM_MAC)], "it speaks: it is back"


def test_on_another_link_the_vms_address_tells_its_frames():
    stage, talk = plugged(overlay=True)
    stage.on_batch(0, frame(talk, True, ".", 201, 1501, 0), 1.0)
    assert (talk.connection.vm_ack + 5000) % 2**32 == 1501
    stage.start(1.0)
    stage.on_batch(0, frame(talk, False, ".", 1501, 201, 10), 1.0)
    stage.settle(1.0)
    assert talk.out == [(0, PEER_MAC)]
    stage.on_batch(0, frame(talk, True, ".", 201, 1501, 0), 2.0)
    stage.on_batch(0, frame(talk, False, ".", 1501, 201, 10), 2.0)
    stage.settle(2.0)
    assert len(talk.out) == 1
    assert talk.events == ["frozen", "speaks"]
    assert stage.status(2.0)["freeze"]["speaks"]


def test_how_many_are_held_is_told_once_the_ring_was_read():
    stage, talk = plugged()
    stage.event = lambda name, **fields: talk.events.append((name, fields))
    stage.start(1.0)
    assert [name for name, _ in talk.events] == ["frozen"]
    stage.wake(stage.deadline())
    stage.wake(1.0 + 3 * LATE_S)
    fields = {"vm": "web", "connections": 1, "can_hold": 1, "cannot_hold": {}}
    assert talk.events[1:] == [("holds", fields)]
    stage.wake(2.0)
    stage.stop(3.0)
    stage.start(4.0)
    stage.stop(4.0)
    stage.wake(5.0)
    assert [name for name, _ in talk.events[2:]] == ["thawed", "frozen", "thawed"]


def test_a_mac_that_was_given_outlasts_an_import():
    stage, talk = plugged(mac=b"\2\0\0\0\0\7")
    stage.import_state("".join(state.dump(Talk().open().freezer, "x", 1.0)).encode(), "x", 1.0)
    assert talk.freezer.table.macs == {b"\2\0\0\0\0\7", VM_MAC}


def test_a_vm_is_announced_where_its_addresses_are_known():
    stage, talk = plugged()
    assert stage.announce(1.0) == {"vm": "web", "announced": 2}
    assert talk.out == [(1, BROADCAST)] * 2
    assert Freeze(Freezer(), overlay=True).announce(1.0) == {"vm": "", "announced": 0}


def test_more_than_can_be_looked_at_is_sampled_and_doubted():
    stage, talk = plugged()
    ring = stage.ring = Ring()
    now = 1000.0
    for share in (0.01, 6.0, 6.0, 0.9, 0.4, 0.4, 0.01, 0.01):
        now += stand_in.LOOK_S
        ring.frames += int(share * stand_in.HEARD_PER_S * stand_in.LOOK_S) // (ring.sampled or [1])[-1]
        stage.wake(now)
    assert ring.sampled == [8, 2, 1]
    assert not talk.freezer.table.gaps
    assert talk.freezer.table.doubts(talk.connection)  # nothing was heard of it since
    talk.vm(".", 201, 1001)
    assert not talk.freezer.table.doubts(talk.connection)


def test_what_the_ring_missed_is_doubted():
    stage, talk = plugged()
    stage.ring = Ring()
    stage.wake(1000.0)
    assert not talk.freezer.table.doubts(talk.connection)
    stage.ring.status = lambda: setattr(stage.ring, "missed", 5)
    stage.wake(1001.0)
    assert talk.freezer.table.doubts(talk.connection)


def test_the_state_is_written_when_it_changed(tmp_path):
    stage, talk = plugged()
    snapshot = stage.snapshot = Snapshot(
        tmp_path / "x.state", lambda now: state.dump(talk.freezer, "web", now), state.OCTETS_MAX
    )

    def written(count):
        snapshot.poll(0.0)
        return snapshot.written == count and not snapshot.is_writing

    now = 1000.0
    stage.wake(now)
    until(lambda: written(1), "the first one")
    assert snapshot.path.stat().st_mode & 0o777 == 0o600
    for _ in range(100):
        now += 1.0
        stage.wake(now)
    assert written(1)
    stage.start(now)
    stage.wake(now + 1.0)
    until(lambda: written(2), "the second one")
    other = Freezer()
    assert state.load(snapshot.path.read_bytes(), "x", other, 0.0) == "web"
    assert other.frozen
    talk.freezer.stop(now)
    snapshot.close()
    snapshot.close()
    assert not snapshot.begin(0.0), "a timer may come after the end"
    assert state.load(snapshot.path.read_bytes(), "x", other, 0.0) == "web"
    assert not other.frozen


def test_a_state_that_cannot_be_written_is_told_and_counted(tmp_path, caplog):
    snapshot = Snapshot(tmp_path / "no" / "x", lambda now: ["x"], 10)
    with pytest.raises(VTLError, match="No such file or directory"):
        snapshot.save(0.0)
    snapshot.begin(0.0)
    until(lambda: snapshot.poll(0.0), "the copy to fail")
    assert (snapshot.written, snapshot.failed) == (0, 1)
    snapshot.close()
    assert "no/x: not written" in caplog.text


def test_many_are_thawed_in_slices():
    stage, talk = plugged()
    for port in range(600):
        talk.port = port
        talk.open()
    stage.start(1.0)
    for port in range(600):
        talk.port = port
        stage.on_batch(1, frame(talk, False, ".", 1000, 201, 0), 1.0)
    talk.freezer.take()
    stage.stop(2.0)
    assert len(talk.out) == 256
    assert stage.deadline() <= 2.0
    for now in 2.1, 2.2, 2.3:
        stage.wake(now)
        stage.settle(now)
    assert len(talk.out) == 600
