"""An epoll of the service's own sockets: each is registered once, for both directions, edge-triggered.

asyncio would change the registration at every turn of a connection, which costs half of a short one's time.
"""

import select
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeVar

from vtl_tools.common.relay.connector import Stream, close_spares, make_spares

_EDGES: Final = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_EVENTS_MAX: Final = 128
"""Events of one poll(), so that frames do not wait."""

T = TypeVar("T")


class Poller:
    """Reports the events of streams to callbacks."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, tuple[Callable[[Any, int, float], object], Any]] = {}
        self._closing: list[Stream] = []
        self._polling = False

    def fileno(self) -> int:
        """Return a descriptor that is readable when there are events."""
        return self._epoll.fileno()

    def add(self, stream: Stream, owner: T, on_event: Callable[[T, int, float], object]) -> None:
        """Call on_event(owner, events, now) for each event of a stream.

        Raises OSError, with the stream closed, if the kernel has no room for another registration.
        """
        fd = stream.fileno()
        if fd < 0:
            stream.on_event = partial(on_event, owner)  # type: ignore[attr-defined] # an InternalStream
            return
        try:
            self._epoll.register(fd, _EDGES)
        except OSError:
            stream.close()
            raise
        self._handlers[fd] = on_event, owner

    def close(self, stream: Stream) -> None:
        """Close a stream, and report no more events of it."""
        self._handlers.pop(stream.fileno(), None)
        if self._polling:  # its number must not be reused while old events of it may be at hand
            self._closing.append(stream)
        else:
            stream.close()

    def poll(self, now: float) -> bool:
        """Report what has happened; return whether anything had."""
        events = self._epoll.poll(0, _EVENTS_MAX)
        if not events:
            make_spares()
            return False
        self._polling = True
        handlers = self._handlers
        for fd, event in events:
            if (handler := handlers.get(fd)) is not None:
                on_event, owner = handler
                on_event(owner, event, now)
        self._polling = False
        for stream in self._closing:
            stream.close()
        self._closing.clear()
        return True

    def end(self) -> None:
        """Close the epoll descriptor, and what no stream was made of. Idempotent."""
        if not self._epoll.closed:
            self._epoll.close()
        close_spares()
