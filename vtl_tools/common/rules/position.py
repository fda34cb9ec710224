"""Positions in a rule file, and the errors and warnings that refer to them."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, NamedTuple

from vtl_tools.common.errors import SpecError

ERRORS_MAX: Final = 20
"""Maximum errors that are shown of a file."""
_SHOWN: Final = 100
"""Maximum columns of an excerpt, as of a terminal."""


class RulePosition(NamedTuple):
    """line, column: from 1; a column is a character, also a tab."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class RuleError(SpecError):
    """A rule file is invalid, or too large: fw.rules:3:17: expected a port, not 'htp'.

    The whole file is then unused. text: the whole line.
    """

    is_fatal = False
    """Whether the rest of the file is not to be read."""

    def __init__(
        self, place: RulePosition, problem: str, text: str = "", remedy: Callable[[], str] | None = None
    ) -> None:
        """remedy: returns more of the problem, if it is to be shown: to find that is slow."""
        super().__init__(place, problem)
        self.place = place
        self.text = text
        self._problem, self._remedy = problem, remedy

    @cached_property
    def problem(self) -> str:
        """The message without the place."""
        return self._problem if self._remedy is None else f"{self._problem}{self._remedy()}"

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"

    @property
    def excerpt(self) -> str:
        """The line, and one below it with a caret at the column. Control characters are shown as ?."""
        return excerpt(self.text, self.place.column)


class LimitError(RuleError):
    """A rule file, with all that it includes, is too large."""

    is_fatal = True


class RuleFileError(RuleError):
    """All errors of a rule file and the files that it includes. As an error, it is the first of them.

    errors: ERRORS_MAX at most, in the order of files and lines. left_out: how many more there are.
    is_counted: whether there are no others, in a part of the file that was not read.
    """

    def __init__(self, errors: Sequence[RuleError], left_out: int, *, is_counted: bool) -> None:
        first = errors[0]
        super().__init__(first.place, first.problem, first.text)
        self.errors, self.left_out, self.is_counted = tuple(errors), left_out, is_counted

    @property
    def lines(self) -> tuple[str, ...]:
        """A line for each error, and one for those that are left out."""
        shown = tuple(map(str, self.errors))
        if not self.left_out:
            return shown
        count = "more than " * (not self.is_counted) + str(self.left_out)
        return (*shown, f"{self.place.file}: and {count} more")

    @property
    def details(self) -> dict[str, object]:
        """The errors as JSON values."""
        errors = [
            {"file": e.place.file, "line": e.place.line, "column": e.place.column, "problem": e.problem}
            for e in self.errors
        ]
        return {"errors": errors, "left_out": self.left_out}


class RuleWarning(NamedTuple):
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
