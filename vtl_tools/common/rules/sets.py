"""Parses lists of addresses, Ethernet addresses and numbers, and the named sets of them."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from vtl_tools.common.packet.address import mac
from vtl_tools.common.rules import roles
from vtl_tools.common.rules.cursor import Cursor
from vtl_tools.common.rules.lexer import END, Token, TokenKind
from vtl_tools.common.rules.position import RuleError
from vtl_tools.common.rules.remedies import for_address
from vtl_tools.common.rules.service_names import SERVICE_PORTS
from vtl_tools.common.rules.values import Addresses, Ranges, Span, parse_addresses, ranges

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


class NamedSet(NamedTuple):
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


_ANY: Final = ("any", "all", "*")
_NO_NAMES: Final[Mapping[str, int]] = {}
_STATEMENTS: Final = frozenset(("allow", "deny", "reject", "set", "include"))


class Sets:
    """The sets defined so far, and the total number of items.

    report: takes an error in one line of a set in braces; the lines after it are parsed all the same.
    is_incomplete: whether sets may be missing because of another error; an unknown set is then none.
    """

    def __init__(self, report: Callable[[RuleError], object]) -> None:
        self._report = report
        self.is_incomplete = False
        self._sets: dict[str, NamedSet] = {}
        self._defining = ""
        self._items = 0

    def define(self, cursor: Cursor) -> None:
        """Parse `@name = ...`, after the word set. Raises RuleError."""
        name = cursor.token.text
        if cursor.token.kind is not TokenKind.SET:
            advice = f"; write '@{name}'" if cursor.token.kind is TokenKind.NAME else ""
            cursor.fail("the set's name, such as @admins", advice=lambda _: advice)
        if name in self._sets:
            cursor.refuse(f"{name} is defined already; a set has one definition")
        if name in roles.SETS:
            cursor.refuse(f"{name} is built in: choose another name")
        cursor.next()
        self._defining = name
        found = EMPTY
        try:
            cursor.expect("=")
            found = self._definition(cursor)
        finally:  # a set with an error is one, so that rules with it have none
            self._sets[name] = found
            self._defining = ""

    def _definition(self, cursor: Cursor) -> NamedSet:
        if cursor.accept("empty"):
            return EMPTY
        if cursor.accept("{"):
            return self._braced(cursor)
        if cursor.token.kind is END:
            cursor.fail("what is in the set, or 'empty', which matches nothing")
        return _List(self, "", names=SERVICE_PORTS).all(cursor)

    def addresses(self, cursor: Cursor) -> Addresses:
        """Parse a list of addresses and sets of them. Rules that name a single set share one object."""
        return _List(self, ADDRESS).all(cursor).addresses

    def macs(self, cursor: Cursor) -> frozenset[bytes]:
        """Parse a list of Ethernet addresses and sets of them."""
        return _List(self, MAC).all(cursor).macs

    def numbers(self, cursor: Cursor, what: str, high: int, names: Mapping[str, int] = _NO_NAMES) -> Ranges:
        """Parse a list of numbers up to high, ranges, and sets of them. names: words for some numbers."""
        column = cursor.token.column
        expected = f"{what} (0 to {high}), a range or a set of them"
        found = _List(self, NUMBER, expected, names).all(cursor).numbers
        if found and found[-1][1] > high:
            cursor.refuse(f"expected {what} (0 to {high}), not {found[-1][1]}", column)
        return found

    def find(self, cursor: Cursor) -> NamedSet:
        """Return the set that the next token names. Raises RuleError if none is defined above."""
        name = cursor.token.text
        if name == self._defining:
            cursor.refuse(f"expected another set, as {name} cannot hold itself")
        if name in roles.SETS:
            cursor.refuse(f"expected another set: {name} stands alone behind 'to'")
        if (found := self._sets.get(name)) is None:
            if self.is_incomplete:
                return EMPTY
            cursor.refuse(f"expected a set that is defined above; {name} is not")
        return found

    def count(self, cursor: Cursor, items: int) -> None:
        """Count items. Raises RuleError if the total is too large."""
        self._items += items
        if self._items > ITEMS_MAX:
            cursor.exceed(f"expected at most {ITEMS_MAX} items in all sets and lists together")

    def _braced(self, cursor: Cursor) -> NamedSet:
        items = _List(self, "", names=SERVICE_PORTS)
        some = False
        while not cursor.accept("}"):
            if cursor.token.kind is END and cursor.is_at_end:
                cursor.fail("'}'")
            if cursor.token.text in _STATEMENTS and cursor.starts_line():
                cursor.fail("an item of the set, or '}' at its end")
            some |= cursor.token.kind is not END
            try:
                if cursor.token.kind is END:
                    cursor.next_line()
                    continue
                items.one(cursor)
                if cursor.token.kind is not END and cursor.token.text != "}":
                    cursor.expect(",")
            except RuleError as error:
                if error.is_fatal:
                    raise
                self._report(error)
                cursor.next_item()
        if not some:
            cursor.refuse("expected items in the braces; a set that is to match nothing is '= empty'")
        return items.made()


class _List:
    """Items of one kind. The first item decides the kind unless it is given."""

    def __init__(
        self, sets: Sets, kind: str, expected: str = "", names: Mapping[str, int] = _NO_NAMES
    ) -> None:
        self._sets = sets
        self._kind = kind
        self._expected = expected
        self._names = names
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
        if kind is None and token.text in self._names:
            kind = NUMBER
        if kind is None or (self._kind and kind != self._kind):
            expected = self._expected or (f"{self._kind} or a set of them" if self._kind else "an item")
            if self._kind == ADDRESS:
                cursor.fail(expected, advice=for_address)
            if token.text in _ANY:
                shown = f"not '{token.text}'; leave the clause out, so that it tests nothing"
                cursor.refuse(f"expected {expected}, {shown}")
            cursor.fail(expected, words=self._names)
        self._kind = kind
        self._sets.count(cursor, 1)
        if kind is ADDRESS:
            try:
                self._spans.append(parse_addresses(token.text))
            except ValueError as err:
                cursor.refuse(f"expected {ADDRESS}: {str(err)[:200]}{for_address(token.text)}")
        elif kind is MAC:
            self._macs.add(mac(token.text))
        else:
            self._numbers.append(self._range(cursor, token))
        cursor.next()

    def _range(self, cursor: Cursor, token: Token) -> tuple[int, int]:
        if token.kind is TokenKind.RANGE:
            return _between(cursor, token)
        named = self._names.get(token.text)
        number = cursor.value(token, "a smaller number") if named is None else named
        return number, number

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


def _between(cursor: Cursor, token: Token) -> tuple[int, int]:
    low, _, high = token.text.partition("-")
    first, last = (
        cursor.value(Token(TokenKind.NUMBER, text, token.column), "a smaller number") for text in (low, high)
    )
    if first > last:
        cursor.refuse(f"expected a range from the lower number to the higher, not {token.text}")
    return first, last
