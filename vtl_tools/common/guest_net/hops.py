"""Finds the Ethernet address that a packet for an IP address is sent to: ARP (RFC 826), ND (RFC 4861)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vtl_tools.common.packet import address, build, nd
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.packet import Packet

FRESH_S: Final = 30.0
"""Seconds for which a neighbour that was heard is not asked for again (REACHABLE_TIME, RFC 4861 10)."""
ASK_S: Final = 1.0  # RetransTimer
ASKED_MOST: Final = 3  # MAX_MULTICAST_SOLICIT
KNOWN_MAX: Final = 1024
"""Neighbours that are remembered; the one silent for longest is forgotten first."""
QUESTIONS_MAX: Final = 256
"""Neighbours that are asked for at once; a further one is not found."""
WAITING_MAX: Final = 65536
"""Packets that wait for an answer: flows that end before it still do. A further one is not found."""
_HOP_LIMIT: Final = 255  # RFC 4861 section 7.1

Found = Callable[[bytes | None, float], object]
"""Gets the Ethernet address, or None if nobody answered, and the time."""


@dataclass(slots=True)
class _Question:
    asker: bytes
    due: float
    asked: int = 1
    waiting: list[Found] = field(default_factory=list)


class NextHops:
    """The neighbours on one link. mac: ours. send: puts a frame on the link."""

    def __init__(self, mac: bytes, send: Callable[[bytearray, float], object]) -> None:
        self._mac, self._send = mac, send
        self._known: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self._questions: dict[bytes, _Question] = {}
        self._waiting = 0

    def find(self, target: bytes, asker: bytes, found: Found, now: float) -> None:
        """Have `found` called with a neighbour's Ethernet address: at once, or when it has answered.

        asker: the address that an ARP request comes from, of the version of the target.
        """
        known = self._known.get(target)
        if known is not None and now - known[1] < FRESH_S:
            found(known[0], now)
            return
        question = self._questions.get(target)
        if self._waiting >= WAITING_MAX:
            found(None, now)
            return
        if question is None:
            if len(self._questions) >= QUESTIONS_MAX:
                found(None, now)
                return
            question = self._questions[target] = _Question(asker, now + ASK_S)
            self._ask(target, asker, now)
        question.waiting.append(found)
        self._waiting += 1

    def hear(self, pkt: Packet, now: float) -> None:
        """Learn from an ARP or ND packet on the link who has which address."""
        mac = pkt.eth.src
        if mac == self._mac or address.is_multicast_mac(mac):
            return
        if pkt.arp is not None:
            if pkt.arp.sha == mac:
                self._learn(pkt.arp.spa, mac, now)
            return
        net, message = pkt.ipv6, pkt.nd
        if net is None or message is None or net.hop_limit != _HOP_LIMIT or message.code or not pkt.verify():
            return
        if isinstance(message, nd.NeighborAdvert):
            self._learn(message.target, mac, now)
        elif isinstance(message, nd.NeighborSolicit):
            self._learn(net.src, mac, now)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return min((question.due for question in self._questions.values()), default=None)

    def wake(self, now: float) -> None:
        """Ask again those that have not answered, and give up those that were asked three times."""
        for target, question in list(self._questions.items()):
            if now < question.due:
                continue
            if question.asked < ASKED_MOST:
                question.asked, question.due = question.asked + 1, now + ASK_S
                self._ask(target, question.asker, now)
                continue
            del self._questions[target]
            self._answer(question, None, now)

    def _learn(self, octets: bytes, mac: bytes, now: float) -> None:
        if not is_single_host(octets):
            return
        self._known[octets] = mac, now
        self._known.move_to_end(octets)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        if (question := self._questions.pop(octets, None)) is not None:
            self._answer(question, mac, now)

    def _answer(self, question: _Question, mac: bytes | None, now: float) -> None:
        self._waiting -= len(question.waiting)
        for found in question.waiting:
            found(mac, now)

    def _ask(self, target: bytes, asker: bytes, now: float) -> None:
        if len(target) == 4:
            frame = build.arp(
                src_mac=self._mac, dst_mac=address.BROADCAST, sha=self._mac, spa=asker, tpa=target
            )
        else:
            group = address.solicited_node(target)
            frame = build.neighbor_solicit(
                src_mac=self._mac,
                dst_mac=address.multicast_mac(group),
                src=address.link_local(self._mac),
                dst=group,
                target=target,
            )
        self._send(frame, now)
