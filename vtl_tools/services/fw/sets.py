"""Parses lists of addresses, Ethernet addresses and numbers, and the named sets of them."""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.packet.address import mac
from vtl_tools.services.fw.cursor import Cursor
from vtl_tools.services.fw.lexer import END, Token, TokenKind
from vtl_tools.services.fw.values import Addresses, Ranges, Span, parse_addresses, ranges

ITEMS_MAX: Final = 500_000
"""Maximum items of all sets and lists of a file. A set within a set counts with all its items."""

ADDRESS: Final = "an IP address, a prefix or a range"
MAC: Final = "an Ethernet address"
NUMBER: Final = "a number or a range"

_OF_KIND: Final = {
    TokenKind.ADDRESS: ADDRESS,
    TokenKind.MAC: MAC,
    TokenKind.NUMBER: NUMBER,
    TokenKind.RANGE: NUMBER,
}


@dataclass(frozen=True, slots=True)
class NamedSet:
    """kind: ADDRESS, MAC or NUMBER, the kind of its items; "" if it is declared empty."""

    kind: str
    addresses: Addresses
    macs: frozenset[bytes]
    numbers: Ranges

    @property
    def size(self) -> int:
        """The number of items; adjacent ones count as one."""
        return len(self.addresses.v4) + len(self.addresses.v6) + len(self.macs) + len(self.numbers)


EMPTY: Final = NamedSet("", Addresses((), ()), frozenset(), ())


class Sets:
    """The sets defined so far, and the total number of items."""

    def __init__(self) -> None:
        self._sets: dict[str, NamedSet] = {}
        self._defining = ""
        self._items = 0

    def define(self, cursor: Cursor) -> None:
        """Parse `@name = ...`, after the word set. Raises RuleError."""
        name = cursor.token.text
        if cursor.token.kind is not TokenKind.SET:
            cursor.fail("the set's name, such as @admins")
        if name in self._sets:
            cursor.refuse(f"{name} is defined already; a set has one definition")
        cursor.next()
        cursor.expect("=")
        self._defining = name
        if cursor.accept("empty"):
            self._sets[name] = EMPTY
        elif cursor.accept("{"):
            self._sets[name] = self._braced(cursor)
        else:
            if cursor.token.kind is END:
                cursor.fail("what is in the set, or 'empty', which matches nothing")
            self._sets[name] = _List(self, "").all(cursor)
        self._defining = ""

    def addresses(self, cursor: Cursor) -> Addresses:
        """Parse a list of addresses and sets of them. Rules that name a single set share one object."""
        return _List(self, ADDRESS).all(cursor).addresses

    def macs(self, cursor: Cursor) -> frozenset[bytes]:
        """Parse a list of Ethernet addresses and sets of them."""
        return _List(self, MAC).all(cursor).macs

    def numbers(self, cursor: Cursor, what: str, high: int) -> Ranges:
        """Parse a list of numbers up to high, ranges, and sets of them."""
        column = cursor.token.column
        found = _List(self, NUMBER, f"{what} (0 to {high}), a range or a set of them").all(cursor).numbers
        if found and found[-1][1] > high:
            cursor.refuse(f"expected {what} (0 to {high}), not {found[-1][1]}", column)
        return found

    def find(self, cursor: Cursor) -> NamedSet:
        """Return the set that the next token names. Raises RuleError if none is defined above."""
        name = cursor.token.text
        if name == self._defining:
            cursor.refuse(f"expected another set, as {name} cannot hold itself")
        if (found := self._sets.get(name)) is None:
            cursor.refuse(f"expected a set that is defined above; {name} is not")
        return found

    def count(self, cursor: Cursor, items: int) -> None:
        """Count items. Raises RuleError if the total is too large."""
        self._items += items
        if self._items > ITEMS_MAX:
            cursor.refuse(f"expected at most {ITEMS_MAX} items in all sets and lists together")

    def _braced(self, cursor: Cursor) -> NamedSet:
        items = _List(self, "")
        some = False
        while not cursor.accept("}"):
            if cursor.token.kind is END:
                if not cursor.next_line():
                    cursor.fail("'}'")
                continue
            items.one(cursor)
            some = True
            if cursor.token.kind is not END and cursor.token.text != "}":
                cursor.expect(",")
        if not some:
            cursor.refuse("expected items in the braces; a set that is to match nothing is '= empty'")
        return items.made()


class _List:
    """Items of one kind. The first item decides the kind unless it is given."""

    def __init__(self, sets: Sets, kind: str, expected: str = "") -> None:
        self._sets = sets
        self._kind = kind
        self._expected = expected
        self._spans: list[Span] = []
        self._macs: set[bytes] = set()
        self._numbers: list[tuple[int, int]] = []

    def all(self, cursor: Cursor) -> NamedSet:
        """Parse items separated by commas."""
        if cursor.token.kind is TokenKind.SET:  # a single set: not copied but shared
            alone = self._set(cursor)
            if not cursor.accept(","):
                return alone
        self.one(cursor)
        while cursor.accept(","):
            self.one(cursor)
        return self.made()

    def one(self, cursor: Cursor) -> None:
        """Parse one item."""
        token = cursor.token
        if token.kind is TokenKind.SET:
            self._set(cursor)
            return
        kind = _OF_KIND.get(token.kind)
        if kind is None or (self._kind and kind != self._kind):
            cursor.fail(self._expected or (f"{self._kind} or a set of them" if self._kind else "an item"))
        self._kind = kind
        self._sets.count(cursor, 1)
        if kind is ADDRESS:
            try:
                self._spans.append(parse_addresses(token.text))
            except ValueError as err:
                cursor.refuse(f"expected {ADDRESS}: {str(err)[:200]}")
        elif kind is MAC:
            self._macs.add(mac(token.text))
        else:
            self._numbers.append(_range(cursor, token))
        cursor.next()

    def made(self) -> NamedSet:
        """Return the parsed items."""
        addresses = Addresses.of(self._spans) if self._spans else EMPTY.addresses
        return NamedSet(self._kind, addresses, frozenset(self._macs), ranges(self._numbers))

    def _set(self, cursor: Cursor) -> NamedSet:
        found = self._sets.find(cursor)
        if self._kind and found.kind and found.kind != self._kind:
            cursor.refuse(f"expected {self._kind} or a set of them; {cursor.token.text} holds {found.kind}")
        self._kind = self._kind or found.kind
        self._sets.count(cursor, found.size + 1)
        self._spans += (*found.addresses.v4, *found.addresses.v6)
        self._macs |= found.macs
        self._numbers += found.numbers
        cursor.next()
        return found


def _range(cursor: Cursor, token: Token) -> tuple[int, int]:
    low, _, high = token.text.partition("-")
    first = cursor.value(Token(TokenKind.NUMBER, low, token.column), "a smaller number")
    last = cursor.value(Token(TokenKind.NUMBER, high, token.column), "a smaller number") if high else first
    if first > last:
        cursor.refuse(f"expected a range from the lower number to the higher, not {token.text}")
    return first, last
