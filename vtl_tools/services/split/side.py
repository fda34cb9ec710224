"""One of the two links of vtl-split with an uplink: which frames are ours, and who gets them."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip, quick
from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.active import ActiveConnector, ActiveEndpoints, ActiveStream
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.icmp_errors import read_error
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.wire import Path, Segment, is_intact, parse

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_DST, _SRC = slice(VNET, VNET + 6), slice(VNET + 6, VNET + 12)
_PROTOCOL4: Final = quick.L3 + 9
_NEXT_HEADER6: Final = quick.L3 + 6
_DIRECT: Final = frozenset((ip.UDP, ip.ESP))
"""Protocols that pass without a look at the rest of the packet."""
_SIGNED: Final = frozenset((19, 29))
"""Options of segments that only their sender can make: TCP MD5 (RFC 2385), TCP-AO (RFC 5925)."""
_STATIONS_MAX: Final = 4096


class Stations:
    """The Ethernet addresses behind the first link. A full table loses the address that was learnt first."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, None] = OrderedDict()

    def __contains__(self, mac: bytes) -> bool:
        return mac in self._known

    def learn(self, mac: bytes) -> None:
        """Take a sender's address."""
        if mac not in self._known and len(mac) == 6 and not mac[0] & 1:
            self._known[mac] = None
            if len(self._known) > _STATIONS_MAX:
                self._known.popitem(last=False)


class SplitSide:
    """relay: of the connections that come in at this link. active: of those that leave by it.

    Each connection is in the relay of one side, and in the active endpoints of the other. faces_guest: this
    is the first link. stations: of the first link, for both sides. other: the other side; set by the owner.
    takes: whether connections are taken that begin. passes_old: whether segments of no connection here pass.
    """

    other: "SplitSide"

    def __init__(
        self,
        send: Callable[[Sequence[Pieces], float], object],
        secret: bytes,
        *,
        faces_guest: bool,
        stations: Stations,
        drops: Counter[str],
        config: Config,
        limits: RelayLimits,
        early_ack: bool,
    ) -> None:
        self._faces_guest, self._stations, self._drops = faces_guest, stations, drops
        self.takes, self.passes_old = True, False
        self._now = 0.0
        self.relay = Relay(
            self._dial,
            secret,
            config=config,
            limits=limits,
            send=send,
            drops=drops,
            has_more=lambda: self.other.active.has_more,
            early_ack=early_ack,
        )
        self.active = ActiveEndpoints(
            send,
            secret,
            config=config,
            drops=drops,
            is_full=lambda: self.other.relay.budget.is_full,
        )

    def take(self, frame: memoryview, now: float) -> bool:
        """Take a frame; False: it passes to the other link."""
        kind = frame[quick.KIND : quick.L3]
        if kind != _IPV4 and kind != _IPV6:
            self._learn(frame)
            return False  # also a VLAN tag: what is below it passes whole
        try:
            segment = parse(frame)
            if segment is not None:
                return self._take_segment(segment, frame, now)
            return self._take_other(frame, kind == _IPV4, now)
        except Malformed:
            self._drops["malformed"] += 1
            return True

    def _take_segment(self, segment: Segment, frame: memoryview, now: float) -> bool:
        if segment.flags & (SYN | ACK) == SYN:  # both ends may have sent one: a simultaneous open
            self.other.relay.take_waiting(now)
        if self.active.on_frame(segment, frame, now):
            return True
        relay, key = self.relay, segment.flow
        flow = relay.flows.get(key) if segment.flags & SYN else relay.find(key, now)
        if flow is None:
            self._learn(frame)
            if self._is_elsewhere(frame) or is_signed(frame) or self._is_others(segment):
                return False
        elif self._faces_guest and frame[_DST] != flow.endpoint.path.local_mac:
            self._follow(flow, frame)
        self._now = now  # for _dial(), which the relay calls for a SYN
        self.relay.on_segment(segment, frame, now)
        return True

    def _is_others(self, segment: Segment) -> bool:
        """Tell whether a segment is of a connection that began while we took none."""
        is_opening = segment.flags & (SYN | ACK | RST | FIN) == SYN
        return self.passes_old and not (self.takes and is_opening)

    def _follow(self, flow: RelayFlow, frame: memoryview) -> None:
        """Follow the guest, whose packets to this address go by another router now."""
        assert isinstance(flow.stream, ActiveStream)
        router = bytes(frame[_DST])
        flow.endpoint.readdress(local_mac=router)
        flow.stream.endpoint.readdress(remote_mac=router)

    def _learn(self, frame: memoryview) -> None:
        if self._faces_guest:
            self._stations.learn(bytes(frame[_SRC]))

    def _is_elsewhere(self, frame: memoryview) -> bool:
        """Tell whether a frame is between two others, and here since a switch has flooded it.

        A frame from the network is for a station behind the first link. A frame from there is for another.
        """
        return (bytes(frame[_DST]) in self._stations) == self._faces_guest

    def _take_other(self, frame: memoryview, is4: bool, now: float) -> bool:
        """Take an IP packet if it is a part of a segment, or an error about one."""
        self._learn(frame)
        if frame[_PROTOCOL4 if is4 else _NEXT_HEADER6] in _DIRECT:
            return False
        net = Packet.at(frame).ip
        assert net is not None
        if net.protocol == ip.TCP:
            if self._is_elsewhere(frame):
                return False
            self._drops["fragment"] += 1
            return True
        if net.protocol != (ip.ICMP if is4 else ip.ICMPV6):
            return False
        error = read_error(frame)
        if error is None or self._is_elsewhere(frame):
            return False
        if not frame[0] & 3 and not is_intact(frame):
            self._drops["checksum"] += 1
        elif not (self.active.on_error(error, now) or self.relay.on_error(error, now)):
            self._drops["icmp-no-connection"] += 1
        return True

    def _dial(self, path: Path) -> ActiveConnector | Reason:
        """Connect on the other link for the sender of a SYN, with the SYN's time to live and DSCP."""
        if path.remote_mac[0] & 1:  # nobody can send from there
            return Reason.PROHIBITED
        net = Packet.at(memoryview(self.relay.syn)).ip
        assert net is not None
        far = self.other.active
        return far.connector(turned(path), self._now, replace(far.config, ttl=net.ttl, dscp=net.dscp))

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each connection that came in here, and of its far half."""
        listed = self.relay.list_flows(now)
        for told, flow in zip(listed, self.relay.flows.values(), strict=False):
            assert isinstance(flow.stream, ActiveStream)
            told["far"] = flow.stream.status()
        return listed

    def status(self, now: float) -> dict[str, object]:
        """Return the numbers of the connections that came in here."""
        carried = self.relay.status(now)
        connections, far = carried.pop("connections"), self.other.active.status()
        return {"connections": connections, "carried": carried, "far": far}


def is_signed(frame: memoryview) -> bool:
    """Tell whether a segment has a signature, so that nobody can stand between its ends."""
    header = Packet.at(frame).tcp
    assert header is not None
    options = walk_options(frame, header.off + header.SIZE, header.payload_off)
    return any(kind in _SIGNED for kind, _, _ in options)


def turned(path: Path) -> Path:
    """Return the path on the other link: we speak for the client there, and not for the server."""
    return Path(path.remote_mac, path.local_mac, path.remote, path.local, path.remote_port, path.local_port)
