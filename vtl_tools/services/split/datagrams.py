"""UDP and ICMP echo of the guest, through sockets of the host: there, back, and the errors."""

import errno
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.packet import derive, icmp, quick, vnet
from vtl_tools.common.packet.fragment import fragments
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.quick import Headers
from vtl_tools.common.packet.supersegment import UDP_MAX_SEGMENTS
from vtl_tools.common.packet.view import U16
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.relay.connector import FAILED, READABLE
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.socks import ANSWER, Reason
from vtl_tools.common.tcp.wire import is_intact
from vtl_tools.services.split import socket_errors
from vtl_tools.services.split.arena import COUNT, DatagramArena, sender_of
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.forward_udp import ForwardedDatagrams
from vtl_tools.services.split.mapping import (
    SOL_UDP,
    DatagramMapping,
    EchoMapping,
    MappingPeer,
    Traits,
    UDPMapping,
    echo_request,
)
from vtl_tools.services.split.mappings import MappingTable
from vtl_tools.services.split.socket_errors import SocketError

_TURN: Final = 16
"""Sockets that are read in one turn, COUNT datagrams each, before frames are read again."""
_ERRORS_MAX: Final = 64
"""Errors of one socket that are read in one turn."""
_ERRORS_PER_S: Final = 1000
"""ICMP errors that the guest gets in a second."""
_SEGMENTS_MAX: Final = 64
"""Datagrams that one system call sends (UDP_MAX_SEGMENTS of Linux before 6.11)."""
_RUN_OCTETS_MAX: Final = 65_000
_UDP_SEGMENT = 103
_NOT_CUT: Final = (errno.EINVAL, errno.EIO, errno.EMSGSIZE)
"""Errors of a kernel, or a path, that cuts no large datagram into segments."""
_DONT_FRAGMENT: Final = 0x40
_PARTIES4: Final = 12
_TTL: Final = 64
"""Of datagrams that the guest sends to its router, and that go further all the same."""

_COUNTED: Final = (
    "datagrams_up", "datagrams_down", "octets_up", "octets_down", "errors", "unsent", "uninvited",
)  # fmt: skip


class _Run:
    """Datagrams to one peer, all of one size but the last, which one system call sends."""

    __slots__ = ("octets", "peer", "pieces", "size", "traits")

    def __init__(self, peer: MappingPeer, traits: Traits, piece: memoryview | bytes, size: int) -> None:
        self.peer, self.traits, self.pieces = peer, traits, [piece]
        self.size, self.octets = size, len(piece)


