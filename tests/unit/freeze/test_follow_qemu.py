"""What QEMU tells of its guest, in the orders in which QEMU 7.2 does, and what the service makes of it."""

import json

import pytest

from vtl_tools.common.runtime.snapshot import Snapshot
from vtl_tools.services.freeze import state
from vtl_tools.services.freeze.guest_state import FreezeAction as Action
from vtl_tools.services.freeze.guest_state import GuestState
from vtl_tools.services.freeze.stage import Freeze

ANSWER = (".", 201, 1001, 0, (1000, 5000))
OPENING = (".", 201, 1001, 500, (1000, 5000))


def status(word):
    return "STATUS", {"running": word == "running", "status": word}


def migration(word):
    return "MIGRATION", {"status": word}


STOP, RESUME = ("STOP", {}), ("RESUME", {})
RUNNING, COMPLETED = status("running"), migration("completed")
TOLD = {
    "stopped and gone on": ([RUNNING, STOP, RESUME], [Action.STOP, Action.START, Action.STOP]),
    "asleep and awake": (
        [RUNNING, ("SUSPEND", {}), ("WAKEUP", {})], [Action.STOP, Action.START, Action.STOP],
    ),
    "found paused": ([status("paused"), RESUME], [Action.START, Action.STOP]),
    "found on its way out": ([status("finish-migrate"), COMPLETED], [Action.START, Action.LEAVE]),
    "found gone": ([status("postmigrate")], [Action.LEAVE]),
    "migrated": (
        [RUNNING, migration("setup"), migration("active"), STOP, COMPLETED],
        [Action.STOP, Action.NOTHING, Action.NOTHING, Action.START, Action.LEAVE],
    ),
    "migrated while paused": ([status("paused"), migration("active"), COMPLETED],
                              [Action.START, Action.NOTHING, Action.LEAVE]),
    "migrated with its memory to follow": (
        [RUNNING, migration("active"), STOP, migration("postcopy-active"), COMPLETED],
        [Action.STOP, Action.NOTHING, Action.START, Action.LEAVE, Action.LEAVE],
    ),
    "a migration that fails": (
        [RUNNING, migration("active"), STOP, migration("failed"), RESUME],
        [Action.STOP, Action.NOTHING, Action.START, Action.NOTHING, Action.STOP],
    ),
    "a migration that is cancelled before it stops": (
        [RUNNING, migration("active"), migration("cancelling"), migration("cancelled")],
        [Action.STOP, Action.NOTHING, Action.NOTHING, Action.NOTHING],
    ),
    "back from where it was to go": ([RUNNING, STOP, COMPLETED, RESUME],
                                     [Action.STOP, Action.START, Action.LEAVE, Action.STOP]),
    "incoming, and told to go on": ([status("inmigrate"), COMPLETED, RESUME],
                                    [Action.NOTHING, Action.NOTHING, Action.ARRIVE]),
    "incoming, and going on by itself": ([status("inmigrate"), RESUME, COMPLETED],
                                         [Action.NOTHING, Action.ARRIVE, Action.NOTHING]),
    "on to the next host": (
        [status("inmigrate"), RESUME, COMPLETED, STOP, COMPLETED],
        [Action.NOTHING, Action.ARRIVE, Action.NOTHING, Action.START, Action.LEAVE],
    ),
    "on to the next host without having run": (
        [status("inmigrate"), COMPLETED, COMPLETED], [Action.NOTHING, Action.NOTHING, Action.LEAVE],
    ),
    "switched off, where QEMU stays": (
        [RUNNING, ("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"}), STOP, status("shutdown")],
        [Action.STOP, Action.NOTHING, Action.NOTHING, Action.NOTHING],
    ),
    "switched off and on again": (
        [RUNNING, ("SHUTDOWN", {"guest": True}), STOP, ("RESET", {}), RESUME, STOP],
        [Action.STOP, Action.NOTHING, Action.NOTHING, Action.NOTHING, Action.STOP, Action.START],
    ),
    "nonsense": (
        [("STATUS", {}), ("MIGRATION", {}), ("MIGRATION", {"status": []}), ("SHUTDOWN", {"guest": 1}), STOP],
        [Action.NOTHING, Action.NOTHING, Action.NOTHING, Action.NOTHING, Action.START],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TOLD)
