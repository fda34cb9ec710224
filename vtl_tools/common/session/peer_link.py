"""Base of the links between daemons, and of the doors at which daemons arrive that are not known before."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Generic, TypeVar

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.session.base import Address, PacketCounts
from vtl_tools.common.session.items import FRAME_MIN, HEAD, HOPS_MAX, Conversation, Hello

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
NO_PLACE: Final = "has no place for another daemon of this name"


class PeerLink(Device):
    """A link to another daemon.

    hops: of each frame of the last batch that was read: the VNET links that it may still pass. remote: what
    the other daemon tells of itself; None until it is known. where: the host that it is seen at.
    """

    offload = True

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self._batch = Batch()
        self._why = "is not connected yet"
        self.hops: list[int] = []
        self.remote: Hello | None = None
        self.where = ""

    def take_frames(self, session: Conversation) -> None:
        """Move frames that came into the batch."""
        batch = self._batch
        while session.frames and batch.count < SLOTS:
            hops, frame = session.frames.popleft()
            batch.append(frame)
            self.hops.append(hops)
        if session.malformed:
            self.drops[Drop.MALFORMED] += session.malformed
            session.malformed = 0
        if session.frames:
            self.handle.wake()

    def write(self, batch: Batch) -> int:
        """Send a batch of frames of this host."""
        return self.write_hops(batch, HOPS_MAX)

    def write_hops(self, batch: Batch, hops: int) -> int:
        """Send a batch of frames that may pass so many VNET links. Frames without room are dropped."""
        if not self.up:
            return self.refused(batch, Drop.LINK_DOWN)
        frames = [frame for frame in batch if len(frame) >= FRAME_MIN]
        self.drops[Drop.RUNT] += batch.count - len(frames)
        lost = frames[self.send(frames, hops) :]
        if lost:
            self.drops[Drop.QUEUE_FULL] += len(lost)
        runts = batch.count - len(frames)
        octets = sum(map(len, lost)) - VNET * len(lost)
        return self.sent(batch, runts + len(lost), octets)

    @abstractmethod
    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames while the link is up; return how many it took."""

    @property
    @abstractmethod
    def session(self) -> Conversation | None:
        """The session that is up; None: there is none."""

    @abstractmethod
    def flush(self) -> None:
        """Send what the session has made."""

    @abstractmethod
    def packets(self) -> PacketCounts:
        """Return the packets of its connection, and those lost."""

    def status(self) -> dict[str, object]:
        """Return the link's part of --json."""
        rtt_s = None if self.session is None else self.session.rtt_s
        found = self.packets()
        return {
            **super().status(),
            "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 3),
            "loss_percent": round(100 * found.lost / found.counted, 3) if found.counted else None,
            "why": self._why,
        }

    @property
    def doors(self) -> Sequence[str]:
        """The doors of the other daemon, as it told last."""
        known = self.remote if self.session is None else self.session.remote
        return () if known is None else known.doors

    def say_hello(self) -> None:
        """Tell the other daemon again of this one, if the link is up."""
        if (session := self.session) is not None and session.is_up:
            session.say_hello()
            self.flush()

    def tell(self, kind: int, item: bytes) -> None:
        """Send an item to the other daemon, if the link is up."""
        if (session := self.session) is not None and session.is_up:
            session.emit([HEAD.pack(kind, 0, len(item)), item])
            self.flush()

    def messages(self) -> list[tuple[int, bytes]]:
        """Return the items for adaptation that came."""
        if (session := self.session) is None:
            return []
        found = list(session.messages)
        session.messages.clear()
        return found


LinkT = TypeVar("LinkT", bound=PeerLink)


class Door(Device, Generic[LinkT]):
    """Listens for any daemon that has the key. on_peer: is given each link, with what the daemon tells.

    It returns False if there can be no such link.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.on_peer: Callable[[Hello, PeerLink], bool] = lambda hello, link: False
        self._nothing = Batch(1)
        self._links: dict[tuple[str, str], LinkT] = {}

    def link_to(self, hello: Hello, remote: Address, make: Callable[[str], LinkT]) -> LinkT | None:
        """Return the link of a daemon that has come, a new one unless it was here before; None: no place.

        make: is given the spec of a new link.
        """
        name = hello.name, hello.over
        link = self._links.get(name)
        if link is None:
            host, port = remote[:2]
            link = make(f"{self.spec} from {host} port {port}")
            if not self.on_peer(hello, link):
                link.close()
                return None
            self._links[name] = link
        return link

    def forget(self, link: Device) -> None:
        """Note that the link of a daemon is closed."""
        self._links = {name: one for name, one in self._links.items() if one is not link}

    def write(self, batch: Batch) -> int:
        """Take no frame: a door leads nowhere."""
        return self.refused(batch, Drop.LINK_DOWN)
