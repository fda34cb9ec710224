"""Parser of rule files, by recursive descent; docs/fw.md and vtl-fw(5) have the grammar.

For any input it raises RuleError and nothing else, and bounds time and memory.
"""

import posixpath
from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.rules.clauses import ACTIONS, take_rule
from vtl_tools.common.rules.cursor import Cursor
from vtl_tools.common.rules.lexer import END, RuleSource, TokenKind
from vtl_tools.common.rules.position import (
    ERRORS_MAX,
    LimitError,
    RuleError,
    RuleFileError,
    RulePosition,
    RuleWarning,
)
from vtl_tools.common.rules.rule import IN, OUT, Rule, Ruleset
from vtl_tools.common.rules.sets import Sets
from vtl_tools.services.fw import presets

Read = Callable[[str, int], bytes]
"""Returns the first octets of a file, at most so many, given its name. May raise OSError."""

OCTETS_MAX: Final = 16 << 20
"""Maximum octets of all files together."""
LINES_MAX: Final = 1_000_000
RULES_MAX: Final = 100_000
FILES_MAX: Final = 1000
DEPTH_MAX: Final = 16
_REMARKS_MAX: Final = 1000
_COUNTED_MAX: Final = 1000
"""Maximum errors that are counted: it bounds the time that a file costs."""
_STATEMENTS: Final = (*ACTIONS, "set", "include")


def parse(file: str, read: Read) -> Ruleset:
    """Return the rules of a file. Raises RuleFileError for all errors in it and in included files.

    Every file must end in rules that match all remaining packets.
    """
    parser = _Parser(read)
    try:
        parser.take_file(file, None)
        parser.check_end(file)
    except RuleError as error:  # after which the rest of the file means nothing
        parser.errors.add(error)
    if parser.errors.found:
        raise parser.errors.all(parser.files)
    return Ruleset(tuple(parser.rules), tuple(parser.remarks), tuple(parser.files))


