"""For each value of a field, the rules that it satisfies, as one int: bit i is rule i.

To AND the bitmaps of all fields and take the lowest bit is to find the first rule that matches. Python
does that some 30 rules at a time, so that 10,000 rules cost a packet a microsecond or two, not 10,000 tests.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

MEMORY_OCTETS: Final = 32 << 20
"""What one map's bitmaps may take. Where all would be more, only every k-th is kept."""

_FEW: Final = 64
"""Rules of a group, and bitmaps of groups, that are few enough to be kept in another form."""

_SPARSE: Final = 8
"""Rules that satisfy a value, beside those that any does, that are few enough to be kept one by one."""
_SPARSE_OCTETS: Final = 56 + 8 * _SPARSE

Span = tuple[Any, Any]


def bitmap(bits: Iterable[int], size: int) -> int:
    """Return an int of at most `size` bits with these set."""
    octets = bytearray(size + 7 >> 3)
    for bit in bits:
        octets[bit >> 3] |= 1 << (bit & 7)
    return int.from_bytes(octets, "little")


class Spans:
    """Values of one type, in order, to bitmaps.

    A bitmap is the same from one end of some rule's range to the next. `starts` has these ends, in which a
    value is found by bisection. Where no value satisfies many rules, their numbers are kept in the place of
    bitmaps: 10,000 rules for as many networks take 1 MB then, and not 25.
    """

    __slots__ = ("_base", "_every", "_few", "_groups", "_kept", "_starts", "_toggles")

    def __init__(self, base: int, groups: Sequence[tuple[Iterable[Span], Sequence[int]]], size: int) -> None:
        """base: the rules that any value satisfies. size: rules in all.

        groups: ranges, from the first to what is behind the last (None: nothing is), which are in order and
        do not overlap, and the rules that they belong to.
        """
        toggles: dict[Any, list[int]] = {}
        for group, (spans, _) in enumerate(groups):
            for first, behind in spans:
                toggles.setdefault(first, []).append(group)
                if behind is not None:
                    toggles.setdefault(behind, []).append(group)
        self._base = base
        self._starts = sorted(toggles)
        self._few = _few(self._starts, toggles, [bits for _, bits in groups])
        if self._few is not None:
            return
        self._groups = [tuple(bits) if len(bits) <= _FEW else bitmap(bits, size) for _, bits in groups]
        self._every = 1 + len(self._starts) * (size // 8 + 32) // MEMORY_OCTETS
        self._kept = [base]
        self._toggles: list[tuple[int, ...]] = []
        self._sweep(base, toggles)

    def _sweep(self, current: int, toggles: dict[Any, list[int]]) -> None:
        masks: dict[int, int] = {}
        for at, start in enumerate(self._starts, 1):
            for group in toggles[start]:
                mask = masks.get(group)
                if mask is None:
                    if len(masks) == _FEW:
                        masks.clear()
                    masks[group] = mask = self._mask(group)
                current ^= mask
            if at % self._every == 0:
                self._kept.append(current)
        if self._every > 1:
            self._toggles = [tuple(toggles[start]) for start in self._starts]

    def _mask(self, group: int) -> int:
        bits = self._groups[group]
        if isinstance(bits, int):
            return bits
        mask = 1 << bits[0]
        for bit in bits[1:]:
            mask |= 1 << bit
        return mask

    def __getitem__(self, value: Any) -> int:
        at = bisect_right(self._starts, value)
        if self._few is not None:
            found = self._base
            for bit in self._few[at]:
                found |= 1 << bit
            return found
        if self._every == 1:
            return self._kept[at]
        kept, behind = divmod(at, self._every)
        found = self._kept[kept]
        for turned in self._toggles[at - behind : at]:
            for group in turned:
                found ^= self._mask(group)
        return found


def _few(
    starts: Sequence[Any], toggles: dict[Any, list[int]], groups: Sequence[Sequence[int]]
) -> list[tuple[int, ...]] | None:
    """Return the rules, beside those of the base, from each start to the next; None if they are many."""
    if len(starts) * _SPARSE_OCTETS > MEMORY_OCTETS:
        return None
    active: set[int] = set()
    out: list[tuple[int, ...]] = [()]
    for start in starts:
        for group in toggles[start]:
            active ^= {group}  # twice where one of its ranges ends and the next begins
        bits = [bit for group in active for bit in groups[group]]
        if len(bits) > _SPARSE:
            return None
        out.append(tuple(bits))
    return out
