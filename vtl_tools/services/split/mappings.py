"""The table of mappings and peers: who may send to whom, for how long, and who gives way when it is full."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from vtl_tools.common.socks import Reason
from vtl_tools.services.split.arena import sender_of
from vtl_tools.services.split.destinations import DNS_PORT, Destinations
from vtl_tools.services.split.mapping import DatagramMapping, EchoMapping, MappingPeer

IDLE_S: Final = 300.0
"""Seconds until an unused mapping ends (RFC 4787 REQ-5)."""
BRIEF_S: Final = 20.0
"""The same for one that has served for DNS only (RFC 4787 REQ-5 a), or for echoes."""
MAPPINGS_MAX: Final = 4096
PEERS_MAX: Final = 16_384
"""Peers of all mappings together."""
_EXPIRED_MAX: Final = 64
"""Mappings that end in one turn."""
_DNS_CHECK_S: Final = 2.0
"""Seconds after which the address of the host's DNS server is looked up again."""
_TOUCH_S: Final = 1.0
"""Resolution of the order of use."""


class MappingTable:
    """Mappings by the guest's endpoint, peers by both ends.

    close: called with each mapping that ends. most: mappings. When there is no room, the mapping, or the
    peer, that was unused for longest ends.
    """

    def __init__(
        self,
        destinations: Destinations,
        close: Callable[[DatagramMapping], object],
        most: int = MAPPINGS_MAX,
    ) -> None:
        self._destinations, self._on_close, self._most = destinations, close, most
        self._lasting: OrderedDict[bytes, DatagramMapping] = OrderedDict()
        self._brief: OrderedDict[bytes, DatagramMapping] = OrderedDict()
        self._peers: OrderedDict[bytes, MappingPeer] = OrderedDict()
        self._version: int | None = None

    def __len__(self) -> int:
        return len(self._lasting) + len(self._brief)

    def find(
        self,
        key: bytes,
        kind: type[DatagramMapping],
        parties: bytes,
        now: float,
        register: Callable[[DatagramMapping], object],
    ) -> MappingPeer | Reason:
        """Return the peer that a datagram of the guest goes to, or why there is none.

        key: of the peer. parties: addresses and ports, as in quick.Headers. register: called with a mapping
        that is new. Raises OSError: PermissionError where the host allows no such socket.
        """
        peer, version = self._peers.get(key), self._version
        if version is None:
            version = self._version = self._destinations.version
        if peer is not None and peer.version == version and now < peer.check_at:
            self._peers.move_to_end(key)
            self.touch(peer.mapping, now)
            return peer
        size = (len(parties) - 4) // 2
        dst, dport = parties[size : 2 * size], int.from_bytes(parties[-2:], "big")
        address = self._destinations.find(dst, dport)
        if peer is not None and peer.address != address:
            self._forget(key, peer)
            peer = None
        if isinstance(address, Reason):
            return address
        if peer is None:
            mapping = self._mapping(kind, key, parties, len(address) > 2, now, register)
            peer = MappingPeer(mapping, address, sender_of(address[0], address[1]), dst, dport)
            peer.is_router = self._destinations.is_router(dst)
            if len(self._peers) >= PEERS_MAX:
                self._forget(*next(iter(self._peers.items())))
            self._peers[key] = peer
            mapping.add(key, peer)
        peer.version = version
        peer.check_at = now + _DNS_CHECK_S if dport == DNS_PORT else float("inf")
        self.touch(peer.mapping, now)
        return peer

    def look_again(self) -> None:
        """Have the next find() see what has changed at the host: a system call, so one for each batch."""
        self._version = None

    def _mapping(
        self,
        kind: type[DatagramMapping],
        key: bytes,
        parties: bytes,
        ipv6: bool,
        now: float,
        register: Callable[[DatagramMapping], object],
    ) -> DatagramMapping:
        size, port, dport = (len(parties) - 4) // 2, parties[-4:-2], parties[-2:]
        own = kind.__name__.encode() + key[:12] + parties[:size] + port + bytes((ipv6,))
        is_brief = int.from_bytes(dport, "big") == DNS_PORT or kind is EchoMapping
        mapping = self._lasting.get(own) or self._brief.get(own)
        if mapping is None:
            if len(self) >= self._most:
                self.close(next(iter((self._brief or self._lasting).values())))
            mapping = kind(own, key[:12], parties[:size], int.from_bytes(port, "big"), ipv6, now)
            register(mapping)
            (self._brief if is_brief else self._lasting)[own] = mapping
        elif not is_brief and own in self._brief:
            self._lasting[own] = self._brief.pop(own)
        return mapping

    def touch(self, mapping: DatagramMapping, now: float) -> None:
        """Note that a mapping is in use."""
        if now - mapping.used_at >= _TOUCH_S:
            mapping.used_at = now
            key = mapping.key
            (self._brief if key in self._brief else self._lasting).move_to_end(key)

    def _forget(self, key: bytes, peer: MappingPeer) -> None:
        del self._peers[key]
        peer.mapping.remove(key, peer)

    def close(self, mapping: DatagramMapping) -> None:
        """End a mapping."""
        for key in mapping.keys:
            del self._peers[key]
        self._brief.pop(mapping.key, None)
        self._lasting.pop(mapping.key, None)
        self._on_close(mapping)

    def close_all(self) -> None:
        """End all mappings."""
        for mapping in (*self._brief.values(), *self._lasting.values()):
            self.close(mapping)

    def deadline(self) -> float | None:
        """Return when the first mapping ends, or None."""
        times = [
            next(iter(each.values())).used_at + after
            for each, after in ((self._brief, BRIEF_S), (self._lasting, IDLE_S))
            if each
        ]
        return min(times, default=None)

    def expire(self, now: float) -> None:
        """End mappings that were unused for long: a bounded part of them."""
        for each, after in ((self._brief, BRIEF_S), (self._lasting, IDLE_S)):
            for _ in range(_EXPIRED_MAX):
                if not each or (oldest := next(iter(each.values()))).used_at + after > now:
                    break
                self.close(oldest)