def included(by: str, text: str) -> str:
    """Return the name of an included file, relative to the file that includes it."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(by), text))


class _Errors:
    """The errors found so far: the first ERRORS_MAX, and how many more. Each place has one."""

    def __init__(self) -> None:
        self.found: dict[RulePosition, RuleError] = {}
        self._left_out: set[RulePosition] = set()
        self._is_cut = False

    def add(self, error: RuleError) -> None:
        """Take an error."""
        self._is_cut |= error.is_fatal or self.are_many
        if error.place in self.found or self.are_many:
            return
        if len(self.found) < ERRORS_MAX:
            self.found[error.place] = error
        else:
            self._left_out.add(error.place)

    @property
    def are_many(self) -> bool:
        """Whether no more are counted."""
        return len(self._left_out) >= _COUNTED_MAX

    def all(self, files: Sequence[str]) -> RuleFileError:
        """Return all as one. files: in their order."""
        number = {name: at for at, name in reversed(list(enumerate(files)))}

        def order(error: RuleError) -> tuple[int, int, int]:
            return number.get(error.place.file, 0), error.place.line, error.place.column

        errors = sorted(self.found.values(), key=order)
        return RuleFileError(errors, len(self._left_out), is_counted=not self._is_cut)


class _Parser:
    def __init__(self, read: Read) -> None:
        self._read = read
        self.errors = _Errors()
        self._sets = Sets(self._failed)
        self._open: list[str] = []
        self._octets_left = OCTETS_MAX
        self._lines_left = LINES_MAX
        self.rules: list[Rule] = []
        self.remarks: list[RuleWarning] = []
        self.files: list[str] = []
        self._lines_of_main = 0
        self._is_end_known = True

    def take_file(self, name: str, included_by: Cursor | None) -> None:
        """Parse all statements of a file. Raises RuleError if there is no point in going on."""
        source = self._load(name, included_by)
        self._open.append(name)
        if included_by is None:
            self._lines_of_main = len(source.lines) - (not source.lines[-1])
        line = 1
        while line <= len(source.lines):
            line = self._take_line(source, line)
        self._open.pop()

    def check_end(self, file: str) -> None:
        """Raise RuleError if no rule is for all other packets; not if a line with an error may be that."""
        if not self._is_end_known:
            return
        for direction in OUT, IN:
            if not any(rule.is_catch_all and direction in rule.directions for rule in self.rules):
                place = RulePosition(file, self._lines_of_main + 1, 1)
                problem = f"expected a last rule for all else that goes {direction.value}, such as 'deny any'"
                raise RuleError(place, problem)

    def _take_line(self, source: RuleSource, line: int) -> int:
        """Parse the statement that begins in a line. Return the line of the next one."""
        cursor = None
        try:
            cursor = Cursor(source, line)
            if cursor.token.kind is not END:
                self._is_end_known = True
                self._statement(cursor)
                if cursor.token.kind is not END:
                    cursor.fail("the end of the line")
        except RuleError as error:
            self._failed(error)
            self._is_end_known = False
        if cursor is None:
            return line + 1
        is_next = cursor.line > line and cursor.starts_line()  # as a set's brace is missing
        return cursor.line if is_next else cursor.line + 1

    def _failed(self, error: RuleError) -> None:
        """Take note of an error. Raises it if nothing behind it is to be read."""
        if error.is_fatal or self.errors.are_many:
            raise error
        self.errors.add(error)

    def _load(self, name: str, included_by: Cursor | None) -> RuleSource:
        place = RulePosition(name, 1, 1) if included_by is None else included_by.place
        text = "" if included_by is None else included_by.source.lines[included_by.line - 1]
        try:
            data = self._read(name, self._octets_left + 1)
        except (OSError, ValueError) as err:
            why = err.strerror if isinstance(err, OSError) else str(err)
            raise RuleError(place, f"expected a file that can be read: {name}: {why}", text) from None
        if len(data) > self._octets_left:
            raise LimitError(place, f"expected at most {OCTETS_MAX >> 20} MiB of rules; {name} is more", text)
        self._octets_left -= len(data)
        self._lines_left -= data.count(b"\n") + 1
        if self._lines_left < 0:
            raise LimitError(place, f"expected at most {LINES_MAX} lines of rules; {name} has more", text)
        self.files.append(name)
        return RuleSource(name, data)

    def _statement(self, cursor: Cursor) -> None:
        if cursor.accept("set"):
            self._sets.define(cursor)
        elif cursor.accept("include"):
            self._include(cursor)
        elif cursor.token.kind is TokenKind.WORD and cursor.token.text in ACTIONS:
            if len(self.rules) >= RULES_MAX:
                cursor.exceed(f"expected at most {RULES_MAX} rules")
            if cursor.token.text == "allow" and cursor.is_before(presets.NAME):
                self.rules += presets.take_preset(cursor, self._sets)
                return
            rule, remarks = take_rule(cursor, self._sets)
            self.rules.append(rule)
            if len(self.remarks) < _REMARKS_MAX:
                self.remarks += remarks
        else:
            if cursor.token.kind is TokenKind.WORD:
                cursor.refuse(f"expected allow, deny or reject before '{cursor.token.text}'")
            cursor.fail("a rule (allow, deny or reject), 'set' or 'include'", words=_STATEMENTS)

    def _include(self, cursor: Cursor) -> None:
        token = cursor.token
        if token.kind is not TokenKind.STRING or not token.text:
            cursor.fail('a file name in "quotes"', advice=lambda _: "")
        name = included(cursor.source.file, token.text)
        if name in self._open:
            cursor.refuse(f"expected another file: {name} is the one that includes this")
        if len(self._open) == DEPTH_MAX:
            cursor.exceed(f"expected at most {DEPTH_MAX} files within each other")
        if len(self.files) == FILES_MAX:
            cursor.exceed(f"expected at most {FILES_MAX} files")
        try:
            self.take_file(name, cursor)
        except RuleError:
            self._sets.is_incomplete = True
            raise
        cursor.next()
