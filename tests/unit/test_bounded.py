"""Tables that forget the oldest first."""

from types import SimpleNamespace

from vtl_tools.common.bounded import BoundedTable, silent


def test_the_oldest_entry_gives_way_and_one_that_is_put_again_is_new() -> None:
    table = BoundedTable[str, int](2)
    table.put("a", 1)
    table.put("b", 2)
    table.put("a", 3)
    assert table == {"b": 2, "a": 3}
    table.put("c", 4)
    assert list(table.items()) == [("a", 3), ("c", 4)]


def test_entries_are_silent_that_were_not_seen_since() -> None:
    table = {name: SimpleNamespace(seen_at=at) for name, at in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    found = []
    for key in silent(table, 2.0):
        found.append(key)
        del table[key]
    assert (found, list(table)) == (["a", "b"], ["c"])
