"""Lexer of the rule language: splits lines into tokens."""

import re
from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from typing import Final, NamedTuple

from vtl_tools.common.rules.keywords import KEYWORDS, UNITS
from vtl_tools.common.rules.position import RuleError, RulePosition

LINE_MAX: Final = 16_384
"""Maximum characters of a line; a long set may take several."""


class TokenKind(Enum):
    """The kind of a token. The value is its name in messages."""

    WORD = "a word of the language"
    NAME = "a name"
    SET = "a set such as @admins"
    NUMBER = "a number"
    RANGE = "a range of numbers"
    ADDRESS = "an IP address"
    MAC = "an Ethernet address"
    RATE = "a rate such as 10/s"
    STRING = 'a file name in "quotes"'
    MARK = "a mark"
    UNKNOWN = "nothing of the language"
    END = "the end of the line"


WORD, NUMBER, MARK, END = TokenKind.WORD, TokenKind.NUMBER, TokenKind.MARK, TokenKind.END


class Token(NamedTuple):
    """column: from 1."""

    kind: TokenKind
    text: str
    column: int


_TOKEN: Final = re.compile(
    r'[ \t]*(?:([@\w.:/%-]+)|([,={}])|"([^"]*)"|(#.*|\r?$)|([^\s"]+|.))', re.ASCII | re.DOTALL
)
_ATOM: Final = re.compile(
    r"(?P<NUMBER>\d+|0x[0-9a-fA-F]+)|(?P<RANGE>\d+-\d+)|(?P<RATE>\d+/(?:"
    rf"{'|'.join(UNITS)}))"
    r"|(?P<MAC>[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5})|(?P<SET>@[A-Za-z_][\w-]*)|(?P<NAME>[A-Za-z][\w-]*)"
    r"|(?P<ADDRESS>[\w%/-]*[.:][\w.:%/-]*)",
    re.ASCII,
)


class RuleSource:
    """The lines of one file. Raises RuleError, with the place, if the octets are not text.

    data: the whole file.
    """

    def __init__(self, file: str, data: bytes) -> None:
        self.file = file
        self.lines: list[str] = []
        if (at := data.find(b"\0")) >= 0:
            line, column = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
            raise RuleError(RulePosition(file, line, column), "expected text, not an octet of zeros")
        try:
            text = data.decode()
        except UnicodeDecodeError as err:
            line, start = data.count(b"\n", 0, err.start) + 1, data.rfind(b"\n", 0, err.start) + 1
            column = len(data[start : err.start].decode(errors="replace")) + 1
            place = RulePosition(file, line, column)
            raise RuleError(place, f"expected text in UTF-8, not the octet {data[err.start]:#04x}") from None
        self.lines = text.split("\n")

    def error(
        self, line: int, column: int, problem: str, remedy: Callable[[], str] | None = None
    ) -> RuleError:
        """Return the error to raise about a line (from 1). remedy: as RuleError has it."""
        text = self.lines[line - 1] if line <= len(self.lines) else ""
        return RuleError(RulePosition(self.file, line, column), problem, text, remedy)

    def tokens(self, line: int) -> list[Token]:
        """Split a line (from 1) into tokens; the last is END. Raises RuleError."""
        text = self.lines[line - 1]
        if len(text) > LINE_MAX:
            problem = f"expected a line of at most {LINE_MAX} characters; a set in braces goes over several"
            raise self.error(line, LINE_MAX + 1, problem)
        out: list[Token] = []
        append = out.append
        new = tuple.__new__  # a third of the time of Token()
        for match in _TOKEN.finditer(text):
            group = match.lastindex
            if group == 1:
                atom = match[1]
                # the pattern has ASCII only, so that these are digits
                kind = WORD if atom in KEYWORDS else NUMBER if atom.isdecimal() else _classify(atom)
                append(new(Token, (kind, atom, match.start(1) + 1)))
            elif group == 2:
                append(new(Token, (MARK, match[2], match.start(2) + 1)))
            elif group == 3:
                if not match[3].isprintable():  # messages show it, and go to a terminal
                    problem = "expected a file name of characters that can be printed"
                    raise self.error(line, match.start(3), problem)
                out.append(Token(TokenKind.STRING, match[3], match.start(3)))
            elif group == 5:
                if match[5] == '"':
                    raise self.error(line, match.start(5) + 1, "expected a closing quote, not '\"'")
                out.append(Token(TokenKind.UNKNOWN, match[5], match.start(5) + 1))
                break  # the parser goes no further
        out.append(Token(TokenKind.END, "", len(text) + 1))
        return out


@lru_cache(maxsize=4096)
def _classify(atom: str) -> TokenKind:
    match = _ATOM.fullmatch(atom)
    return TokenKind.UNKNOWN if match is None or match.lastgroup is None else TokenKind[match.lastgroup]
