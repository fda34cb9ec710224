"""Cursor of the rule parser: moves token by token, and raises errors that name the expected token."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, NoReturn

from vtl_tools.common.rules.lexer import END, MARK, WORD, RuleSource, Token, TokenKind
from vtl_tools.common.rules.position import LimitError, RulePosition
from vtl_tools.common.rules.remedies import remedy
from vtl_tools.common.text import printable

_DIGITS_MAX: Final = 10
_SHOWN_MAX: Final = 40
_NOTHING: Final = Token(END, "", 1)


class Cursor:
    """The tokens of one statement, which is one line, or several within braces."""

    def __init__(self, source: RuleSource, line: int) -> None:
        self.source = source
        self.line = line
        self._tokens = source.tokens(line)
        self._at = 0
        self.token = self._tokens[0]

    @property
    def place(self) -> RulePosition:
        """The position of the next token."""
        return RulePosition(self.source.file, self.line, self.token.column)

    @property
    def text(self) -> str:
        """The whole line, without comment and surrounding space."""
        line = self.source.lines[self.line - 1]
        last = self._tokens[-2] if len(self._tokens) > 1 else self._tokens[-1]
        octets = len(last.text) + (2 if last.kind is TokenKind.STRING else 0)
        return line[: last.column - 1 + octets].strip()

    def next(self) -> Token:
        """Return the next token and move past it, but not past the end of the line."""
        token = self.token
        if token.kind is not END:
            self._at += 1
            self.token = self._tokens[self._at]
        return token

    @property
    def is_at_end(self) -> bool:
        """Whether this is the last line of the file."""
        return self.line >= len(self.source.lines)

    def next_line(self) -> None:
        """Move to the start of the next line. Raises RuleError."""
        self.line += 1
        self._tokens, self._at = [_NOTHING], 0
        self.token = _NOTHING  # if the line is no text, after which the next one is taken
        self._tokens = self.source.tokens(self.line)
        self.token = self._tokens[0]

    def is_before(self, text: str) -> bool:
        """Return whether this word follows the next token."""
        return self._at + 1 < len(self._tokens) and self._tokens[self._at + 1].text == text

    def starts_line(self) -> bool:
        """Return whether the next token is the first of its line."""
        return self._at == 0

    def next_item(self) -> None:
        """Move to the end of the line, or to the next closing brace in it."""
        while self.token.kind is not END and self.token.text != "}":
            self.next()

    def accept(self, text: str) -> bool:
        """Move past this word or mark if it is next. Return whether it was."""
        if self.token.text == text and self.token.kind in (WORD, MARK):
            self.next()
            return True
        return False

    def one_of(self, words: Iterable[str]) -> str | None:
        """Do what accept() does, for any of several words. Return the word."""
        token = self.token
        if token.kind is WORD and token.text in words:
            self.next()
            return token.text
        return None

    def expect(self, text: str) -> None:
        """Move past this word or mark. Raises RuleError if another token is next."""
        if not self.accept(text):
            self.fail(f"'{text}'")

    def number(self, what: str, low: int, high: int) -> int:
        """Move past a number within a range and return it. Raises RuleError for any other token."""
        token = self.token
        if token.kind is not TokenKind.NUMBER or not low <= self.value(token, what) <= high:
            self.fail(f"{what} ({low} to {high})")
        self.next()
        return self.value(token, what)

    def value(self, token: Token, what: str) -> int:
        """Return the value of a token that is a number. Raises RuleError if it is too large."""
        if len(token.text) > _DIGITS_MAX:
            self.fail(what, token)
        try:
            return int(token.text, 16 if token.text[:2] == "0x" else 10)
        except ValueError:
            self.fail(what, token)

    def fail(
        self,
        expected: str,
        token: Token | None = None,
        words: Iterable[str] = (),
        advice: Callable[[str], str] | None = None,
    ) -> NoReturn:
        """Raise RuleError: another token was expected than this one (by default the next).

        words: those that may stand there, of which the closest is suggested. advice: returns what to suggest.
        """
        token = token or self.token
        if token.kind is END:
            raise self.source.error(self.line, token.column, f"expected {expected}, not {token.kind.value}")
        shown = printable(token.text, _SHOWN_MAX)
        if not shown.isprintable():  # as a space that does not break
            shown = shown.encode("unicode_escape").decode()
        suggest = partial(advice or partial(remedy, words=words), token.text)
        raise self.source.error(self.line, token.column, f"expected {expected}, not '{shown}'", suggest)

    def refuse(self, problem: str, column: int | None = None) -> NoReturn:
        """Raise RuleError about the next token, or about another column of its line."""
        raise self.source.error(self.line, self.token.column if column is None else column, problem)

    def exceed(self, problem: str) -> NoReturn:
        """Raise LimitError: there is too much of something from here on."""
        raise LimitError(self.place, problem, self.source.lines[self.line - 1])
