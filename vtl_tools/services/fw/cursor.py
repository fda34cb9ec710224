"""A place in a rule file that moves on token by token, and says what was expected where it cannot."""

from collections.abc import Iterable
from typing import Final, NoReturn

from vtl_tools.services.fw.lexer import END, MARK, WORD, RuleSource, Token, TokenKind
from vtl_tools.services.fw.position import RulePosition

_DIGITS_MAX: Final = 10


class Cursor:
    """The tokens of one statement, which is one line, or several between braces."""

    def __init__(self, source: RuleSource, line: int) -> None:
        self.source = source
        self.line = line
        self._tokens = source.tokens(line)
        self._at = 0
        self.token = self._tokens[0]

    @property
    def place(self) -> RulePosition:
        """Where the next token stands."""
        return RulePosition(self.source.file, self.line, self.token.column)

    @property
    def text(self) -> str:
        """The whole line, without comment and the space around it."""
        line = self.source.lines[self.line - 1]
        last = self._tokens[-2] if len(self._tokens) > 1 else self._tokens[-1]
        octets = len(last.text) + (2 if last.kind is TokenKind.STRING else 0)
        return line[: last.column - 1 + octets].strip()

    def next(self) -> Token:
        """Step behind the next token and return it. At the end of the line, stay there."""
        token = self.token
        if token.kind is not END:
            self._at += 1
            self.token = self._tokens[self._at]
        return token

    def next_line(self) -> bool:
        """Go on at the start of the next line; say whether there is one."""
        if self.line >= len(self.source.lines):
            return False
        self.line += 1
        self._tokens = self.source.tokens(self.line)
        self._at = 0
        self.token = self._tokens[0]
        return True

    def accept(self, text: str) -> bool:
        """Step over this word or mark if it is next; say whether it was."""
        if self.token.text == text and self.token.kind in (WORD, MARK):
            self.next()
            return True
        return False

    def one_of(self, words: Iterable[str]) -> str | None:
        """As accept(), for any of several."""
        token = self.token
        if token.kind is WORD and token.text in words:
            self.next()
            return token.text
        return None

    def expect(self, text: str) -> None:
        """Step over this word or mark. RuleError if another is next."""
        if not self.accept(text):
            self.fail(f"'{text}'")

    def number(self, what: str, low: int, high: int) -> int:
        """Step over a number of a range and return it; RuleError if it is none."""
        token = self.token
        if token.kind is not TokenKind.NUMBER or not low <= self.value(token, what) <= high:
            self.fail(f"{what} ({low} to {high})")
        self.next()
        return self.value(token, what)

    def value(self, token: Token, what: str) -> int:
        """Return the value of a token that is a number. RuleError if it is too large to be one here."""
        if len(token.text) > _DIGITS_MAX:
            self.fail(what, token)
        try:
            return int(token.text, 16 if token.text[:2] == "0x" else 10)
        except ValueError:
            self.fail(what, token)

    def fail(self, expected: str, token: Token | None = None) -> NoReturn:
        """Raise RuleError: expected this, and not the token, which is the next unless given."""
        token = token or self.token
        shown = token.text if len(token.text) <= 40 else f"{token.text[:40]}..."
        found = token.kind.value if token.kind is END else f"'{shown}'"
        raise self.source.error(self.line, token.column, f"expected {expected}, not {found}")

    def refuse(self, problem: str, column: int | None = None) -> NoReturn:
        """Raise RuleError about the next token, or about another column of its line."""
        raise self.source.error(self.line, self.token.column if column is None else column, problem)
