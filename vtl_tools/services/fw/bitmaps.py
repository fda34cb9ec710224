"""Maps from each value of a field to a bitmap of the rules that it satisfies: bit i is rule i.

The lowest bit of the AND of all fields' bitmaps is the first rule that matches. Python ANDs some 30 rules at
a time, so that 10,000 rules take a microsecond or two per packet, not 10,000 tests.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any, Final

MEMORY_OCTETS: Final = 32 << 20
"""Maximum octets of one map's bitmaps. If all would take more, only every k-th is stored."""

_FEW: Final = 64
"""Maximum rules of a group that are stored as a list, and maximum bitmaps of groups held at once."""

_SPARSE: Final = 8
"""Maximum rules per value, besides those that any value satisfies, that are stored as a list."""
_SPARSE_OCTETS: Final = 56 + 8 * _SPARSE

Span = tuple[Any, Any]


def bitmap(bits: Iterable[int], size: int) -> int:
    """Return an int of at most `size` bits in which these bits are set."""
    octets = bytearray(size + 7 >> 3)
    for bit in bits:
        octets[bit >> 3] |= 1 << (bit & 7)
    return int.from_bytes(octets, "little")


class Spans:
    """A map from values of one type to bitmaps.

    A bitmap is constant between two ends of rules' ranges. `starts` holds these ends, in which a value is
    found by bisection. If no value satisfies many rules, lists of rules are stored instead of bitmaps: 10,000
    rules for as many networks then take 1 MB instead of 25.
    """

    __slots__ = ("_base", "_every", "_few", "_groups", "_kept", "_starts", "_toggles")

    def __init__(self, base: int, groups: Sequence[tuple[Iterable[Span], Sequence[int]]], size: int) -> None:
        """base: the rules that any value satisfies. size: total number of rules.

        groups: sorted ranges without overlap, each as its first value and the value after the last (None: no
        end), and the rules that they belong to.
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
    """Return the rules, besides those of the base, from each start to the next; None if they are many."""
    if len(starts) * _SPARSE_OCTETS > MEMORY_OCTETS:
        return None
    active: set[int] = set()
    out: list[tuple[int, ...]] = [()]
    for start in starts:
        for group in toggles[start]:
            active ^= {group}  # twice where two of its ranges are adjacent
        bits = [bit for group in active for bit in groups[group]]
        if len(bits) > _SPARSE:
            return None
        out.append(tuple(bits))
    return out
