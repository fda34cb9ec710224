"""Vortex: cooperative selective wormholing (paper section 3.6), in one stage beside the volunteer's stack.

Traffic to unused ports of the volunteer goes to a backend as rewritten Ethernet frames. The backend's answers
come back as the volunteer's. The attacker sees one host. The backend sees the attacker's true address and
port, and neither address nor Ethernet address of the volunteer. A port that a process uses is never touched.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.host import privilege
from vtl_tools.common.model.fragments import FragmentTable, ReassembledPacket
from vtl_tools.common.packet import ip, offload, tcp, vnet
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.stage import Stage
from vtl_tools.services.vortex.backend_link import GATEWAY_MAC, BackendLink
from vtl_tools.services.vortex.disguise import Disguise
from vtl_tools.services.vortex.flows import FlowKey, Flows, WormholeFlow
from vtl_tools.services.vortex.limits import Allowance, Limits, Quota, Sources
from vtl_tools.services.vortex.ports import NAMES, Port, PortUse
from vtl_tools.services.vortex.translate import flow_key, quoted, to_backend, to_outside

BACKEND, OUTSIDE = 0, 1
LOOK_EVERY_S: Final = 1.0
"""How often closed sockets and old flows are looked for. Ports that become used are told at once."""
TAKEN_MAX: Final = 16
TAKE_EVERY_S: Final = 0.02
"""Ports that are taken at once, and how soon the next ones are: one that becomes used must not wait long."""
AFTER_USE_S: Final = 60.0
"""How long after the last use of a port late segments may come for it, as long as TIME-WAIT of Linux."""


class VolunteerHost(Protocol):
    """The volunteer's own stack, as far as the client asks it and silences it."""

    def is_own(self, octets: bytes) -> bool:
        """Return whether an IP address is the volunteer's."""
        ...

    def sockets(self) -> tuple[set[Port], bool]:
        """Return the ports that sockets use now, and whether a socket is closing."""
        ...

    def has_closed(self) -> bool:
        """Return whether a socket may have been closed since the last call."""
        ...

    def has_receiver(self, remote: bytes, remote_port: int, local: bytes, local_port: int) -> bool:
        """Return whether a socket of UDP would receive a datagram between these addresses."""
        ...

    def moved(self) -> bool:
        """Return whether addresses changed since the last call; then `sources` have the new networks."""
        ...

    def give_back(self, ports: Iterable[Port]) -> None:
        """Let the stack refuse at these ports again, and hear nothing of them."""
        ...

    def take(self, ports: Iterable[Port]) -> None:
        """Silence the stack for ports that are unused again."""
        ...

    def apply(self) -> None:
        """Silence the stack for all ports that are wormholed."""
        ...

    def restore(self) -> None:
        """Let the stack answer as without us."""
        ...


