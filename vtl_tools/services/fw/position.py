"""Where in a rule file something stands, and what is wrong there."""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import SpecError

_SHOWN: Final = 100
"""Columns of a line that an excerpt shows: a terminal's."""


@dataclass(frozen=True, slots=True)
class RulePosition:
    """line, column: from 1; columns are characters, a tab is one."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class RuleError(SpecError):
    """What a rule file says cannot be meant, or is too much: fw.rules:3:17: expected a port, not 'htp'.

    Nothing of the file is used then. problem: the message without the place. text: the whole line.
    """

    def __init__(self, place: RulePosition, problem: str, text: str = "") -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem
        self.text = text

    @property
    def excerpt(self) -> str:
        """The line, and one below it with a caret at the column. What a terminal would obey is shown as ?."""
        return excerpt(self.text, self.place.column)


@dataclass(frozen=True, slots=True)
class Remark:
    """A warning: the file is used, but this is hardly what was meant."""

    place: RulePosition
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def excerpt(text: str, column: int) -> str:
    """Return two lines: what stands around a column, and a caret below it."""
    start = max(0, column - 1 - _SHOWN * 3 // 4) if len(text) > _SHOWN else 0
    piece = text[start : start + _SHOWN]
    clean = "".join(char if char.isprintable() else " " if char == "\t" else "?" for char in piece)
    return f"{clean}\n{' ' * (column - 1 - start)}^"
