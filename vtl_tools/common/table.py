"""Tables of text. On a terminal they fit its width; in a pipe each row is one line, and nothing is cut.

A number is never cut. Names, such as links and connections, are cut in the middle, since both ends tell them
apart; other text is cut at the end. A table that is still too wide continues below, with its first column.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import Final, NamedTuple, TextIO

from vtl_tools.common.text import printable

_GAP: Final = 2
_TITLE_MIN: Final = 6
_MARK: Final = "…"
_NUMBER: Final = r"[-+]?[\d.,]*\d[\d.,]*( ?[a-zA-Z%]{1,2})?"
_WORDS: Final = {
    "up": "32", "down": "31", "running": "32", "died": "31", "not permitted": "33", "not answering": "31",
    "in force": "32", "leaked": "31", "not carried": "31",
}  # fmt: skip
"""Words that have a colour where they are a whole cell: the parameter of SGR (ECMA-48)."""
_BOLD: Final = "1"
RED: Final = "31"


class Kind(Enum):
    """The kind of a column's cells. The value: the characters that a cell keeps at least."""

    NUMBER = 0
    NAME = 14
    LIST = 12  # of items between commas, which are whole or left out
    TEXT = 10


class Table(NamedTuple):
    """Columns with their titles, and rows of cells: numbers, lists, or text, also from outside."""

    columns: Sequence[tuple[str, Kind]]
    rows: Sequence[Sequence[object]] = ()
    title: str = ""


class Screen(NamedTuple):
    """A terminal's size in character cells, and whether it is to show colours."""

    columns: int
    lines: int
    has_colours: bool = False


def screen_of(stream: TextIO | None) -> Screen | None:
    """Return the terminal that a stream leads to; None: it leads to a pipe or a file, or is closed.

    Respects NO_COLOR (no-color.org) and TERM=dumb.
    """
    if stream is None or not stream.isatty():
        return None
    try:
        columns, lines = os.get_terminal_size(stream.fileno())
    except OSError:
        columns = lines = 0
    is_dumb = os.environ.get("TERM", "dumb") == "dumb"
    return Screen(columns or 80, lines or 24, not is_dumb and not os.environ.get("NO_COLOR"))


def plain(table: Table) -> Iterator[str]:
    """Yield a line for each row: its cells in full, between tabs, without titles."""
    for row in table.rows:
        yield "\t".join(map(whole, row))


def fitted(table: Table, screen: Screen) -> Iterator[str]:
    """Yield the lines of a table with its titles, each as wide as the screen at most."""
    if table.title:
        yield styled(cut(printable(table.title), screen.columns), _BOLD, screen)
    titles = [printable(title) for title, _ in table.columns]
    cells = [list(map(_shown, row)) for row in table.rows]
    sizes = [_Size(titles[i], kind, [row[i] for row in cells]) for i, (_, kind) in enumerate(table.columns)]
    for block in _blocks(sizes, screen.columns):
        widths = _widths([sizes[i] for i in block], screen.columns)
        kinds = [table.columns[i][1] for i in block]
        head = [
            _padded(cut(titles[i], width), width, kind)
            for i, kind, width in zip(block, kinds, widths, strict=True)
        ]
        if any(titles):
            yield styled((" " * _GAP).join(head).rstrip(), _BOLD, screen)
        for row in cells:
            yield (
                (" " * _GAP)
                .join(
                    _cell(row[i], kind, width, screen)
                    for i, kind, width in zip(block, kinds, widths, strict=True)
                )
                .rstrip()
            )


class _Size:
    """The widths of a column, in character cells: as it is, and at least."""

    def __init__(self, title: str, kind: Kind, cells: Sequence[str]) -> None:
        self.kind = kind
        widest = max(map(width_of, cells), default=0)
        numbers = max((width_of(cell) for cell in cells if is_number(cell)), default=0)
        self.full = max(width_of(title), widest)
        uncut = widest if kind is Kind.NUMBER else max(numbers, min(widest, kind.value))
        self.least = max(uncut, min(width_of(title), _TITLE_MIN))


def _blocks(sizes: Sequence[_Size], columns: int) -> list[list[int]]:
    """Return the columns of each block that is to stand below the one before."""
    blocks: list[list[int]] = [[]]
    room = columns + _GAP
    for number, size in enumerate(sizes):
        if room < size.least + _GAP and len(blocks[-1]) > (len(blocks) > 1):
            blocks.append([0])
            room = columns - sizes[0].least
        blocks[-1].append(number)
        room -= size.least + _GAP
    return blocks


def _widths(sizes: Sequence[_Size], columns: int) -> list[int]:
    """Give the room that is left to titles of numbers, then to names, then to text, so that few are cut."""
    widths = [size.least for size in sizes]
    room = columns - sum(widths) - _GAP * (len(sizes) - 1)
    for kind in Kind:
        wanting = [i for i, size in enumerate(sizes) if size.kind is kind]
        wanting.sort(key=lambda i: sizes[i].full - widths[i])
        for done, i in enumerate(wanting):
            more = min(max(room, 0) // (len(wanting) - done), sizes[i].full - widths[i])
            widths[i] += more
            room -= more
    return widths


def _cell(text: str, kind: Kind, width: int, screen: Screen) -> str:
    shown = text if kind is Kind.NUMBER or is_number(text) else _cut(text, width, kind)
    padding = _padded(shown, width, kind)
    return padding.replace(shown, styled(shown, _WORDS[text], screen)) if text in _WORDS else padding


def _cut(text: str, width: int, kind: Kind) -> str:
    if kind is Kind.LIST and width_of(text) > width:
        whole_items = _start(text, width - 3).rpartition(", ")[0]
        return f"{whole_items}, {_MARK}" if whole_items else _MARK
    return cut(text, width, middle=kind is Kind.NAME)


def _padded(text: str, width: int, kind: Kind) -> str:
    space = " " * (width - width_of(text))
    return space + text if kind is Kind.NUMBER else text + space


def whole(value: object) -> str:
    """Return a cell for a program: all of it, on one line, numbers without separators."""
    return printable(value if isinstance(value, float) else _text(value), length_max=1 << 20)


def _shown(value: object) -> str:
    is_count = isinstance(value, int) and not isinstance(value, bool)
    return f"{value:,}" if is_count else printable(_text(value))


def _text(value: object) -> object:
    if value is None or isinstance(value, bool):
        return "yes" if value else "no" if value is False else "-"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    return ", ".join(str(_text(each)) for each in value) if isinstance(value, list | tuple) else value


def is_number(text: str) -> bool:
    """Return whether a text is a number, perhaps with a unit."""
    return bool(re.fullmatch(_NUMBER, text))


def styled(text: str, style: str, screen: Screen) -> str:
    """Return a text with a style where the screen shows any. style: the parameter of SGR."""
    return f"\x1b[{style}m{text}\x1b[m" if screen.has_colours and text else text


def width_of(text: str) -> int:
    """Return how many character cells of a terminal a printable text takes."""
    return len(text) if text.isascii() else sum(map(_width, text))


def _width(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def cut(text: str, width: int, *, middle: bool = False) -> str:
    """Return a text that takes `width` character cells at most, with an ellipsis where some is left out."""
    if width_of(text) <= width:
        return text
    kept = max(width - 1, 0)
    tail = _start(reversed(text), kept // 2)[::-1] if middle else ""
    return (_start(text, kept - width_of(tail)) + _MARK + tail)[: max(width, 0)]


def _start(characters: Iterable[str], width: int) -> str:
    found, room = "", width
    for character in characters:
        room -= _width(character)
        if room < 0:
            break
        found += character
    return found