class VortexClient(Stage):
    """Port 0 leads to the backend, port 1 is the volunteer's interface, beside the stack. echo: of ICMP."""

    inline = False

    def __init__(
        self, ports: PortUse, link: BackendLink, host: VolunteerHost, disguise: Disguise, sources: Sources,
        limits: Limits, *, echo: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.capabilities = frozenset({privilege.NET_ADMIN})
        self.ports, self.link, self.host, self.disguise, self.echo = ports, link, host, disguise, echo
        self.fragments = FragmentTable(), FragmentTable()
        self.flows, self.allowed, self.limits = Flows(), sources, limits
        self.allowances = [Allowance(limits.rate_bps) for _ in range(2)]
        self.quota = Quota(limits.quota)
        self.is_paused = False
        self.given_back = 0
        self._due = 0.0
        self._stale = True
        self._lifted: list[Port] = []
        self._freed: dict[int, float] = {}
        self._picked = Batch()

    # --- frames

    def on_mtu(self, port: int, octets: int) -> None:
        """Note what the volunteer's own MSS follows from."""
        if port == OUTSIDE:
            self.disguise.traits.mtu = octets

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Rewrite frames in place and send those that may pass; the others are counted by reason."""
        kept = []
        for i, frame in enumerate(batch):
            try:
                if not offload.is_plain(frame):
                    offload.bind(frame)  # no checksum is written over what was judged
                reason = self._on_packet(port, Packet.at(frame), now)
            except Malformed:
                reason = "malformed"
            if not reason:
                kept.append(i)
            elif reason != "done":
                self.drops[reason] += 1
        if kept:
            self.out[1 - port](self._picked.pick(batch, kept), now)

    def _on_packet(self, port: int, pkt: Packet, now: float) -> str:
        """Rewrite a packet. Return why it is not sent; "" if it is."""
        net = pkt.ip
        if pkt.ethertype != pkt.eth.type:
            return "other"
        if port == BACKEND and self._is_of_link(pkt, now):
            return "done"
        if net is None or pkt.nd is not None or net.is_routed:
            return "other"
        if reason := self._is_wrong_end(port, pkt, net):
            return reason
        if net.is_fragment:
            return self._on_fragment(port, pkt, now)
        return self._pass_on(port, pkt, (pkt,), now)

    def _on_fragment(self, port: int, pkt: Packet, now: float) -> str:
        """Hold a fragment until its packet is whole and can be judged; then send all, as they came."""
        found = self.fragments[port].add(pkt, now)
        if not isinstance(found, ReassembledPacket):
            return found or "done"
        parts = [Packet.at(bytearray(frame)) for frame in found.frames]
        reason = self._pass_on(port, Packet.at(found.packet), parts, now)
        if not reason:
            self.send(1 - port, [(bytes(part.buf),) for part in parts], now)
        return reason or "done"

    def _pass_on(self, port: int, pkt: Packet, parts: Sequence[Packet], now: float) -> str:
        """Judge a packet, and rewrite the frames that it consists of. Return why they are not sent."""
        octets = sum(map(_octets, parts))
        flow = self._judge_inward(pkt, now) if port == OUTSIDE else self._judge_outward(pkt, octets)
        if isinstance(flow, str):
            return flow
        if reason := self._exceeds(port, octets, now):
            return reason
        if port == BACKEND:
            flow.frames_out += len(parts)
            flow.octets_out += octets
            for part in parts:
                self._to_outside(part, flow)
            return ""
        self.flows.touch(flow, now)
        flow.hop_mac = pkt.eth.src
        flow.frames_in += len(parts)
        flow.octets_in += octets
        waiting = [self._to_backend(part, flow, now) for part in parts]
        return "" if self.link.mac else self._wait(waiting)

    def _is_wrong_end(self, port: int, pkt: Packet, net: IPv4 | IPv6) -> str:
        """Return why a packet is of no wormhole, by its addresses; "" if it may be of one."""
        if self.is_paused:
            return "paused"
        if port == BACKEND:
            return "" if net.src == self.link.addresses[len(net.src)] else "not-an-answer"
        if (pkt.eth.src[0] | pkt.eth.dst[0]) & 1:  # answers would go to a group, or come from one
            return "other"
        if not self.host.is_own(net.dst) or self.host.is_own(net.src):
            return "not-for-host"
        return "" if self.allowed.allows(net.src) else "source"

    # --- inward: the destination becomes the backend

    def _judge_inward(self, pkt: Packet, now: float) -> WormholeFlow | str:
        """Return the flow of a packet from outside, opened if need be; or why it has none."""
        net, key = pkt.ip, self._key(pkt, from_outside=True)
        if net is None or key is None:
            return "other"
        if key[0] in NAMES and not self.ports.is_open((key[0], key[3])):
            return "in-use"
        flow = self.flows.get(key)
        if flow is not None:
            return flow if flow.local == net.dst else "collision"
        segment = pkt.tcp
        if quoted(pkt) is not None or (segment is not None and not self._may_open(segment, key[3], now)):
            return "no-flow"
        if key[0] == ip.UDP:  # no event tells of a port that connect() bound
            self._stale = True
            if self.host.has_receiver(*key[1:3], net.dst, key[3]):
                self.on_used((ip.UDP, key[3]), now)
                return "in-use"
        return self.flows.open(key, net.dst, pkt.eth.dst, pkt.eth.src, now) or "flows-of-source"

    def _may_open(self, segment: TCP, port: int, now: float) -> bool:
        """Return whether a segment may open a flow: one that a closed port answers, and no answer itself.

        A SYN-ACK may be for a connection that the volunteer opens at this moment. All but a SYN may be of one
        that the volunteer closed lately.
        """
        kind = segment.flags & (tcp.SYN | tcp.ACK | tcp.RST)
        if now < self._freed.get(port, -AFTER_USE_S) + AFTER_USE_S:
            return kind == tcp.SYN
        return not kind & tcp.RST and kind != tcp.SYN | tcp.ACK

    def _to_backend(self, pkt: Packet, flow: WormholeFlow, now: float) -> Packet:
        segment, net = pkt.tcp, pkt.ip
        assert net is not None
        if segment is not None and self.disguise.undo(segment, flow):
            self.flows.prove(flow, now)
        is_tcp = flow.key[0] == ip.TCP and flow.is_open
        to_backend(pkt, self.link.addresses[len(net.dst)], flow.offset if is_tcp else 0)
        pkt.eth.src, pkt.eth.dst = GATEWAY_MAC, self.link.mac or GATEWAY_MAC
        return pkt

    def _wait(self, parts: Sequence[Packet]) -> str:
        """Keep frames until the backend's Ethernet address is known."""
        kept = [self.link.wait(bytes(part.buf)) for part in parts]
        return "done" if all(kept) else "backend-unknown"

    # --- outward: the source becomes the volunteer

    def _is_of_link(self, pkt: Packet, now: float) -> bool:
        """Learn the backend's Ethernet address, and answer its request for ours. Return whether it is one."""
        if (mac := self.link.speaker(pkt)) and (ready := self.link.learn(mac)):
            self.send(BACKEND, ready, now)
        if (answer := self.link.answer(pkt)) is not None:
            self.send(BACKEND, [(bytes(answer),)], now)
        return answer is not None

    def _judge_outward(self, pkt: Packet, octets: int) -> WormholeFlow | str:
        """Return the flow that a packet of the backend answers, or why it may not be sent."""
        net, key, segment = pkt.ip, self._key(pkt, from_outside=False), pkt.tcp
        if net is None or key is None:
            return "not-an-answer"
        if segment is not None and segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN:
            return "opens-flow"
        flow = self.flows.get(key)
        if flow is None or self.host.is_own(net.dst):
            return "no-flow"
        if not flow.is_proven and flow.octets_out + octets > self.limits.amplification * flow.octets_in:
            return "amplification"
        return flow

    def _to_outside(self, pkt: Packet, flow: WormholeFlow) -> None:
        assert pkt.ip is not None
        pkt.eth.src, pkt.eth.dst = flow.own_mac, flow.hop_mac
        to_outside(pkt, flow.local)
        self.disguise.put_on(pkt, pkt.ip, flow)

    def _key(self, pkt: Packet, *, from_outside: bool) -> FlowKey | None:
        """Return the key of a packet's flow; None if it is of no kind that is wormholed."""
        key = flow_key(pkt, from_outside=from_outside)
        return key if key is not None and (self.echo or key[0] in NAMES) else None

    def _exceeds(self, port: int, octets: int, now: float) -> str:
        if not self.allowances[port].take(octets, now):
            return "rate"
        return "" if self.quota.take(octets, now) else "quota"

    # --- ports of the volunteer

    def on_used(self, port: Port, now: float) -> None:
        """Give a port back at once: a process uses it now, and no frame to it goes to the backend.

        The stack was never kept from it: what it refuses there passes again once settle() is through.
        """
        if not self.ports.use(port):
            return
        self.flows.end_of_port(*port, now)
        self.link.waiting.clear()
        self.given_back += 1
        self._stale = True  # the next look tells whether it still is
        self._lifted.append(port)

    def settle(self, now: float) -> None:
        """Lift the silence of the ports that were given back, all at once, and tell of them."""
        if not self._lifted:
            return
        lifted, self._lifted = self._lifted, []
        if not self.is_paused:
            self.host.give_back(lifted)
        for protocol, port in lifted:
            self.event("given-back", protocol=NAMES[protocol], port=port, cause=NAMES[protocol])

    def look(self, now: float) -> None:
        """Compare with the sockets that there are, and take the ports that are unused again."""
        used, is_closing = self.host.sockets()
        for port in used:
            self.on_used(port, now)
        unused = self.ports.free(used, TAKEN_MAX)
        is_more = len(unused) == TAKEN_MAX
        self._stale = is_closing or is_more
        if is_more:
            self._due = now + TAKE_EVERY_S
        self._freed.update((number, now) for protocol, number in unused if protocol == ip.TCP)
        if unused and not self.is_paused:
            self.settle(now)  # before its end is noted, the use is
            self.host.take(unused)

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Look for closed sockets, changed addresses, old flows, and the backend."""
        if now < self._due:
            return
        self._due = now + LOOK_EVERY_S
        if self.host.moved() and not self.is_paused:
            self.host.apply()
        closed = self.host.has_closed()
        if closed or self._stale:
            self.look(now)
        self.flows.expire(now)
        for table in self.fragments:
            table.wake(now)
        if asks := self.link.questions(now):
            self.send(BACKEND, asks, now)

    # --- verbs

    def pause(self, now: float) -> None:
        """Stop: the volunteer's stack answers as before."""
        if not self.is_paused:
            self.is_paused = True
            self.host.restore()
            self.flows.end_all(now)
            self.link.waiting.clear()
            self.event("paused")

    def resume(self, now: float) -> None:
        """Go on."""
        if self.is_paused:
            self.look(now)
            self.is_paused = False
            self.host.apply()
            self.event("resumed")

    def status(self, now: float) -> dict[str, object]:
        """Return counters, and the ports in use."""
        return {
            "vortex": {
                "paused": self.is_paused,
                "backend": self.link.mac.hex(":"),
                "flows": len(self.flows),
                "opened": self.flows.opened,
                "given_back": self.given_back,
                "in_use": _texts(sorted(self.ports.used)),
                "quota_octets": self.quota.octets,
                "quota_used_octets": self.quota.used,
            }
        }


def _octets(pkt: Packet) -> int:
    """Return the octets of a frame as they are sent: each segment of a super-segment has headers."""
    octets, inner = len(pkt.buf) - vnet.VNET, pkt.transport
    if pkt.buf[1] == vnet.GSO_NONE or not isinstance(inner, TCP | UDP):
        return octets
    data = len(inner.payload)
    size: int = vnet.HEADER.unpack_from(pkt.buf)[3]
    return octets + (octets - data) * (data // max(size, 1))


def _texts(ports: Iterable[Port]) -> list[str]:
    return [f"{NAMES[protocol]} {number}" for protocol, number in ports]


OnUsed = Callable[[Port, float], None]
