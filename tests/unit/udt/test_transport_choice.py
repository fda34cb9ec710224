"""The choice of a transport, on traffic that it is told of."""

from vtl_tools.services.udt.choice import MEMORY_S, TransportChoice

ALL = ["tcp", "srt", "udt"]
FAST, HALF, SLOW = 37e6, 12e6, 2e6


def loaded(choice, name, rate, looks=20, start=0.0):
    """Note a rate for so many looks; return the time after the last."""
    for look in range(looks):
        choice.note_load(name, rate, start + look / 2)
    return start + looks / 2


def test_nothing_known_prefers_the_first_that_answers():
    choice = TransportChoice(ALL, has_bbr=True)
    assert choice.choose(set(), 0.0) == "tcp"
    assert choice.choose({"udt", "srt"}, 0.0) == "srt"
    assert choice.choose(set(ALL), 0.0) == "tcp"


def test_a_transport_that_fills_the_path_stays():
    choice = TransportChoice(ALL, has_bbr=True)
    choice.rtt_s, choice.loss = 0.1, 0.001
    end = loaded(choice, "tcp", FAST)
    assert choice.choose(set(ALL), end) == "tcp"


def test_a_transport_that_falls_behind_is_left_and_the_choice_returns_from_a_slower_one():
    choice = TransportChoice(ALL, has_bbr=True)
    end = loaded(choice, "tcp", FAST)
    end = loaded(choice, "tcp", HALF, start=end)
    assert choice.choose(set(ALL), end) == "srt"
    end = loaded(choice, "srt", SLOW, start=end)
    assert choice.choose(set(ALL), end) == "udt"  # not known to be slower
    end = loaded(choice, "udt", SLOW, start=end)
    assert choice.choose(set(ALL), end) == "tcp"
    assert choice.choose(set(ALL), end + 60) == "tcp"


def test_a_wrong_choice_is_remembered_for_a_while_only():
    choice = TransportChoice(["tcp", "udt"], has_bbr=True)
    end = loaded(choice, "udt", SLOW)
    assert choice.choose({"tcp", "udt"}, end) == "tcp"
    assert choice.expected("udt", end) == SLOW
    assert choice.expected("udt", end + MEMORY_S + 1) > SLOW


def test_without_bbr_a_lossy_long_path_is_left_to_others_before_anything_was_measured():
    choice = TransportChoice(ALL, has_bbr=False)
    choice.rtt_s, choice.loss = 0.1, 0.001
    assert choice.choose(set(ALL), 0.0) == "srt"
    assert choice.choose({"tcp", "udt"}, 0.0) == "udt"
    short = TransportChoice(ALL, has_bbr=False)
    short.rtt_s, short.loss = 0.001, 0.0
    assert short.choose(set(ALL), 0.0) == "tcp"


def test_a_model_promises_no_more_than_the_path_has_shown():
    choice = TransportChoice(["tcp", "udt"], has_bbr=True)
    choice.rtt_s, choice.loss = 0.1, 0.0
    end = loaded(choice, "tcp", HALF)
    assert choice.expected("udt", end) == HALF
    assert choice.choose({"tcp", "udt"}, end) == "tcp"


def test_the_first_moments_of_load_are_no_measurement():
    choice = TransportChoice(["tcp", "udt"], has_bbr=True)
    loaded(choice, "tcp", SLOW, looks=3)
    assert choice.status(2.0) == {}
    loaded(choice, "tcp", FAST, looks=20, start=2.0)
    assert choice.status(12.0)["tcp"] > 7e-6 * FAST


def test_a_transport_that_no_longer_answers_is_replaced_until_it_is_back():
    choice = TransportChoice(["tcp", "udt"], has_bbr=True)
    loaded(choice, "tcp", FAST)
    assert choice.choose({"udt"}, 20.0) == "udt"
    assert choice.choose({"udt", "tcp"}, 21.0) == "tcp"
