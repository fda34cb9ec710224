"""Who has how many flows, so that a full table takes from those who have most."""

from vtl_tools.common.firewall.flow import Flow


class Share:
    """The flows of one source, oldest first, as a list through them. before, behind: of its level."""

    __slots__ = ("before", "behind", "count", "first", "last", "source")

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.count = 0
        self.first: Flow | None = None
        self.last: Flow | None = None
        self.before = self.behind = self


class Shares:
    """Flows by source. Every method takes the same time, however many there are.

    Sources with equally many flows are one level, a ring around a Share without flows, in the order in
    which they got there.
    """

    def __init__(self) -> None:
        self._sources: dict[bytes, Share] = {}
        self._levels: dict[int, Share] = {}
        self._most = 0
        self.count = 0

    def of(self, source: bytes) -> int:
        """Return how many flows a source has."""
        share = self._sources.get(source)
        return 0 if share is None else share.count

    def add(self, flow: Flow) -> None:
        """Take a flow that is in no share."""
        source = flow.source
        share = self._sources.get(source)
        if share is None:
            share = self._sources[source] = Share(source)
        flow.share, flow.before, flow.behind = share, share.last, None
        if share.last is None:
            share.first = flow
        else:
            share.last.behind = flow
        share.last = flow
        self._move(share, share.count + 1)
        self.count += 1

    def remove(self, flow: Flow) -> None:
        """Let a flow go that add() took."""
        share, before, behind = flow.share, flow.before, flow.behind
        assert share is not None
        if before is None:
            share.first = behind
        else:
            before.behind = behind
        if behind is None:
            share.last = before
        else:
            behind.before = before
        flow.share = flow.before = flow.behind = None
        self._move(share, share.count - 1)
        if not share.count:
            del self._sources[share.source]
        self.count -= 1

    def victim(self) -> Flow | None:
        """Return the oldest flow of the source that has most; None if there is no flow at all."""
        return self._levels[self._most].behind.first if self._most else None

    def _move(self, share: Share, count: int) -> None:
        if share.count:
            share.before.behind, share.behind.before = share.behind, share.before
            ring = self._levels[share.count]
            if ring.behind is ring:
                del self._levels[share.count]
        share.count = count
        if count:
            ring = self._levels.get(count) or self._levels.setdefault(count, Share(b""))
            share.before, share.behind = ring.before, ring
            ring.before.behind = ring.before = share
            self._most = max(self._most, count)
        while self._most and self._most not in self._levels:
            self._most -= 1
