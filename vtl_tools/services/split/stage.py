"""The stage of vtl-split without an uplink: the guest's whole network, through sockets of the host."""

import errno
import logging
import os
from collections.abc import Sequence
from functools import partial

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import MTU_MIN, GuestAddresses
from vtl_tools.common.guest_net.dhcp_wire import SERVER_PORT
from vtl_tools.common.guest_net.guest_network import MTU_MAX, GuestNetwork
from vtl_tools.common.model.fragments import FragmentTable, ReassembledPacket
from vtl_tools.common.packet import derive, ip, quick
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.fragment import fragments
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.split.connector import SplitConnector
from vtl_tools.services.split.datagrams import Datagrams
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.forward import Forward
from vtl_tools.services.split.forwarding import Forwarding
from vtl_tools.services.split.mappings import MAPPINGS_MAX
from vtl_tools.services.split.tuning import Tuning

log = logging.getLogger(__name__)


class SplitBySockets(Stage):
    """One port, the guest. Each TCP connection of it ends here, and continues from a socket of the host.

    destinations: where the guest may go. tuning: of the sockets. early_ack: see Relay. mappings: sockets for
    datagrams at most. forwards: ports of the host that lead to the guest. Raises VTLError.
    """

    def __init__(
        self,
        destinations: Destinations,
        tuning: Tuning,
        *,
        network: GuestAddresses,
        dhcp: bool = True,
        early_ack: bool = False,
        mappings: int = MAPPINGS_MAX,
        forwards: Sequence[Forward] = (),
        limits: RelayLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(ports=1)
        self._destinations, self._tuning, self._network = destinations, tuning, network
        poller = Poller()
        self.relay = Relay(
            self._connect,
            os.urandom(32),
            limits=limits,
            send=partial(self.send, 0),
            drops=self.drops,
            on_non_tcp=self._on_non_tcp,
            on_end=self._on_end,
            poller=poller,
            has_more=lambda: self.datagrams.has_more or self.forwarding.has_more,
            early_ack=early_ack,
        )
        self.datagrams = Datagrams(
            destinations,
            network,
            poller,
            send=partial(self.send, 0),
            drop=self.relay.drop_frame,
            on_no_ping=self._on_no_ping,
            most=mappings,
        )
        self._fragments = FragmentTable()
        self._ping = True
        self.guest_network = GuestNetwork(
            network,
            dhcp=dhcp,
            on_dns=lambda _: False,  # one to a group; the others are datagrams like any
            send=self._send_frame,
            drop=self.relay.drop_frame,
        )
        self.forwarding = Forwarding(
            forwards,
            network,
            destinations,
            poller,
            send=partial(self.send, 0),
            limits=limits,
            drops=self.drops,
            is_taken=self.relay.find,
        )
        self.datagrams.forwarded = self.forwarding.datagrams
        self.sources = [self.relay]

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that the link carries, and tell the guest its MTU."""
        self.relay.on_mtu(port, octets)
        self.forwarding.connections.active.on_mtu(octets)
        self.guest_network.on_mtu(octets)
        self.datagrams.mtu = self.forwarding.datagrams.mtu = min(max(octets, MTU_MIN), MTU_MAX)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames."""
        if self.forwarding.is_used:
            self.forwarding.on_batch(batch, self.relay, self._on_non_tcp, now)
        else:
            self.relay.on_batch(port, batch, now)
        self.datagrams.flush(now)

    def _on_non_tcp(self, frame: memoryview, now: float) -> None:
        headers = quick.read(frame)
        if headers is not None and headers[1] == ip.UDP:
            src, dst, _, dport = quick.split(headers[2])
            is_unicast = is_single_host(src) and is_single_host(dst) and not frame[VNET] & 1
            if is_unicast and (dport != SERVER_PORT or len(dst) != 4):
                self.datagrams.on_udp(frame, headers, now)
                return
        try:
            reason = self._on_other(Packet.at(frame), frame, now)
        except Malformed:
            reason = "malformed"
        if reason:
            self.relay.drop_frame(frame, reason, now)

    def _on_other(self, pkt: Packet, frame: memoryview, now: float) -> str:
        """Take a packet that is no ordinary datagram; return why it is dropped, or ""."""
        net = pkt.ip
        is_unicast = net is not None and is_single_host(net.src) and is_single_host(net.dst)
        if net is None or not is_unicast or pkt.l3_off != quick.L3 or frame[VNET] & 1 or pkt.nd is not None:
            self.forwarding.hear(pkt, now)
            self.guest_network.on_frame(frame, now)
            return ""
        if net.is_routed or net.has_source_route:
            return "source-route"
        if net.is_fragment:
            found = self._fragments.add(pkt, now)
            if not isinstance(found, ReassembledPacket):
                return found or ""
            return self._on_whole(Packet.at(found.packet), now, whole=False)
        return self._on_whole(pkt, now)

    def _on_whole(self, pkt: Packet, now: float, *, whole: bool = True) -> str:
        net, message = pkt.ip, pkt.icmp
        assert net is not None
        if message is not None and self._network.is_ours(net.dst):
            answer = derive.echo_reply(pkt) if pkt.verify() else None
            if answer is None:
                return "icmp"
            for frame in fragments(answer, self.datagrams.mtu, message.rest):
                self._send_frame(frame, now)
            return ""
        return self.datagrams.on_packet(pkt, now, whole=whole)

    def _on_no_ping(self) -> None:
        if self._ping:
            self._ping = False
            log.warning(
                "the host allows this user no ping socket, so the guest cannot ping; "
                "see net.ipv4.ping_group_range in icmp(7)"
            )

    def _send_frame(self, frame: bytes | bytearray, now: float) -> None:
        self.send(0, [(bytes(frame),)], now)

    def _connect(self, path: Path) -> Connector | Reason:
        """Return the connector for a path."""
        found = self._destinations.find(path.local, path.local_port)
        if isinstance(found, Reason):
            return found
        is_open = partial(self._destinations.is_still, path.local, path.local_port, found)
        try:
            return SplitConnector(found, self._tuning, is_open)
        except OSError as e:
            if e.errno == errno.EAFNOSUPPORT:  # a host without IPv6
                return Reason.NET_UNREACHABLE
            raise

    def _on_end(self, flow: RelayFlow, now: float) -> None:
        self._tuning.release(flow.stream)

    # --- time

    def settle(self, now: float) -> None:
        """Carry what can be carried."""
        self.relay.settle(now)
        self.datagrams.settle(now)
        self.forwarding.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = (
            self.relay.deadline(),
            self.guest_network.deadline(),
            self.datagrams.deadline(),
            self.forwarding.deadline(),
            self._fragments.deadline(),
        )
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self.relay.wake(now)
        self.guest_network.wake(now)
        self.datagrams.wake(now)
        self.forwarding.wake(now)
        self._fragments.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset the guest's connections."""
        self.relay.on_stop(now)
        self.forwarding.on_stop(now)

    # --- what --json prints

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each TCP connection."""
        return self.relay.list_flows(now)

    def status(self, now: float) -> dict[str, object]:
        """Return the settings, the connections and the counters."""
        carried = self.relay.status(now)
        split: dict[str, object] = {
            "congestion": self._tuning.congestion,
            "enlarged": self._tuning.enlarged,
            "ping": self._ping,
        }
        connections = carried.pop("connections")
        return {
            "split": split,
            "connections": connections,
            "carried": carried,
            "datagrams": self.datagrams.status(),
            **self.forwarding.status(),
        }
