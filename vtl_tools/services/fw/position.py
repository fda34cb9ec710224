"""Positions in a rule file, and the errors and warnings that refer to them."""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import SpecError

_SHOWN: Final = 100
"""Maximum columns of an excerpt, as of a terminal."""


@dataclass(frozen=True, slots=True)
class RulePosition:
    """line, column: from 1; a column is a character, also a tab."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class RuleError(SpecError):
    """A rule file is invalid, or too large: fw.rules:3:17: expected a port, not 'htp'.

    The whole file is then unused. problem: the message without the place. text: the whole line.
    """

    def __init__(self, place: RulePosition, problem: str, text: str = "") -> None:
        super().__init__(f"{place}: {problem}")
        self.place = place
        self.problem = problem
        self.text = text

    @property
    def excerpt(self) -> str:
        """The line, and one below it with a caret at the column. Control characters are shown as ?."""
        return excerpt(self.text, self.place.column)


@dataclass(frozen=True, slots=True)
class RuleWarning:
    """A warning: the file is valid, but probably does not mean what its author intended."""

    place: RulePosition
    problem: str

    @property
    def details(self) -> dict[str, object]:
        """The warning as JSON values."""
        place = self.place
        return {"file": place.file, "line": place.line, "column": place.column, "problem": self.problem}

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def excerpt(text: str, column: int) -> str:
    """Return two lines: the text around a column, and a caret below it."""
    start = max(0, column - 1 - _SHOWN * 3 // 4) if len(text) > _SHOWN else 0
    piece = text[start : start + _SHOWN]
    clean = "".join(char if char.isprintable() else " " if char == "\t" else "?" for char in piece)
    return f"{clean}\n{' ' * (column - 1 - start)}^"
