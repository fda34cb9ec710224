"""How many connections of a VM that is away are held, and why the others are not."""

from vtl_tools.services.freeze.holdings import OBSTACLES, HoldingsCount, lines


def counted(talk):
    count = HoldingsCount(talk.freezer.table)
    while count.step():
        pass
    return count.result()


def test_start_says_how_many_connections_it_can_hold_and_why_not_the_others(new_talk):
    talk = new_talk().open()
    talk.port = 1  # the VM's SYN has no answer
    talk.vm("S", 0)
    talk.port = 2  # opened by the peer, which has not acknowledged
    talk.peer("S", 0)
    talk.vm("S.", 0, 1)
    talk.port = 3  # opened by the VM, which has not acknowledged
    talk.vm("S", 0)
    talk.peer("S.", 0, 1)
    talk.port = 4  # the VM alone is heard, as where the peer's segments take another way
    talk.vm(".", 1, 1, 100)
    talk.vm(".", 101, 1, 100)
    talk.port = 5
    talk.open()
    talk.peer("F.", 1001, 201)
    talk.port = 6
    talk.open()
    talk.peer("F.", 1001, 201)
    talk.vm("F.", 201, 1002)
    talk.freeze()
    result = counted(talk)
    assert result == {
        "connections": 7,
        "can_hold": 2,
        "cannot_hold": {"half-open": 3, "ended": 1, "no-peer": 1},
    }
    first, *others = lines(result)
    assert first == "2 of 7 connections held"
    assert others == [
        f"not held: {count} {why}: {OBSTACLES[why]}" for why, count in result["cannot_hold"].items()
    ]


def test_a_connection_whose_segments_passed_unseen_is_held_once_its_peer_has_shown_its_number(new_talk):
    talk = new_talk().open()
    talk.freezer.table.set_sampled(True)
    talk.freezer.table.set_sampled(False)
    talk.freeze()
    assert counted(talk)["cannot_hold"] == {"unsure": 1}
    for at, stamp in (0.3, 6000), (0.6, 6300), (1.2, 6900), (2.4, 8100):
        talk.now += at
        talk.peer(".", 1501, 201, 100, stamps=(stamp, 1000))
    assert talk.connection.is_proven
    assert counted(talk) == {"connections": 1, "can_hold": 1, "cannot_hold": {}}


def test_what_only_a_peer_claims_is_not_counted(new_talk):
    talk = new_talk().open().freeze()
    talk.port = 9
    talk.peer(".", 5, 5)
    assert counted(talk)["connections"] == 1
