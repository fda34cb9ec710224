"""What proves where a peer's SND.UNA is, and what does not."""

from vtl_tools.services.freeze.peer_evidence import PeerEvidence


def data(*seen, stamps=True):
    """The first number proven by segments at (when, seq), as the index of the segment and the number."""
    proof = PeerEvidence()
    for i, (now, seq, *stamp) in enumerate(seen):
        if (number := proof.data(seq, (stamp or [i])[0] if stamps else None, now)) is not None:
            return i, number
    return None


def test_a_retransmission_timer_proves_the_head():
    assert data((0, 100), (0.2, 100), (0.6, 100)) == (2, 100)
    assert data((0, 100), (60, 100), (120, 100)) == (2, 100)


def test_a_tail_loss_probe_proves_nothing_even_if_the_head_is_lost():
    assert data((0, 300), (0.4, 300)) is None
    assert data((0, 300), (0.4, 300), (1.0, 100), (1.6, 300), (1.8, 100), (3.4, 100)) == (5, 100)


def test_copies_and_recovery_prove_nothing():
    assert data((0, 100), (0.01, 100), (0.02, 100), (0.1, 100)) is None
    assert data((0, 100), (0.2, 100), (0.4, 100), (0.6, 100), (0.8, 100)) is None


def test_copies_that_come_late_prove_nothing():
    assert data((0, 100, 7), (0.3, 100, 7), (0.9, 100, 7), (2, 100, 8)) is None
    assert data((0, 100), (0.3, 100), (0.9, 100), stamps=False) is None
    assert data((0, 100), (0.3, 100), (0.9, 100), (2.1, 100), stamps=False) == (3, 100)


def test_what_is_before_begins_anew():
    assert data((0, 200), (0.2, 200), (0.3, 100), (0.6, 200), (1.4, 200)) is None
    assert data((0, 100), (1000, 200), (1001, 200), (1003, 200)) == (3, 200)


def empty(*seen):
    proof = PeerEvidence()
    for i, (now, seq, highest) in enumerate(seen):
        if (number := proof.empty(seq, i, highest, now)) is not None:
            return i, number
    return None


def test_a_probe_is_before_what_is_next():
    assert empty((0, 99, 100), (1, 99, 100), (2, 99, 100)) == (2, 100)


def test_an_acknowledgement_is_no_probe():
    assert empty(*((i, 100, 100) for i in range(9))) is None
    assert empty(*((i, 100, None) for i in range(9))) is None


def test_what_is_late_is_no_probe():
    assert empty(*((i / 10, 99, 100) for i in range(9))) is None
    assert empty(*((i, 99, 5000) for i in range(9))) is None


def test_what_comes_again_has_no_probe_before_it():
    proof = PeerEvidence()
    proof.empty(99, 0, 100, 0)
    proof.empty(99, 1, 100, 1)
    proof.data(99, 2, 1.5)
    assert proof.empty(99, 3, 100, 2) is None


def test_an_octet_that_came_as_data_is_not_acknowledged_by_what_has_its_number():
    proof = PeerEvidence()
    proof.data(99, 0, 0)  # a peer that probes a zero window by an octet, and answers with that octet's number
    assert [proof.empty(99, now, 100, now) for now in (1, 10, 20, 249)] == [None] * 4
    assert [proof.empty(99, now, 100, now) for now in (300, 310, 320)] == [None, None, 100]  # a late copy


def test_copies_of_a_probe_are_none():
    proof = PeerEvidence()
    assert [proof.empty(99, 5, 100, now) for now in range(9)] == [None] * 9
