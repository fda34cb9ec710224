"""Packets in, decisions out. Reads no clock; `now` is in seconds, and only grows."""

from collections.abc import Callable, Iterator
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.segment_kind import SegmentKind
from vtl_tools.common.model.tcp_arrival import arrive
from vtl_tools.common.packet import ip, quick, tcp
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.quick import NO_OPTIONS, OTHER_OPTIONS, Headers
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rules.rule import OUT, STACKED, Direction, Verdict
from vtl_tools.services.fw import tcp_flow
from vtl_tools.services.fw.connections import Connections, denied
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.flow import (
    ANSWERED,
    ASSURED,
    BEGUN,
    Decision,
    Ends,
    Flow,
    Opening,
    Timeouts,
    flow_key,
    protocol_of,
)
from vtl_tools.services.fw.fragments import FragmentReassembler
from vtl_tools.services.fw.neighbours import NeighbourFilter
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.quoted import quoted_flow
from vtl_tools.services.fw.suspicious import suspicious

_HELD: Final = Decision(None, None, "fragment-held")
_TCP: Final = bytes((ip.TCP,))
_UDP: Final = bytes((ip.UDP,))
_OPENINGS_MAX: Final = 1024
_RECENT_MAX: Final = 2048
RECALLED_MAX: Final = 1 << 17
"""Connections of another firewall that nothing was heard of yet; the oldest give way."""
_SYN_OR_RST: Final = tcp.SYN | tcp.RST
_ESTABLISHED: Final = State.ESTABLISHED  # a quarter of the time of looking it up in the Enum


