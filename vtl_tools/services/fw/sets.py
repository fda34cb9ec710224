"""Values in lists: addresses, Ethernet addresses and numbers, and the sets that name them."""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.packet.address import mac
from vtl_tools.services.fw.cursor import Cursor
from vtl_tools.services.fw.lexer import END, Token, TokenKind
from vtl_tools.services.fw.values import Addresses, Ranges, Span, parse_addresses, ranges

ITEMS_MAX: Final = 500_000
"""Items of all sets and lists of a file. A set within a set counts as what it holds, so none grows unseen."""

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
    """kind: ADDRESS, MAC or NUMBER, of which only that one holds something; "" if it is declared empty."""

    kind: str
    addresses: Addresses
    macs: frozenset[bytes]
    numbers: Ranges

    @property
    def size(self) -> int:
        """How many items it holds, neighbouring ones counted as one."""
        return len(self.addresses.v4) + len(self.addresses.v6) + len(self.macs) + len(self.numbers)


EMPTY: Final = NamedSet("", Addresses((), ()), frozenset(), ())


class Sets:
    """The sets defined so far, and how many items there are in all."""

    def __init__(self) -> None:
        self._sets: dict[str, NamedSet] = {}
        self._defining = ""
        self._items = 0

    def define(self, cursor: Cursor) -> None:
        """Take `@name = ...`, behind the word set. RuleError if it is not right."""
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
        """Take a list of addresses and sets of them. For a set alone, all rules share one object."""
        return _List(self, ADDRESS).all(cursor).addresses

    def macs(self, cursor: Cursor) -> frozenset[bytes]:
        """Take a list of Ethernet addresses and sets of them."""
        return _List(self, MAC).all(cursor).macs

    def numbers(self, cursor: Cursor, what: str, high: int) -> Ranges:
        """Take a list of numbers up to high, ranges, and sets of them."""
        column = cursor.token.column
        found = _List(self, NUMBER, f"{what} (0 to {high}), a range or a set of them").all(cursor).numbers
        if found and found[-1][1] > high:
            cursor.refuse(f"expected {what} (0 to {high}), not {found[-1][1]}", column)
        return found

    def find(self, cursor: Cursor) -> NamedSet:
        """Return the set that the next token names. RuleError if there is none above."""
        name = cursor.token.text
        if name == self._defining:
            cursor.refuse(f"expected another set, as {name} cannot hold itself")
        if (found := self._sets.get(name)) is None:
            cursor.refuse(f"expected a set that is defined above; {name} is not")
        return found

    def count(self, cursor: Cursor, items: int) -> None:
        """Count items. RuleError if there are too many by now."""
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
    """Items of one kind, which the first of them decides if it is not given."""

    def __init__(self, sets: Sets, kind: str, expected: str = "") -> None:
        self._sets = sets
        self._kind = kind
        self._expected = expected
        self._spans: list[Span] = []
        self._macs: set[bytes] = set()
        self._numbers: list[tuple[int, int]] = []

    def all(self, cursor: Cursor) -> NamedSet:
        """Take items with commas between them."""
        if cursor.token.kind is TokenKind.SET:  # by itself: nothing is copied, and all that name it share it
            alone = self._set(cursor)
            if not cursor.accept(","):
                return alone
        self.one(cursor)
        while cursor.accept(","):
            self.one(cursor)
        return self.made()

    def one(self, cursor: Cursor) -> None:
        """Take one item."""
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
        """Return what was taken."""
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