def test_what_each_event_asks_for(name):
    events, expected = TOLD[name]
    guest = GuestState()
    assert [guest.on_event(*event) for event in events] == expected


class Service(Freeze):
    """A service around a conversation's freezer; what it printed, sent and was to hear is at hand."""

    def __init__(self, talk):
        self.hears = []
        super().__init__(talk.freezer, "web", listen=self.hears.append)
        self.talk, self.printed, self.sent = talk, [], []
        self.event = lambda name, **fields: self.printed.append(name)
        self.out_pieces = [self.sent.extend, self.sent.extend]

    def tell(self, *events):
        for event in events:
            self.qemu.on_event(*event, self.talk.now)
        return self

    def export(self):
        return "".join(state.dump(self.freezer, self.vm, self.talk.now)).encode()


@pytest.fixture
def service(new_talk):
    return Service(new_talk().open())


@pytest.fixture
def other(new_talk):
    """The service of another host, which knows nothing."""
    return Service(new_talk())


def keep_alive(service):
    return service.talk.peer(".", 1000, 201)


def test_stop_freezes_and_resume_thaws(service):
    service.tell(RUNNING, STOP)
    assert keep_alive(service) == [ANSWER]
    service.tell(RESUME)
    assert keep_alive(service) == []
    assert service.hears == [True, False]
    assert service.printed == ["frozen", "thawed"]
    assert len(service.sent) == 1


def test_what_has_left_is_not_answered_for_and_can_be_exported(service, other):
    service.tell(RUNNING, STOP)
    keep_alive(service)
    service.tell(COMPLETED)
    assert keep_alive(service) == []
    assert service.hears == [True, False]
    assert service.printed == ["frozen", "left"]
    assert service.status(service.talk.now)["freeze"]["left"]
    told = other.tell(status("inmigrate"), COMPLETED).qemu.import_state(service.export(), "x", other.talk.now)
    assert told == {"vm": "web", "announced": 2, "frozen": True, "connections": 1}
    assert other.hears[-1] is True
    assert keep_alive(other) == [ANSWER]
    announced = len(other.sent)
    other.tell(RESUME)
    assert other.printed == ["frozen", "thawed"]
    assert len(other.sent) == 2 * announced + 1, "announced again, and one window"
    assert keep_alive(other) == []


def test_one_that_fails_to_leave_goes_on(service):
    service.tell(RUNNING, migration("active"), STOP)
    assert keep_alive(service) == [ANSWER]
    service.tell(migration("failed"), RESUME)
    assert service.printed == ["frozen", "thawed"]


def test_one_that_left_for_a_file_can_be_held_again(service):
    service.tell(RUNNING, STOP, COMPLETED)
    assert service.start(service.talk.now)["began"]
    assert keep_alive(service) == [ANSWER]
    service.tell(status("inmigrate"), RESUME)
    assert service.printed[-1] == "thawed"
    assert len(service.freezer.table) == 1


def test_one_that_left_and_comes_again_without_a_state_has_no_past(service):
    service.tell(RUNNING, STOP)
    service.talk.peer(".", 1001, 201, 1000)
    service.tell(COMPLETED, status("inmigrate"), RESUME)
    assert len(service.freezer.table) == 0
    assert service.freezer.table.held == 0
    assert service.talk.said() == []
    assert service.talk.delivered == []
    assert service.freezer.table.hosts, "where it is, is known"