class Tracker(Connections):
    """A stateful firewall without its links: packets in, decisions out."""

    def __init__(
        self,
        policy: Policy,
        *,
        flows_max: int = 131_072,
        timeouts: Timeouts | None = None,
    ) -> None:
        super().__init__(policy, flows_max=flows_max, timeouts=timeouts)
        self.fragments = FragmentReassembler()
        self._neighbours = NeighbourFilter()
        self._openings: dict[Opening, Opening] = {}
        self._recent_out: dict[bytes, Flow] = {}
        self._recent_in: dict[bytes, Flow] = {}
        """TCP connections by the parties of their last segments; one that ended has no ends."""
        self._recalled: dict[bytes, tuple[Opening, float]] = {}
        """Connections of before that nothing was heard of yet, and until when they are known."""
        self.vm_mac: Callable[[], bytes | None] = lambda: None
        """Returns the VM's Ethernet address; None: a frame for any address may be for the VM."""
        self._recalled_until = 0.0
        self.recalled_max = RECALLED_MAX

    # --- packets

    def receive(self, frame: Buffer, direction: Direction, now: float) -> Decision:
        """Decide about a frame, which stays the caller's. Nothing is raised for foreign octets."""
        return self.decide(frame, quick.read(frame), direction, now)

    def decide(self, frame: Buffer, headers: Headers | None, direction: Direction, now: float) -> Decision:
        """Decide about a frame. headers: as quick.read() returns them for it."""
        if headers is not None and not self._closely:
            _, protocol, parties, seq, ack, flags, window, _, data, end, tsval, _ = headers
            if protocol == ip.UDP:
                return self._datagram(frame, parties, direction, now)
            if not flags & _SYN_OR_RST:
                recent = self._recent_out if direction is OUT else self._recent_in
                flow = recent.get(parties)
                if flow is None or type(ends := flow.ends) is not tuple:
                    flow, ends = self._look_up(parties, direction, recent)
                if flow is not None and ends is not None:
                    tx, rx = ends if direction is OUT else (ends[1], ends[0])
                    stamp = tsval if tx.timestamps and tsval != NO_OPTIONS else None
                    if stamp != OTHER_OPTIONS:
                        seen = arrive(tx, rx, seq, ack, flags, window, end - data, stamp)
                        if seen.taken:
                            if tx.state is _ESTABLISHED is rx.state and flow.use == ASSURED:
                                flow.until = now + self.timeouts.established
                                return flow.decision
                            return self._followed(flow, ends, seen, now)
                        # else judge() follows it again, to the same end, and decides what becomes of it
            elif not flags & tcp.RST:
                return self._syn(frame, headers, direction, now)
        try:
            return self.judge(Packet.at(frame), direction, now)
        except Malformed as err:
            return _malformed(err)

    def judge(self, pkt: Packet, direction: Direction, now: float) -> Decision:
        """Decide about a packet. Raises Malformed, and nothing else."""
        net = pkt.ip
        if net is not None:
            if refused := suspicious(net):
                return denied(refused)
            if net.is_fragment:
                return self._fragment(pkt, direction, now)
        fields = Fields.of(pkt, self._neighbours if direction is OUT else None)
        if direction is not OUT and self._is_elsewhere(fields):
            return denied("other-station")
        if fields.is_neighbour or not fields.src or fields.vlan == STACKED:
            return self._stateless(fields, direction, now)
        ports, initiator = b"\0\0\0\0", direction
        if fields.dport >= 0:
            ports = PORTS.pack(fields.sport, fields.dport)
        elif (message := pkt.icmp) is not None:
            if not message.is_echo:
                return self._related(pkt, fields, direction) or self._stateless(fields, direction, now)
            ports = PORTS.pack(message.identifier, message.identifier)
            if not message.is_echo_request:
                initiator = direction.other
        elif fields.protocol in (ip.ICMP, ip.ICMPV6):
            return self._stateless(fields, direction, now)  # of the other version of IP: nobody's
        key = flow_key(direction, fields.protocol, fields.src, fields.dst, ports, fields.vlan, initiator)
        flow = self._find(key)
        if flow is not None:
            decision = self._moved(flow, fields, direction) or self._further(flow, pkt.tcp, direction, now)
            if decision is not None:
                return decision
        if initiator is not direction:
            return self._stateless(fields, direction, now)
        return self._first(key, pkt.tcp, fields, direction, now)

    def lets_out(self, pkt: Packet) -> bool:
        """Say whether the rules let the VM send a packet that begins nothing. Raises Malformed."""
        return self.policy.judge(OUT, Fields.of(pkt, self._neighbours)).verdict is Verdict.ALLOW

    def _moved(self, flow: Flow, fields: Fields, direction: Direction) -> Decision | None:
        """Refuse a packet whose Ethernet addresses are not the first one's, if rules do not allow these."""
        _, *macs, _ = flow.opening
        if (
            direction is not flow.initiator
            or not self.policy.asks_macs
            or macs == [fields.src_mac, fields.dst_mac]
        ):
            return None
        verdict, rule = self.consult(direction, fields)
        return None if verdict is Verdict.ALLOW else Decision(verdict, rule, "rule")

    def _further(self, flow: Flow, segment: TCP | None, direction: Direction, now: float) -> Decision | None:
        """Decide about a packet of a known connection; None if it begins the next one with its addresses."""
        if segment is None:
            self._spoken(flow, direction, now)
            return flow.decision
        ends = self.flows.ends(flow)
        if tcp_flow.starts_anew(ends, segment.flags):
            self.end(flow)
            return None
        if refused := tcp_flow.refuse(ends, direction, flow.initiator, segment):
            return denied(refused, flow.decision.rule)
        seen = tcp_flow.follow(ends, direction, segment)
        if not seen.taken and direction is OUT and tcp_flow.is_guess(ends):
            # A stranger may have been the first to be heard of it; the VM knows its numbers.
            sure = tcp_flow.opened(segment, direction, join=True)
            if sure is not None and not segment.flags & tcp.SYN:
                flow.ends = sure
                return self._followed(flow, sure, SegmentKind.ACK, now)
        if not seen.taken:
            retries = self._retries
            if (anew := retries.answered(flow, segment, direction)) is not None:
                flow.ends = anew
                return self._followed(flow, anew, SegmentKind.SYN, now)
            challenged = retries.challenged(flow)
            if tcp_flow.may_pass(ends, direction, flow.initiator, segment, seen, challenged):
                retries.passed(flow, segment, direction)
                return flow.decision
        return self._followed(flow, ends, seen, now)

    def _look_up(
        self, parties: bytes, direction: Direction, recent: dict[bytes, Flow]
    ) -> tuple[Flow | None, Ends | None]:
        """Return a TCP connection that is known, and its ends; remember it among the recent ones."""
        flow = self.flows.get((parties if direction is OUT else quick.reverse(parties)) + _TCP)
        if flow is None:
            return None, None
        if len(recent) >= _RECENT_MAX:
            recent.clear()
        recent[parties] = flow
        return flow, self.flows.ends(flow)

    def _syn(self, frame: Buffer, headers: Headers, direction: Direction, now: float) -> Decision:
        """Decide about an ordinary segment with SYN."""
        _, _, parties, *_, l4, _, end, _, _ = headers
        key = (parties if direction is OUT else quick.reverse(parties)) + _TCP
        segment = TCP.at(frame, l4, end)
        flow = self.flows.get(key)
        if flow is not None and (decision := self._further(flow, segment, direction, now)) is not None:
            return decision
        return self._first(key, segment, Fields.plain(frame, ip.TCP, parties), direction, now)

    def _datagram(self, frame: Buffer, parties: bytes, direction: Direction, now: float) -> Decision:
        """Decide about an ordinary datagram."""
        key = (parties if direction is OUT else quick.reverse(parties)) + _UDP
        flow = self.flows.get(key)
        if flow is None:
            return self._first(key, None, Fields.plain(frame, ip.UDP, parties), direction, now)
        self._spoken(flow, direction, now)
        return flow.decision

    def _followed(self, flow: Flow, ends: Ends, seen: SegmentKind, now: float) -> Decision:
        if not seen.taken:
            return denied(f"tcp-{seen.text}", flow.decision.rule)
        stage = tcp_flow.stage(ends)
        self.flows.keep(flow, now + getattr(self.timeouts, stage), now)
        if stage == "established":
            self._assure(flow)
        return flow.decision

    def _spoken(self, flow: Flow, direction: Direction, now: float) -> None:
        """Follow a packet of a connection that is not of TCP."""
        if direction is not flow.initiator:
            if flow.use == BEGUN:
                flow.use = ANSWERED
        elif flow.use == ANSWERED:
            self._assure(flow)
        self.flows.keep(flow, now + self._silence(flow), now)

    def _silence(self, flow: Flow) -> float:
        protocol = flow.protocol
        if protocol == ip.TCP:
            return self.timeouts.opening
        if protocol == ip.UDP:
            return self.timeouts.udp_assured if flow.use == ASSURED else self.timeouts.udp
        return self.timeouts.echo if protocol in (ip.ICMP, ip.ICMPV6) else self.timeouts.other

    def _fragment(self, pkt: Packet, direction: Direction, now: float) -> Decision:
        got = self.fragments.add(pkt, direction, now)
        if got is None:
            return _HELD
        if isinstance(got, str):
            return denied(got)
        try:
            whole = Packet.at(got.packet)
            # Its receiver drops neighbour discovery that came in fragments, as nobody can inspect it
            decision = (
                denied("fragment-neighbour") if whole.nd is not None else self.judge(whole, direction, now)
            )
        except Malformed as err:
            decision = _malformed(err)
        return decision._replace(frames=got.frames, whole=got.packet)

    def _related(self, pkt: Packet, fields: Fields, direction: Direction) -> Decision | None:
        """Decide about an ICMP error, if it is about a connection that is known."""
        quoted = quoted_flow(pkt, direction, fields.vlan)
        flow = self._find(quoted.key) if quoted is not None else None
        if flow is None or quoted is None:
            return None
        if quoted.seq is not None and not any(
            tcp_flow.quotes_what_was_sent(ends, quoted.direction, quoted.seq)
            for ends in (self.flows.ends(flow), self._retries.ends(flow))
            if ends is not None
        ):
            return denied("icmp-not-sent", flow.decision.rule)
        return Decision(Verdict.ALLOW, flow.decision.rule, "related")

    def _stateless(self, fields: Fields, direction: Direction, now: float) -> Decision:
        """Decide about a packet by itself: it is of no connection that could be followed."""
        judgement = self.consult(direction, fields)
        refused = self._refused(judgement, fields, direction, now)
        if refused:
            return denied(refused, judgement.rule)
        return Decision(judgement.verdict, judgement.rule, "rule")

    def _first(
        self, key: bytes, segment: TCP | None, fields: Fields, direction: Direction, now: float
    ) -> Decision:
        """Decide about a packet that may begin a connection."""
        if direction is not OUT and self._is_elsewhere(fields):
            return denied("other-station")
        if self._recalled and (decision := self._again(key, segment, direction, now)) is not None:
            return decision
        judgement = self.consult(direction, fields)
        if judgement.verdict is not Verdict.ALLOW:
            return Decision(judgement.verdict, judgement.rule, "rule")
        ends: Ends | None = None
        if segment is not None:
            ends = tcp_flow.opened(segment, direction, join=False)
            if ends is None:
                return denied("tcp-not-open", judgement.rule)
        if refused := self._refused(judgement, fields, direction, now):
            return denied(refused, judgement.rule)
        opening = Opening(direction, fields.src_mac, fields.dst_mac, fields.vlan)
        if len(self._openings) < _OPENINGS_MAX:
            opening = self._openings.setdefault(opening, opening)
        flow = Flow(key, self._decision(judgement.rule), opening, ends)
        self._add(flow, judgement.rule, now + self._silence(flow), now)
        return Decision(Verdict.ALLOW, judgement.rule, "new")

    def _is_elsewhere(self, fields: Fields) -> bool:
        """Return whether a packet of the network is for another station of it, such as this host itself.

        ARP and neighbour discovery are everywhere: they tell the identity who else has an address.
        """
        if fields.is_neighbour:
            if any(fields.src):
                self._neighbours.observe(fields.src)
            return False
        if fields.dst_mac[0] & 1:
            return False
        mac = self.vm_mac()
        return mac is not None and fields.dst_mac != mac

    def _again(self, key: bytes, segment: TCP | None, direction: Direction, now: float) -> Decision | None:
        """Decide about a packet of a connection from before a restart; None if no allowed one matches.

        The side that opened it is known, so that a reply counts as a reply; the windows are not known.
        """
        opening, until = self._recalled.get(key, (None, 0.0))
        if opening is None or now >= until:
            return None
        ends: Ends | None = None
        if segment is not None and (
            segment.flags & tcp.SYN or (ends := tcp_flow.opened(segment, direction, join=True)) is None
        ):
            return None
        del self._recalled[key]
        flow = Flow(key, _HELD, opening, ends)
        verdict, rule = self.consult(opening.initiator, Fields.first_of(flow))
        if verdict is not Verdict.ALLOW:
            return None
        flow.decision = self._decision(rule)
        self._add(flow, rule, now + self._silence(flow), now)
        self._assure(flow)
        if ends is not None:
            return self._followed(flow, ends, SegmentKind.ACK, now)
        self._spoken(flow, direction, now)
        return flow.decision

    def end_all(self) -> int:
        """Forget all connections, also those of before a restart, and the fragments that wait."""
        self._recalled, self.fragments = {}, FragmentReassembler()
        return super().end_all()

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        times = [due for due in (self.flows.deadline(), self.fragments.deadline()) if due is not None]
        return min(times, default=None)

    def wake(self, now: float) -> list[Flow]:
        """Let go what has ended, and return it. Early is harmless."""
        self.fragments.wake(now)
        if now >= self._recalled_until:
            self._recalled = {}
        ended = self.flows.expire(now)
        for flow in ended:
            self._closed(flow)
        return ended

    # --- over a restart

    def recall(self, openings: dict[bytes, Opening], until: float, until_tcp: float) -> None:
        """Know connections of another firewall, by their keys, until a time; each once it is heard of.

        The other is later: what is known here of the same connections is forgotten.
        """
        for key, opening in openings.items():
            if (flow := self.flows.get(key)) is not None:
                self.end(flow)
            self._recalled[key] = opening, until_tcp if protocol_of(key) == ip.TCP else until
        while len(self._recalled) > self.recalled_max:
            del self._recalled[next(iter(self._recalled))]
        self._recalled_until = max(self._recalled_until, until, until_tcp)

    def unheard(self, now: float) -> Iterator[Flow]:
        """Yield the connections of recall() that nothing was heard of yet."""
        for key in list(self._recalled):  # others may be heard of between two steps
            opening, until = self._recalled.get(key, (None, 0.0))
            if opening is not None and now < until:
                yield Flow(key, _HELD, opening, None)
            else:
                self._recalled.pop(key, None)


def _malformed(err: Malformed) -> Decision:
    return denied(f"malformed-{err.what.partition('.')[0]}")
