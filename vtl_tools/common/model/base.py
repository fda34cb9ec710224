"""The two ends of a conversation, and what every state model does (paper section 2.5)."""

from enum import Enum
from typing import Final, Generic, TypeVar

from vtl_tools.common.packet.packet import Packet


class End(Enum):
    """One end of a conversation. Of a packet: the end that sent it, which is the packet's direction."""

    LOCAL = "local"  # the VM
    REMOTE = "remote"  # whom it talks to

    @property
    def other(self) -> "End":
        """The end that this one talks to."""
        return REMOTE if self is LOCAL else LOCAL


LOCAL: Final = End.LOCAL
REMOTE: Final = End.REMOTE

E = TypeVar("E")


class Model(Generic[E]):
    """What one layer of a conversation looks like from both ends; a layer above holds the one below.

    Each layer also has from_packet(pkt, sender), which makes a model from an example packet, and
    create(..., from_=LOCAL), which makes a new packet and follows it. Broken packets raise Malformed from
    the packet's views; nothing else is raised for foreign octets.

    local, remote: the variables of each end, which may be read and written at any time; model[LOCAL] is
    model.local. No checksum is verified: most frames of a VM have none yet, and a link drops no frame for it.
    """

    __slots__ = ("local", "remote")

    def __init__(self, local: E, remote: E) -> None:
        self.local = local
        self.remote = remote

    def __getitem__(self, end: End) -> E:
        return self.local if end is LOCAL else self.remote

    def matches(self, pkt: Packet) -> End | None:
        """Say which end sent a packet; None if it is not of this conversation. Changes nothing."""
        raise NotImplementedError

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Learn from a packet that matches; say whether its receiver will take it, by this layer's rules."""
        raise NotImplementedError

    def adopt(self, pkt: Packet, from_: End) -> None:
        """Rewrite a packet in place so that it belongs to the conversation, as sent by from_.

        Checksums, full or partial, stay as right as they were. ValueError if the packet lacks this layer
        or has another form of it; what the layers below have rewritten by then stays rewritten.
        """
        raise NotImplementedError

    def sync(self, pkt: Packet) -> End | None:
        """Follow a packet and say which end sent it; None if it is another's or to be refused."""
        sender = self.matches(pkt)
        return sender if sender is not None and self.follow(pkt, sender) else None
