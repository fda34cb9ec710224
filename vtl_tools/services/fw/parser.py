"""Parser of rule files, by recursive descent; docs/fw.md and vtl-fw(5) have the grammar.

For any input it raises RuleError and nothing else, and bounds time and memory.
"""

import posixpath
from collections.abc import Callable
from typing import Final

from vtl_tools.services.fw.clauses import ACTIONS, take_rule
from vtl_tools.services.fw.cursor import Cursor
from vtl_tools.services.fw.lexer import END, RuleSource, TokenKind
from vtl_tools.services.fw.position import RuleError, RulePosition, RuleWarning
from vtl_tools.services.fw.rule import IN, OUT, Rule, Ruleset
from vtl_tools.services.fw.sets import Sets

Read = Callable[[str, int], bytes]
"""Returns the first octets of a file, at most so many, given its name. May raise OSError."""

OCTETS_MAX: Final = 16 << 20
"""Maximum octets of all files together."""
LINES_MAX: Final = 1_000_000
RULES_MAX: Final = 100_000
FILES_MAX: Final = 1000
DEPTH_MAX: Final = 16
_REMARKS_MAX: Final = 1000


def parse(file: str, read: Read) -> Ruleset:
    """Return the rules of a file. Raises RuleError for an error in it, or in an included file.

    Every file must end in rules that match all remaining packets.
    """
    parser = _Parser(read)
    parser.take_file(file, None)
    for direction in OUT, IN:
        if not any(rule.is_catch_all and direction in rule.directions for rule in parser.rules):
            place = RulePosition(file, parser.lines_of_main + 1, 1)
            problem = f"expected a last rule for all else that goes {direction.value}, such as 'deny any'"
            raise RuleError(place, problem)
    return Ruleset(tuple(parser.rules), tuple(parser.remarks), tuple(parser.files))


def included(by: str, text: str) -> str:
    """Return the name of an included file, relative to the file that includes it."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(by), text))


class _Parser:
    def __init__(self, read: Read) -> None:
        self._read = read
        self._sets = Sets()
        self._open: list[str] = []
        self._octets_left = OCTETS_MAX
        self._lines_left = LINES_MAX
        self.rules: list[Rule] = []
        self.remarks: list[RuleWarning] = []
        self.files: list[str] = []
        self.lines_of_main = 0

    def take_file(self, name: str, included_by: Cursor | None) -> None:
        """Parse all statements of a file."""
        source = self._load(name, included_by)
        self._open.append(name)
        if included_by is None:
            self.lines_of_main = len(source.lines) - (not source.lines[-1])
        line = 1
        while line <= len(source.lines):
            cursor = Cursor(source, line)
            if cursor.token.kind is not END:
                self._statement(cursor)
                if cursor.token.kind is not END:
                    cursor.fail("the end of the line")
            line = cursor.line + 1
        self._open.pop()

    def _load(self, name: str, included_by: Cursor | None) -> RuleSource:
        def refuse(problem: str) -> RuleError:
            if included_by is None:
                return RuleError(RulePosition(name, 1, 1), problem)
            return included_by.source.error(included_by.line, included_by.token.column, problem)

        try:
            data = self._read(name, self._octets_left + 1)
        except (OSError, ValueError) as err:
            why = err.strerror if isinstance(err, OSError) else str(err)
            raise refuse(f"expected a file that can be read: {name}: {why}") from None
        if len(data) > self._octets_left:
            raise refuse(f"expected at most {OCTETS_MAX >> 20} MiB of rules; {name} is more")
        self._octets_left -= len(data)
        self._lines_left -= data.count(b"\n") + 1
        if self._lines_left < 0:
            raise refuse(f"expected at most {LINES_MAX} lines of rules; {name} has more")
        self.files.append(name)
        return RuleSource(name, data)

    def _statement(self, cursor: Cursor) -> None:
        if cursor.accept("set"):
            self._sets.define(cursor)
        elif cursor.accept("include"):
            self._include(cursor)
        elif cursor.token.kind is TokenKind.WORD and cursor.token.text in ACTIONS:
            if len(self.rules) == RULES_MAX:
                cursor.refuse(f"expected at most {RULES_MAX} rules")
            rule, remarks = take_rule(cursor, self._sets)
            self.rules.append(rule)
            if len(self.remarks) < _REMARKS_MAX:
                self.remarks += remarks
        else:
            cursor.fail("a rule (allow, deny or reject), 'set' or 'include'")

    def _include(self, cursor: Cursor) -> None:
        token = cursor.token
        if token.kind is not TokenKind.STRING or not token.text:
            cursor.fail('a file name in "quotes"')
        name = included(cursor.source.file, token.text)
        if name in self._open:
            cursor.refuse(f"expected another file: {name} is the one that includes this")
        if len(self._open) == DEPTH_MAX:
            cursor.refuse(f"expected at most {DEPTH_MAX} files within each other")
        if len(self.files) == FILES_MAX:
            cursor.refuse(f"expected at most {FILES_MAX} files")
        self.take_file(name, cursor)
        cursor.next()
