"""Common base of the state models of TCP and UDP: two ports over an IP model."""

from typing import ClassVar, Protocol, TypeVar

from vtl_tools.common.model.base import End, Model
from vtl_tools.common.model.ip import IPModel
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP


class HasPort(Protocol):
    """An end with a port."""

    port: int


P = TypeVar("P", bound=HasPort)


class TransportModel(Model[P]):
    """Two ports on the two hosts of `ip`."""

    __slots__ = ("ip",)
    HEADER: ClassVar[type[TCP] | type[UDP]]

    def __init__(self, ip: IPModel, local: P, remote: P) -> None:
        super().__init__(local, remote)
        self.ip = ip

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.local!r} {self.remote!r} {self.ip!r}>"

    def matches(self, pkt: Packet) -> End | None:
        """Return the end that sent a packet, by addresses and ports. None for a fragment."""
        sender, head = self.ip.matches(pkt), pkt.transport
        if sender is None or not isinstance(head, self.HEADER) or pkt.is_fragment:
            return None
        if head.sport != self[sender].port or head.dport != self[sender.other].port:
            return None
        return sender

    def adopt(self, pkt: Packet, from_: End) -> None:
        """Rewrite ports, addresses and the layers below."""
        head = pkt.transport
        if not isinstance(head, self.HEADER) or pkt.is_fragment:
            raise ValueError(f"the packet is not a whole {self.HEADER.__name__} packet")
        self.ip.adopt(pkt, from_)
        head.sport, head.dport = self[from_].port, self[from_.other].port
