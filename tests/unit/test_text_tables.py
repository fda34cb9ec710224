"""Tables: what a terminal of any width shows, and the lines for programs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.table import Kind, Screen, Table, cut, fitted, is_number, plain, width_of

FLOWS = Table(
    [("connection", Kind.NAME), ("state", Kind.TEXT), ("ends in", Kind.NUMBER), ("rule", Kind.TEXT)],
    [
        ("out tcp 10.0.0.5:40000 1.2.3.4:443", "established established", "86400 s", "web.rules:3: allow x"),
        ("in udp [2001:db8:0:1::abcd]:53 [2001:db8::1]:40000", "new", "30 s", "web.rules:4: " + "x" * 400),
    ],
)
COUNTS = Table(
    [("link", Kind.NAME), *((f"counter {i}", Kind.NUMBER) for i in range(9))],
    [["vmnet1" * 9, *(10**i for i in range(9))]],
)


def lines(table, columns, *, colours=False):
    return list(fitted(table, Screen(columns, 24, colours)))


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(columns):
    shown = lines(COUNTS, columns) + lines(FLOWS, columns)
    assert max(map(width_of, shown)) <= columns
    for number in "86400 s", "30 s", *(f"{10**i:,}" for i in range(9)):
        assert any(re.search(rf"(^|\s){number}(\s|$)", line) for line in shown), number


def test_numbers_that_have_no_room_beside_one_another_follow_below_with_the_name_of_their_row():
    blocks = lines(COUNTS, 60)
    assert len(blocks) > 2
    assert len(blocks) % 2 == 0
    assert len({line.split()[0] for line in blocks[1::2]}) == 1


def test_a_connection_has_room_before_its_rule_and_keeps_both_ends():
    assert "in udp [2001:db8:0:1::abcd]:53 [2001:db8::1]:40000" in lines(FLOWS, 100)[2]
    name = lines(FLOWS, 60)[2].split("  ")[0]
    assert name.startswith("in udp")
    assert name.endswith(":40000")
    assert "…" in name


def test_a_row_for_programs_is_one_line_in_which_nothing_is_cut():
    shown = list(plain(FLOWS))
    assert [line.split("\t") for line in shown] == [list(row) for row in FLOWS.rows]
    assert list(plain(COUNTS)) == ["\t".join(["vmnet1" * 9, *(str(10**i) for i in range(9))])]
    (line,) = plain(Table([], [("a\tb\nc", 1234567, 1.25, True, None, ["x", "y"], {"a": 1, "b": 2})]))
    assert line == "a\\tb\\nc\t1234567\t1.25\tyes\t-\tx, y\ta 1, b 2"


def test_counters_by_reason_are_whole_or_left_out():
    table = Table([("reasons", Kind.LIST)], [("denied 123,456, spoofed-arp 78,901, malformed 5",)])
    for columns in range(12, 60):
        (_, line) = lines(table, columns)
        assert all(
            part in ("…", "denied 123,456", "spoofed-arp 78,901", "malformed 5") for part in line.split(", ")
        )


def test_colours_take_no_room_and_are_only_of_terminals_that_have_them():
    table = Table([("link", Kind.NAME), ("state", Kind.TEXT)], [("eth0", "up"), ("up", "down")], "links")
    coloured = lines(table, 80, colours=True)
    assert "\x1b[32mup\x1b[m" in coloured[2]
    assert [re.sub(r"\x1b\[\d*m", "", line) for line in coloured] == lines(table, 80)


def test_wide_characters_count_twice_and_marks_not_at_all():
    assert width_of("日本") == 4
    assert width_of("e\u0301") == 1
    assert cut("日本語のリンク", 7) == "日本語…"
    assert width_of(cut("日本語のリンク", 8, middle=True)) <= 8
    assert cut("abcdefghij", 5, middle=True) == "ab…ij"
    assert cut("abc", 3) == "abc"


@given(
    st.lists(
        st.tuples(st.text(max_size=90), st.integers(0, 10**15), st.text(max_size=40), st.floats(0, 1e9)),
        max_size=5,
    ),
    st.integers(40, 200),
)
def test_whatever_the_cells_are_each_line_fits_and_each_number_is_whole(rows, columns):
    kinds = (Kind.NAME, Kind.NUMBER, Kind.LIST, Kind.TEXT)
    table = Table([(kind.name, kind) for kind in kinds], rows, "a title")
    shown = lines(table, columns)
    assert all(width_of(line) <= columns for line in shown)
    for _, count, _, value in rows:
        assert is_number(f"{count:,}")
        assert any(f"{count:,}" in line for line in shown)
        assert any(f"{value:.1f}" in line for line in shown)
    assert len(list(plain(table))) == len(rows)
