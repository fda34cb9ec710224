"""The scoreboard of selective acknowledgements."""

from vtl_tools.common.tcp.sack import RANGES_MAX, Scoreboard


def test_ranges_that_touch_become_one():
    board = Scoreboard()
    assert board.add(10, 20)
    assert board.add(30, 40)
    assert not board.add(12, 18)
    assert board.add(20, 30)
    assert (board.sacked, board.hole(0, 50)) == (30, (0, 10))


def test_a_peer_that_tells_of_every_other_octet_does_not_fill_memory():
    board = Scoreboard()
    for at in range(0, 10 * RANGES_MAX, 2):
        board.add(at, at + 1)
    assert board.sacked == RANGES_MAX
    assert board.add(0, 10 * RANGES_MAX), "what joins ranges is taken"
