"""An epoll of our own for a service's sockets: each is registered once, for both directions, edge-triggered.

asyncio would change what it waits for at every turn of a connection, which costs half of a short one's time.
"""

import select
from typing import Final, Protocol

from vtl_tools.common.relay.connector import Stream

_EDGES: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_MAX: Final = 128
"""In a turn, so that frames are not kept waiting."""


class EventHandler(Protocol):
    """Whoever is told of a stream's events."""

    def on_event(self, events: int, now: float) -> None:
        """Learn what the stream has become ready for."""
        ...


class Poller:
    """Tells owners of their streams' events."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._owners: dict[int, EventHandler] = {}
        self._closing: list[Stream] = []
        self._polling = False

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are events."""
        return self._epoll.fileno()

    def add(self, stream: Stream, owner: EventHandler) -> None:
        """Tell owner of this stream from now on; one without a descriptor tells by itself.

        Raises OSError, with the stream closed, if the kernel is to watch no more.
        """
        fd = stream.fileno()
        if fd < 0:
            stream.owner = owner  # type: ignore[attr-defined]
            return
        try:
            self._epoll.register(fd, _EDGES)
        except OSError:
            stream.close()
            raise
        self._owners[fd] = owner

    def close(self, stream: Stream) -> None:
        """Close a stream, and tell nobody of it any more."""
        self._owners.pop(stream.fileno(), None)
        if self._polling:  # the number may not be used anew while events of the old one may be on hand
            self._closing.append(stream)
        else:
            stream.close()

    def poll(self, now: float) -> bool:
        """Tell owners of what has happened; return whether anything had."""
        events = self._epoll.poll(0, _EVENTS_MAX)
        if not events:
            return False
        self._polling = True
        owners = self._owners
        for fd, event in events:
            if (owner := owners.get(fd)) is not None:
                owner.on_event(event, now)
        self._polling = False
        for stream in self._closing:
            stream.close()
        self._closing.clear()
        return True

    def end(self) -> None:
        """Give the descriptor back. Idempotent."""
        if not self._epoll.closed:
            self._epoll.close()