class Datagrams:
    """All mappings of one guest, with their sockets.

    send: puts frames on its link. drop: counts a frame that goes no further. on_no_ping: called when the host
    allows no ping socket. most: mappings.
    """

    def __init__(
        self,
        destinations: Destinations,
        network: GuestAddresses,
        poller: Poller,
        *,
        send: Callable[[Sequence[Pieces], float], object],
        drop: Callable[[memoryview, str, float], object],
        on_no_ping: Callable[[], object],
        most: int,
    ) -> None:
        self._destinations, self._network, self._poller = destinations, network, poller
        self._send, self._drop, self._on_no_ping = send, drop, on_no_ping
        self.table = MappingTable(destinations, self._close, most)
        self._runs: dict[bytes, _Run] = {}
        self._ready: dict[bytes, DatagramMapping] = {}
        self._arena = DatagramArena()
        self._errors = TokenBucket(_ERRORS_PER_S)
        self._number = 0
        self.mtu = network.mtu
        self.counts: Counter[str] = Counter()
        self.forwarded: ForwardedDatagrams | None = None
        """Takes the guest's answers to clients outside."""

    # --- from the guest

    def on_udp(self, frame: memoryview, headers: Headers, now: float) -> None:
        """Take an ordinary frame with a UDP datagram. It is borrowed until flush()."""
        parties, l4, data = headers[2], headers[7], headers[8]
        if len(parties) == _PARTIES4:
            whole = bool(frame[quick.L3 + 6] & _DONT_FRAGMENT)
            traits: Traits = (frame[quick.L3 + 8], frame[quick.L3 + 1], whole)
        else:
            traits = (frame[quick.L3 + 7], U16.unpack_from(frame, quick.L3)[0] >> 4 & 0xFF, True)
        if not frame[0] & 3 and not is_intact(frame):
            self._drop(frame, "checksum", now)
            return
        key = bytes(frame[VNET : VNET + 12]) + parties
        payload = frame[data : l4 + U16.unpack_from(frame, l4 + 4)[0]]
        self._take(UDPMapping, frame, key, parties, traits, payload, now)

    def on_packet(self, pkt: Packet, now: float, *, whole: bool = True) -> str:
        """Take a packet with a datagram or an echo request; return why it is dropped, or "".

        whole: it was not reassembled from fragments. It is borrowed until flush().
        """
        net, datagram, message = pkt.ip, pkt.udp, pkt.icmp
        if net is None or not pkt.verify():
            return "checksum"
        size = len(net.src)
        dont_fragment = whole and (size == 16 or bool(pkt.buf[net.off + 6] & _DONT_FRAGMENT))
        traits: Traits = (net.ttl, 0, dont_fragment)
        frame, macs = memoryview(pkt.buf), bytes(pkt.buf[VNET : VNET + 12])
        if datagram is not None:
            ports = datagram.sport.to_bytes(2, "big") + datagram.dport.to_bytes(2, "big")
            parties = net.src + net.dst + ports
            self._take(UDPMapping, frame, macs + parties, parties, traits, datagram.payload, now)
        elif message is not None and message.is_echo_request:
            number = message.identifier.to_bytes(2, "big")
            parties = net.src + net.dst + number + b"\0\0"
            octets = memoryview(echo_request(net.src, message.sequence, message.payload))
            self._take(EchoMapping, frame, macs + parties + b"echo", parties, traits, octets, now)
        else:
            return "icmp" if message is not None else "protocol"
        return ""

    def _take(
        self,
        kind: type[DatagramMapping],
        frame: memoryview,
        key: bytes,
        parties: bytes,
        traits: Traits,
        payload: memoryview,
        now: float,
    ) -> None:
        ttl = traits[0]
        size = vnet.HEADER.unpack_from(frame)[3] if frame[1] == vnet.GSO_UDP_L4 else 0
        if size and len(payload) > size * UDP_MAX_SEGMENTS:
            self._drop(frame, "malformed", now)
            return
        if self.forwarded is not None and kind is UDPMapping and self.forwarded.take(parties, payload, size):
            return
        try:
            peer = self.table.find(key, kind, parties, now, self._register)
        except OSError as e:
            if kind is EchoMapping and e.errno in (errno.EACCES, errno.EPERM):
                self._on_no_ping()
                peer = Reason.PROHIBITED
            elif e.errno == errno.EAFNOSUPPORT:
                peer = Reason.NET_UNREACHABLE
            else:
                self._drop(frame, "no-descriptor", now)
                return
        if isinstance(peer, Reason):
            self._refuse(frame, peer, now)
            return
        if peer.is_router:
            ttl = _TTL + 1
        if ttl <= 1:
            self._exceed(frame, now)
            return
        traits = (ttl - 1, *traits[1:])
        run = self._runs.get(key)
        if run is not None:
            if (
                run.traits == traits
                and not size
                and 0 < len(payload) <= run.size
                and run.octets == run.size * len(run.pieces)
                and run.octets + len(payload) <= _RUN_OCTETS_MAX
                and len(run.pieces) < _SEGMENTS_MAX
                and peer.mapping.segments
            ):
                run.pieces.append(payload)
                run.octets += len(payload)
                return
            del self._runs[key]
            self._send_run(run, now)
        self._runs[key] = _Run(peer, traits, payload, size or len(payload))

    def flush(self, now: float) -> None:
        """Send what was taken, so that its frames may become invalid."""
        self.table.look_again()
        if self._runs:
            runs, self._runs = self._runs, {}
            for run in runs.values():
                self._send_run(run, now)

    def _send_run(self, run: _Run, now: float) -> None:
        mapping, pieces = run.peer.mapping, run.pieces
        count = -(-run.octets // run.size) if run.size else 1
        self.counts["datagrams_up"] += count
        self.counts["octets_up"] += run.octets
        if count == 1:
            self._send_out(run, pieces, (), now)
            return
        cut = [(SOL_UDP, _UDP_SEGMENT, run.size.to_bytes(2, sys.byteorder))]
        if mapping.segments and self._send_out(run, pieces, cut, now):
            return
        mapping.segments = False
        if len(pieces) == 1:
            whole = pieces[0]
            pieces = [whole[at : at + run.size] for at in range(0, run.octets, run.size)]
        for piece in pieces:
            self._send_out(run, [piece], (), now)

    def _send_out(
        self,
        run: _Run,
        pieces: list[memoryview | bytes],
        cut: list[tuple[int, int, bytes]] | tuple[()],
        now: float,
    ) -> bool:
        """Send one datagram, or several that the kernel cuts; return False if it does not cut them."""
        peer, mapping = run.peer, run.peer.mapping
        code = 0
        for _ in range(2):  # the first call may report the error of an earlier datagram
            try:
                if run.traits != mapping.traits:
                    mapping.adopt(run.traits)
                mapping.sock.sendmsg(pieces, cut, 0, peer.address)
                return True
            except BlockingIOError:
                self.counts["unsent"] += len(pieces)
                return True
            except OSError as e:
                code = e.errno or errno.EIO
                if cut and code in _NOT_CUT:
                    return False
                self._report(mapping, now)
                if code == errno.EMSGSIZE:
                    return True  # which has just been reported
        self.counts["unsent"] += len(pieces)
        told = socket_errors.of_errno(code, mapping.ipv6)
        if told is not None:
            octets = b"".join(pieces)[: derive.ERROR4_MAX]
            self._tell(mapping, peer, SocketError(*told, None, ("", 0), octets), now)
        return True

    # --- refusals

    def _refuse(self, frame: memoryview, reason: Reason, now: float) -> None:
        """Tell the guest that a destination is closed to it."""
        self._drop(frame, str(reason), now)
        unreachable, ipv6 = ANSWER[reason], frame[quick.KIND] != 0x08
        kind = icmp.V6_UNREACHABLE if ipv6 else icmp.UNREACHABLE
        if unreachable is None:
            code = icmp.V6_PORT_UNREACHABLE if ipv6 else icmp.PORT_UNREACHABLE
        else:
            code = unreachable.v6 if ipv6 else unreachable.v4
        self._answer(Packet.at(frame), kind, code, 0, None, now)

    def _exceed(self, frame: memoryview, now: float) -> None:
        """Tell the guest that a packet went no further than its router."""
        self._drop(frame, "ttl", now)
        kind = icmp.V6_TIME_EXCEEDED if frame[quick.KIND] != 0x08 else icmp.TIME_EXCEEDED
        self._answer(Packet.at(frame), kind, 0, 0, self._router(frame[quick.KIND] != 0x08), now)

    def _router(self, ipv6: bool) -> bytes:
        return self._network.link_local if ipv6 else self._network.gateway

    def _answer(self, pkt: Packet, kind: int, code: int, rest: int, src: bytes | None, now: float) -> None:
        """Send the guest an ICMP error about its packet. src: None for the packet's destination."""
        net = pkt.ip
        assert net is not None
        if not self._errors.take(now):
            return
        error = derive.icmp_error(pkt, kind, code, src=src or net.dst, rest=rest)
        if error is not None:
            self.counts["errors"] += 1
            self._send([(bytes(error),)], now)

    # --- from the network

    def _register(self, mapping: DatagramMapping) -> None:
        self._poller.add(mapping.sock, mapping, self._on_event)

    def _close(self, mapping: DatagramMapping) -> None:
        self._ready.pop(mapping.key, None)
        self._poller.close(mapping.sock)

    def _on_event(self, mapping: DatagramMapping, events: int, now: float) -> None:
        if events & FAILED:
            mapping.failed = True
        if events & (READABLE | FAILED):
            self._ready[mapping.key] = mapping

    @property
    def has_more(self) -> bool:
        """Whether settle() has sockets to read."""
        return bool(self._ready)

    def settle(self, now: float) -> None:
        """Bring the guest what waits at sockets: a bounded part of it."""
        if not self._ready:
            return
        for key in list(self._ready)[:_TURN]:
            mapping = self._ready.pop(key)
            if mapping.failed:
                mapping.failed = self._report(mapping, now)
            if self._receive(mapping, now) or mapping.failed:
                self._ready[key] = mapping

    def _receive(self, mapping: DatagramMapping, now: float) -> bool:
        """Read a socket once; return whether more may wait there."""
        received = self._arena.receive(mapping.sock)
        frames: list[Pieces] = []
        datagrams = octets_down = 0
        for octets, sender, size in received:
            peer = mapping.peers.get(sender) or mapping.peer_of(sender)
            count = -(-len(octets) // size) if size else 1
            if peer is None:
                self.counts["uninvited"] += count
                continue
            datagrams += count
            octets_down += len(octets)
            whole = mapping.super_frame(peer, octets, size, self.mtu) if size else None
            if whole is not None:
                frames.append(whole)
            elif size:
                for at in range(0, len(octets), size):
                    self._add(frames, mapping, peer, octets[at : at + size])
            else:
                self._add(frames, mapping, peer, octets)
        if frames:
            self.table.touch(mapping, now)
            self.counts["datagrams_down"] += datagrams
            self.counts["octets_down"] += octets_down
            self._send(frames, now)
        return len(received) == COUNT

    def _add(
        self, frames: list[Pieces], mapping: DatagramMapping, peer: MappingPeer, octets: memoryview
    ) -> None:
        """Add the frames that bring the guest one datagram."""
        frame = mapping.frame(peer, octets, self.mtu)
        if len(frame) - quick.L3 <= self.mtu:
            frames.append((bytes(frame),))
        else:
            self._number += 1
            frames += [(each,) for each in fragments(frame, self.mtu, self._number)]

    def _report(self, mapping: DatagramMapping, now: float) -> bool:
        """Tell the guest the errors of a socket; return whether more may wait there."""
        for _ in range(_ERRORS_MAX):
            found = socket_errors.receive(mapping.sock)
            if found is None:
                return False
            try:
                peer = mapping.peer_of(sender_of(*found.peer))
            except OSError:
                continue
            if peer is not None:
                self._tell(mapping, peer, found, now)
        return True

    def _tell(self, mapping: DatagramMapping, peer: MappingPeer, error: SocketError, now: float) -> None:
        """Pass an error on. Those of this host come from the guest's router, so that none of its addresses is
        told; those of the destination from the address by which the guest knows it.
        """
        ipv6, offender = len(peer.local) == 16, error.offender
        if ipv6 != mapping.ipv6:
            error = error._replace(
                kind=icmp.V6_UNREACHABLE if ipv6 else icmp.UNREACHABLE,
                code=icmp.V6_PORT_UNREACHABLE if ipv6 else icmp.PORT_UNREACHABLE,
                rest=0,
            )
        if offender is None or len(offender) != len(peer.local):
            src = self._router(ipv6)
        elif offender == peer.sender[2:]:
            src = peer.local
        else:
            src = offender if self._destinations.is_open(offender, 0) else self._router(ipv6)
        sent = Packet.at(mapping.quote(peer, error.octets))
        self._answer(sent, error.kind, error.code, error.rest, src, now)

    # --- time

    def deadline(self) -> float | None:
        """Return when the first mapping ends; at once if sockets are left to be read."""
        return 0.0 if self._ready else self.table.deadline()

    def wake(self, now: float) -> None:
        """End the mappings that were unused for long."""
        self.table.expire(now)

    def status(self) -> dict[str, object]:
        """Return the number of mappings, and the counters."""
        return {"mappings": len(self.table), **{name: self.counts[name] for name in _COUNTED}}
