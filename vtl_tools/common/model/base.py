"""Base of all state models: two ends of a conversation, and the methods of a model (paper section 2.5)."""

from enum import Enum
from typing import Final, Generic, TypeVar

from vtl_tools.common.packet.packet import Packet


class End(Enum):
    """One end of a conversation. For a packet: the end that sent it, which gives its direction."""

    LOCAL = "local"  # the VM
    REMOTE = "remote"  # the VM's peer

    @property
    def other(self) -> "End":
        """The opposite end."""
        return REMOTE if self is LOCAL else LOCAL


LOCAL: Final = End.LOCAL
REMOTE: Final = End.REMOTE

E = TypeVar("E")


class Model(Generic[E]):
    """One layer of a conversation, with the variables of both ends. A layer holds the layer below.

    Each layer also has from_packet(pkt, sender), which makes a model from an example packet, and create(...,
    from_=LOCAL), which makes a new packet and follows it. A broken packet raises Malformed from its views.
    Untrusted octets raise nothing else.

    local, remote: the variables of each end, readable and writable at any time; model[LOCAL] is model.local.
    Checksums are not verified: most frames of a VM have none yet, and no link drops a frame for a wrong one.
    """

    __slots__ = ("local", "remote")

    def __init__(self, local: E, remote: E) -> None:
        self.local = local
        self.remote = remote

    def __getitem__(self, end: End) -> E:
        return self.local if end is LOCAL else self.remote

    def matches(self, pkt: Packet) -> End | None:
        """Return the end that sent a packet. None: the packet is not part of this conversation.

        Changes nothing.
        """
        raise NotImplementedError

    def follow(self, pkt: Packet, sender: End) -> bool:
        """Learn from a packet that matches.

        Return whether its receiver accepts it, by the rules of this layer.
        """
        raise NotImplementedError

    def adopt(self, pkt: Packet, from_: End) -> None:
        """Rewrite a packet in place so that it belongs to the conversation, as sent by from_.

        A correct checksum, full or partial, stays correct. Raises ValueError if the packet lacks this layer
        or has another form of it. Rewrites by the layers below are then kept.
        """
        raise NotImplementedError

    def sync(self, pkt: Packet) -> End | None:
        """Follow a packet and return the end that sent it.

        None: not part of the conversation, or not acceptable.
        """
        sender = self.matches(pkt)
        return sender if sender is not None and self.follow(pkt, sender) else None
