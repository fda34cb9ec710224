"""Parses one rule: action, direction, the conditions on a packet, limits and logging."""

from itertools import chain
from typing import Final, NoReturn

from vtl_tools.common.packet import ether, ip
from vtl_tools.common.rules import roles
from vtl_tools.common.rules.cursor import Cursor
from vtl_tools.common.rules.keywords import ICMP6_TYPES, ICMP_TYPES, PROTOCOLS, UNITS, Protocol
from vtl_tools.common.rules.lexer import END, Token, TokenKind
from vtl_tools.common.rules.position import RulePosition, RuleWarning
from vtl_tools.common.rules.rule import IN, OUT, UNTAGGED, ConnectionLimit, Rate, Rule, Verdict
from vtl_tools.common.rules.service_names import SERVICE_PORTS
from vtl_tools.common.rules.sets import Sets
from vtl_tools.common.rules.values import Addresses, Ranges, is_address, ranges

ACTIONS: Final = {verdict.value: verdict for verdict in Verdict}
_DIRECTIONS: Final = {"in": (IN,), "out": (OUT,)}
_TCP: Final[Protocol] = (None, ip.TCP)
_PORTED: Final = frozenset((_TCP, (None, ip.UDP)))
_ICMP: Final[Protocol] = (ether.IPV4, ip.ICMP)
_BOTH, _NEITHER = frozenset((4, 6)), frozenset[int]()
_VERSIONS: Final = {ether.IPV4: frozenset((4,)), ether.IPV6: frozenset((6,))}
_ICMP6: Final[Protocol] = (ether.IPV6, ip.ICMPV6)

ICMP6: Final = 1 << 16
"""Added to type << 8 | code of ICMPv6, to keep its types apart from those of ICMPv4."""

COUNT_MAX: Final = 1_000_000
"""Maximum of a limit: a larger one would have no effect."""


def take_rule(cursor: Cursor, sets: Sets) -> tuple[Rule, list[RuleWarning]]:
    """Parse a rule and return it with its warnings. Raises RuleError."""
    return _Clauses(cursor, sets).take()


def take_conditions(cursor: Cursor, sets: Sets) -> Rule:
    """Parse the conditions of a rule that chooses TCP connections, without an action. Raises RuleError.

    `dst port` and `src port`, the words of pcap-filter(7), are taken for `port` and `source port`.
    """
    return _Clauses(cursor, sets).take_conditions()