def test_one_that_left_and_goes_on_all_the_same_has_one(service):
    service.tell(RUNNING, STOP)
    keep_alive(service)
    service.tell(COMPLETED, RESUME)
    assert service.printed == ["frozen", "left", "thawed"]
    assert len(service.sent) == 1


def test_leaving_outlasts_the_service(service, other):
    service.tell(RUNNING, STOP, COMPLETED)
    other.import_state(service.export(), "x", other.talk.now)
    assert other.freezer.left
    assert other.hears == [False]
    assert keep_alive(other) == []


def test_a_state_without_it_is_none(service):
    told = json.loads(service.export())
    del told["left"]
    with pytest.raises(state.VTLError, match="no bool as 'left'"):
        state.load(json.dumps(told).encode(), "x", service.freezer, 0.0)


def test_a_state_that_comes_after_the_vm_opens_the_windows_at_once(service, other):
    service.tell(RUNNING, STOP)
    service.talk.peer(".", 1001, 201, 1000)
    service.tell(COMPLETED)
    other.tell(status("inmigrate"), COMPLETED, RESUME)
    told = other.qemu.import_state(service.export(), "x", other.talk.now)
    assert not told["frozen"]
    assert other.printed == ["frozen", "thawed"]
    assert len(other.sent) == 2 + 1 + 1, "two announcements, a window, and what the peer sent"
    assert not other.freezer.frozen


def test_a_state_that_comes_after_the_vm_does_not_undo_what_it_said(service, other):
    service.tell(RUNNING, STOP)
    service.talk.peer(".", 1001, 201, 1000)
    service.tell(COMPLETED)
    other.tell(status("inmigrate"), COMPLETED, RESUME)
    other.talk.vm("P.", 201, 2001, 50, stamps=(1100, 5000))
    other.talk.peer(".", 2001, 251, stamps=(5100, 1100))
    other.qemu.import_state(service.export(), "x", other.talk.now)
    assert len(other.sent) == 2 + 1, "two announcements, and what the peer sent, but no window"
    other.tell(STOP)
    assert other.talk.peer(".", 2000, 251, stamps=(5200, 1100)) == [(".", 251, 2001, 0, (1100, 5200))]
    other.sent.clear()
    other.tell(RESUME)
    assert len(other.sent) == 1


def test_a_state_of_a_vm_that_runs_knows_connections_beside_those_that_were_heard(new_talk, service, other):
    other.tell(RUNNING)
    other.talk.port += 1
    other.talk.open()
    other.qemu.import_state(service.export(), "x", other.talk.now)
    assert len(other.freezer.table) == 2


def test_the_monitor_needs_a_right_that_the_links_do_not(service, tmp_path):
    from vtl_tools.services.freeze.qmp import Monitor

    assert not service.capabilities
    monitor = Monitor(str(tmp_path / "qmp"), service.qemu.on_event)
    service.follow(monitor)
    assert not service.capabilities
    assert service.status(0.0)["freeze"]["qmp"] == {"socket": str(tmp_path / "qmp"), "up": False, "losses": 0}
    monitor.close()


def test_what_qemu_tells_is_written_at_once(service, tmp_path):
    now = service.talk.now

    def dumped(now):
        return state.dump(service.freezer, "web", now)

    service.snapshot = Snapshot(tmp_path / "x.state", dumped, state.OCTETS_MAX)
    service.wake(now)
    service.snapshot.close()
    before = service.snapshot = Snapshot(service.snapshot.path, dumped, state.OCTETS_MAX)
    service.tell(RUNNING, STOP)
    assert now < service.deadline() <= now + 0.1
    service.wake(service.deadline())
    assert before.is_writing
    before.close()
    assert json.loads(before.path.read_bytes())["frozen"]
    assert service.deadline() > now + 0.1


def test_the_end_of_the_service_is_not_the_vms(service):
    service.tell(RUNNING, STOP)
    service.on_stop(service.talk.now)
    assert not service.freezer.left
