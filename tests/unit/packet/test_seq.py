"""Sequence numbers on their circle."""

from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.packet.seq import seq_add, seq_between, seq_ge, seq_gt, seq_le, seq_lt, seq_max, seq_sub

NUMBER = st.integers(0, 2**32 - 1)


@given(NUMBER, st.integers(1, 2**31 - 1))
def test_what_is_ahead_by_less_than_half_the_circle_is_later(a, octets):
    b = seq_add(a, octets)
    assert seq_lt(a, b)
    assert seq_le(a, b)
    assert seq_gt(b, a)
    assert seq_ge(b, a)
    assert not seq_lt(b, a)
    assert not seq_le(b, a)
    assert seq_max(a, b) == seq_max(b, a) == b
    assert (seq_sub(b, a), seq_sub(a, b)) == (octets, -octets)


@given(NUMBER)
def test_a_number_is_neither_before_nor_after_itself(a):
    assert seq_le(a, a)
    assert seq_ge(a, a)
    assert not seq_lt(a, a)
    assert not seq_gt(a, a)


@given(NUMBER, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_a_window_has_its_first_number_and_not_its_last(low, size, ahead):
    assert seq_between(low, seq_add(low, ahead), seq_add(low, size)) == (ahead < size)