class _Clauses:
    """A rule being parsed. Each kind of clause may occur once, in any order."""

    _direction: str | None = None
    _protocols: tuple[Protocol, ...] = ()
    _src: Addresses | None = None
    _dst: Addresses | None = None
    _src_mac: frozenset[bytes] | None = None
    _dst_mac: frozenset[bytes] | None = None
    _sport: Ranges | None = None
    _dport: Ranges | None = None
    _types: list[tuple[int, int]] | None = None
    _vlan: Ranges | None = None
    _role: int | None = None
    _rate: Rate | None = None
    _cap: ConnectionLimit | None = None

    def __init__(self, cursor: Cursor, sets: Sets) -> None:
        self._cursor = cursor
        self._sets = sets
        self._seen: dict[str, Token] = {}

    def take(self) -> tuple[Rule, list[RuleWarning]]:
        cursor = self._cursor
        place, text = cursor.place, cursor.text
        verdict = ACTIONS[cursor.next().text]
        self._direction = direction = cursor.one_of(_DIRECTIONS)
        if not cursor.accept("any"):
            self._take_protocols()
        while cursor.token.kind is not END:
            self._clause()
        icmp = self._check(verdict)
        if verdict is Verdict.ALLOW and "vlan" not in self._seen:
            self._vlan = ((UNTAGGED, UNTAGGED),)
        rule = Rule(
            place, text, verdict, _DIRECTIONS[direction] if direction else (OUT, IN), self._protocols,
            self._src, self._dst, self._sport, self._dport, icmp, self._src_mac, self._dst_mac, self._vlan,
            "log" in self._seen, "pcap" in self._seen, self._rate, self._cap,
            self._roles(),
        )  # fmt: skip
        return rule, self._remarks(place)

    def take_conditions(self) -> Rule:
        cursor = self._cursor
        place, text = cursor.place, cursor.text
        self._direction = direction = cursor.one_of(_DIRECTIONS)
        if not cursor.accept("any"):
            self._take_protocols()
        if self._protocols not in ((), (_TCP,)):
            cursor.refuse("expected 'tcp' or no protocol: the connections are TCP's", place.column)
        self._protocols = (_TCP,)
        while cursor.token.kind is not END:
            token = cursor.token
            if token.text in ("dst", "src") and cursor.is_before("port"):
                cursor.next()
            if token.text == "src" and cursor.token.text == "port":
                self._seen["source"] = token
                self._source()
            else:
                self._clause()
        for name in "log", "pcap", "asked", "limit of the rate", "limit of connections":
            if name in self._seen:
                cursor.refuse("expected only what chooses connections", self._seen[name].column)
        if self._role is not None:
            cursor.refuse("expected addresses: only a firewall knows this set", self._seen["to"].column)
        self._check(Verdict.ALLOW)
        return Rule(
            place, text, Verdict.ALLOW, _DIRECTIONS[direction] if direction else (OUT, IN), self._protocols,
            self._src, self._dst, self._sport, self._dport, None, self._src_mac, self._dst_mac, self._vlan,
        )  # fmt: skip

    def _take_protocols(self) -> None:
        found: list[Protocol] = []
        cursor = self._cursor
        while True:
            if word := cursor.one_of(PROTOCOLS):
                found.append(PROTOCOLS[word])
            elif cursor.accept("protocol"):
                found.append((None, cursor.number("the number of an IP protocol", 0, 255)))
            elif cursor.accept("ethertype"):
                found.append((cursor.number("an ethertype", 0x0600, 0xFFFF), None))
            elif found:
                cursor.fail("another protocol", words=PROTOCOLS)
            else:
                return
            if not cursor.accept(","):
                self._protocols = tuple(found)
                return

    def _clause(self) -> None:
        cursor = self._cursor
        token = cursor.next()
        name = token.text
        take = _TAKE.get(name) if token.kind is TokenKind.WORD else None
        if take is None:
            self._misplaced(token)
        if cursor.token.text == "mac" and name in ("from", "to"):
            name += " mac"
        elif name == "limit":
            count = cursor.token.kind is TokenKind.NUMBER
            name = "limit of connections" if count else "limit of the rate"
        if name in self._seen:
            cursor.refuse(f"expected one '{name}' in a rule, not two", token.column)
        self._seen[name] = token
        take(self)

    def _misplaced(self, token: Token) -> NoReturn:
        """Raise RuleError about a token that begins no clause."""
        expected = "a clause such as 'from', 'to', 'port' or 'log', or the end of the line"
        if token.kind is TokenKind.SET:
            problem = f"expected 'from', 'to' or 'port' before '{token.text}'"
            self._cursor.refuse(f"{problem}{', or a comma' if self._seen else ''}", token.column)
        if (word := _CLAUSE_OF.get(token.kind)) and (word != "to" or is_address(token.text)):
            word = "from" if word == "to" and self._direction == "in" else word
            problem = f"expected {expected}, not '{token.text}'; write '{word} {token.text}'"
            after = ", or a comma before it" if self._seen else ""
            self._cursor.refuse(f"{problem}{after}", token.column)
        if token.kind is TokenKind.WORD and token.text == "guest-basics":
            self._cursor.refuse("expected 'allow guest-basics' alone in its line", token.column)
        if token.kind is TokenKind.WORD and token.text in (*PROTOCOLS, *_DIRECTIONS, "any"):
            problem = f"expected '{token.text}' before the clauses, as in 'allow out tcp port 80'"
            self._cursor.refuse(problem, token.column)
        self._cursor.fail(expected, token, _WORDS)

    def _from(self) -> None:
        if self._cursor.accept("mac"):
            self._src_mac = self._sets.macs(self._cursor)
        elif not self._cursor.accept("any"):
            self._src = self._sets.addresses(self._cursor)

    def _to(self) -> None:
        if self._cursor.accept("mac"):
            self._dst_mac = self._sets.macs(self._cursor)
        elif self._cursor.token.text in roles.SETS:
            name = self._cursor.next().text
            self._role = roles.SETS[name]
            if self._cursor.token.text == ",":
                self._cursor.refuse(f"expected {name} alone: put other addresses into a rule of their own")
        elif not self._cursor.accept("any"):
            self._dst = self._sets.addresses(self._cursor)

    def _source(self) -> None:
        self._cursor.expect("port")
        self._sport = self._sets.numbers(self._cursor, "a port", 0xFFFF, SERVICE_PORTS)

    def _port(self) -> None:
        self._dport = self._sets.numbers(self._cursor, "a port", 0xFFFF, SERVICE_PORTS)

    def _type(self) -> None:
        """Parse ICMP types. A name applies to each IP version of the rule; a number requires one version."""
        cursor = self._cursor
        versions = [p for p in (_ICMP, _ICMP6) if p in self._protocols]
        if not versions or set(self._protocols) - set(versions):
            column = self._seen["type"].column
            cursor.refuse("expected 'icmp' or 'icmp6' before 'type', and no other protocol", column)
        tables = [ICMP_TYPES if p == _ICMP else ICMP6_TYPES for p in versions]
        self._types = []
        while True:
            token = cursor.token
            if token.kind is TokenKind.NAME and any(token.text in table for table in tables):
                for version, table in zip(versions, tables, strict=True):
                    if token.text not in table:
                        cursor.refuse(f"expected a type that icmp and icmp6 have, which {token.text} is not")
                    self._types.append((_first(version, table[token.text]),) * 2)
                cursor.next()
            elif token.kind in (TokenKind.NUMBER, TokenKind.RANGE, TokenKind.SET):
                if len(versions) > 1:
                    cursor.refuse("expected a name: a number means one type in icmp and another in icmp6")
                numbers = self._sets.numbers(cursor, "a type", 255)
                self._types += [
                    (_first(versions[0], low), _first(versions[0], high)) for low, high in numbers
                ]
                return  # it consumed the commas as well
            else:
                self._no_type(token, tables)
            if not cursor.accept(","):
                return

    def _no_type(self, token: Token, tables: list[dict[str, int]]) -> NoReturn:
        if token.text in ICMP_TYPES or token.text in ICMP6_TYPES:
            name = "icmp6" if tables[0] is ICMP_TYPES else "icmp"
            self._cursor.refuse(f"expected '{name}' before the type {token.text}, which only that has")
        self._cursor.fail("an ICMP type, by name or number", words=[*chain(*tables)])

    def _code(self) -> None:
        cursor = self._cursor
        if self._types is None:
            cursor.refuse("expected 'type' before 'code'", self._seen["code"].column)
        codes = self._sets.numbers(cursor, "a code", 255)
        # adjacent types are one range by now, even if they were listed one by one
        firsts = [first for low, high in self._types for first in range(low, high + 1, 1 << 8)]
        if len(codes) * len(firsts) > 1000:
            cursor.refuse("expected fewer types and codes in one rule", self._seen["code"].column)
        self._types = [(first + low, first + high) for first in firsts for low, high in codes]

    def _vlans(self) -> None:
        cursor = self._cursor
        if cursor.accept("any"):
            return
        found: list[tuple[int, int]] = []
        if cursor.accept("none"):
            found.append((UNTAGGED, UNTAGGED))
            if not cursor.accept(","):
                self._vlan = tuple(found)
                return
        found += self._sets.numbers(cursor, "a VLAN", 4095)
        self._vlan = ranges(found)

    def _limit(self) -> None:
        cursor = self._cursor
        token = cursor.token
        if token.kind is TokenKind.NUMBER:
            count = cursor.number("a number of connections", 1, COUNT_MAX)
            if not cursor.accept("connections"):
                cursor.fail(f"'connections', or a rate such as {count}/s")
            self._cap = ConnectionLimit(count, self._per_source())
            return
        if token.kind is not TokenKind.RATE:
            cursor.fail("a rate such as 10/s, 10/min or 10/hour, or a number of connections")
        number, _, unit = token.text.partition("/")
        count = cursor.value(Token(TokenKind.NUMBER, number, token.column), "a lower rate")
        if not 1 <= count <= COUNT_MAX:
            cursor.fail(f"a rate of 1 to {COUNT_MAX}")
        cursor.next()
        burst = cursor.number("a burst", 1, COUNT_MAX) if cursor.accept("burst") else count
        self._rate = Rate(count / UNITS[unit], burst, self._per_source())

    def _per_source(self) -> bool:
        if self._cursor.accept("per"):
            self._cursor.expect("source")
            return True
        return False

    def _flag(self) -> None:
        pass

    def _check(self, verdict: Verdict) -> Ranges | None:
        """Reject conditions that no packet can meet. Return the ICMP types."""
        cursor = self._cursor
        token = self._seen.get("port") or self._seen.get("source")
        if token and not (self._protocols and _PORTED.issuperset(self._protocols)):
            cursor.refuse("expected 'tcp' or 'udp' before ports, and no other protocol", token.column)
        if verdict is not Verdict.ALLOW:
            for name in "limit of connections", "limit of the rate":
                if name in self._seen:
                    cursor.refuse("expected a limit in a rule that allows only", self._seen[name].column)
        self._check_versions()
        if self._types is None:
            return None
        # from the first code of a range's first type to the last of its last, unless codes were given
        return ranges(self._types if "code" in self._seen else [(a, b | 0xFF) for a, b in self._types])

    def _roles(self) -> Ranges | None:
        """Return the roles. Reject a rule whose packets cannot have them, by direction or protocol."""
        cursor = self._cursor
        if "asked" in self._seen and (self._direction != "in" or self._protocols != ((None, ip.UDP),)):
            cursor.refuse("expected 'in udp' before 'asked'", self._seen["asked"].column)
        if self._role is not None and self._direction != "out":
            cursor.refuse("expected 'out' before a set of what the VM may send to", self._seen["to"].column)
        role = roles.ASKED if "asked" in self._seen else self._role
        return None if role is None else roles.of_role(role)

    def _check_versions(self) -> None:
        """Reject a rule that mixes IP versions. An empty set is of both."""
        if self._src is None and self._dst is None:
            return
        last, versions = "the protocol", _BOTH
        if self._protocols:
            versions = _NEITHER.union(*map(_versions, self._protocols))
        if not all(map(_versions, self._protocols)):
            token = self._seen.get("from") or self._seen["to"]
            self._cursor.refuse("expected IP before addresses, not another ethertype", token.column)
        for name, side in ("from", self._src), ("to", self._dst):
            if not side:
                continue
            has = ({4} if side.v4 else set()) | ({6} if side.v6 else set())
            if not versions & has:
                was, now = (f"IPv{min(part)}" for part in (versions, has))
                problem = f"expected an {was} address, as {last} is {was}'s; here are only {now} addresses"
                self._cursor.refuse(problem, self._seen[name].column)
            if versions != has:
                last = f"'{name}'" if has < versions else last
            versions &= has

    def _remarks(self, place: RulePosition) -> list[RuleWarning]:
        """Warn if a set is empty, which is legal where it is declared: the rule matches nothing."""
        asked = (self._src, self._dst, self._src_mac, self._dst_mac, self._sport, self._dport, self._types)
        empty = any(value is not None and not value for value in (*asked, self._vlan))
        return [RuleWarning(place, "matches nothing, as a set in it is empty")] if empty else []


_TAKE: Final = {
    "from": _Clauses._from,
    "to": _Clauses._to,
    "source": _Clauses._source,
    "port": _Clauses._port,
    "type": _Clauses._type,
    "code": _Clauses._code,
    "vlan": _Clauses._vlans,
    "limit": _Clauses._limit,
    "log": _Clauses._flag,
    "pcap": _Clauses._flag,
    "asked": _Clauses._flag,
}
_WORDS: Final = (*_TAKE, *PROTOCOLS, *_DIRECTIONS, "any")
_CLAUSE_OF: Final = {
    TokenKind.NUMBER: "port",
    TokenKind.RANGE: "port",
    TokenKind.ADDRESS: "to",
    TokenKind.MAC: "from mac",
    TokenKind.RATE: "limit",
}
"""The clause that a value is likely to be meant for."""


def _first(protocol: Protocol, kind: int) -> int:
    """Return the ICMP type with its lowest code, in the form of Rule.icmp."""
    return (ICMP6 if protocol == _ICMP6 else 0) | kind << 8


def _versions(protocol: Protocol) -> frozenset[int]:
    return _BOTH if protocol[0] is None else _VERSIONS.get(protocol[0], _NEITHER)
