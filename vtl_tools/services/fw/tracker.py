"""Packets in, decisions out. Reads no clock; `now` is in seconds, and only grows."""

from collections.abc import Iterator
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.model import tcp_plain
from vtl_tools.common.model.tcp_arrival import SegmentKind, arrive
from vtl_tools.common.packet import ip, tcp
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.common.packet.view import Buffer
from vtl_tools.services.fw import tcp_flow, udp_plain
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
)
from vtl_tools.services.fw.fragments import FragmentReassembler
from vtl_tools.services.fw.limits import RuleLimits
from vtl_tools.services.fw.neighbours import NeighbourFilter
from vtl_tools.services.fw.pending_replies import PendingReplies
from vtl_tools.services.fw.policy import Judgement, Policy
from vtl_tools.services.fw.quoted import quoted_flow
from vtl_tools.services.fw.rule import OUT, STACKED, UNTAGGED, Direction, Rule, Verdict
from vtl_tools.services.fw.suspicious import suspicious
from vtl_tools.services.fw.table import FlowTable

_L3: Final = tcp_plain.L3
_HELD: Final = Decision(None, None, "fragment-held")
_PROTOCOL: Final = {4: _L3 + 9, 6: _L3 + 6}
_TCP: Final = bytes((ip.TCP,))
_UDP: Final = bytes((ip.UDP,))
_OPENINGS_MAX: Final = 1024


class Tracker:
    """A stateful firewall without its links: a policy, and the connections that it has let through."""

    def __init__(
        self,
        policy: Policy,
        *,
        flows_max: int = 131_072,
        timeouts: Timeouts | None = None,
    ) -> None:
        self.policy = policy
        self.timeouts = timeouts or Timeouts()
        self.flows = FlowTable(flows_max)
        self.fragments = FragmentReassembler()
        self._neighbours = NeighbourFilter()
        self._limits = RuleLimits()
        self._closely = policy.asks_macs
        self._unjudged: list[Flow] = []
        self._known: dict[Rule, Decision] = {}
        self._openings: dict[Opening, Opening] = {}
        self._retries = PendingReplies()
        self._recalled: dict[bytes, Opening] = {}
        self._recalled_until = 0.0

    # --- packets

    def receive(self, frame: Buffer, direction: Direction, now: float) -> Decision:
        """Decide about a frame, which stays the caller's. Nothing is raised for foreign octets."""
        version = frame[_L3] >> 4 if len(frame) >= _L3 + IPv6.SIZE else 0
        if version in _PROTOCOL and not self._closely:
            protocol, decision = frame[_PROTOCOL[version]], None
            if protocol == ip.TCP:
                decision = self._plain_tcp(frame, version, direction, now)
            elif protocol == ip.UDP:
                decision = self._plain_udp(frame, version, direction, now)
            if decision is not None:
                return decision
        try:
            return self.judge(Packet.at(frame), direction, now)
        except Malformed as err:
            return _malformed(err)

    def judge(self, pkt: Packet, direction: Direction, now: float) -> Decision:
        """Decide about a packet. Raises Malformed, and nothing else."""
        net = pkt.ip
        if net is not None:
            if refused := suspicious(net):
                return _denied(refused)
            if net.is_fragment:
                return self._fragment(pkt, direction, now)
        fields = Fields.of(pkt, self._neighbours if direction is OUT else None)
        if fields.is_neighbour and direction is not OUT and any(fields.src):
            self._neighbours.observe(fields.src)
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
        verdict, rule = self.policy.judge(direction, fields)
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
            return _denied(refused, flow.decision.rule)
        seen = tcp_flow.follow(ends, direction, segment)
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

    def _plain_tcp(self, frame: Buffer, version: int, direction: Direction, now: float) -> Decision | None:
        """Decide about an ordinary TCP segment of a known connection, or with SYN; None: look closer."""
        plain = tcp_plain.read(frame, version, tcp.RST)  # which is looked at closely
        if plain is None:
            return None
        src, dst, sport, dport, seq, ack, flags, window, at, data, end = plain
        if flags & tcp.SYN:
            return self._plain_syn(frame, plain, direction, now)
        if direction is OUT:
            flow = self.flows.get(src + dst + PORTS.pack(sport, dport) + _TCP)
        else:
            flow = self.flows.get(dst + src + PORTS.pack(dport, sport) + _TCP)
        if flow is None:
            return None
        ends = flow.ends
        if not isinstance(ends, tuple):
            ends = self.flows.ends(flow)
        tx, rx = ends if direction is OUT else (ends[1], ends[0])
        stamp = tcp_plain.tsval(frame, at, data) if tx.timestamps else None
        if stamp == -1:
            return None
        seen = arrive(tx, rx, seq, ack, flags, window, end - data, stamp)
        if not seen.taken:
            return None  # which judges it again, to the same end, and says what is to be done
        if tx.state is State.ESTABLISHED and rx.state is State.ESTABLISHED and flow.use == ASSURED:
            flow.until = now + self.timeouts.established
            return flow.decision
        return self._followed(flow, ends, seen, now)

    def _plain_syn(
        self, frame: Buffer, plain: tcp_plain.Segment, direction: Direction, now: float
    ) -> Decision | None:
        src, dst, sport, dport, _, _, _, _, at, _, end = plain
        key = flow_key(direction, ip.TCP, src, dst, PORTS.pack(sport, dport), UNTAGGED, direction)
        segment = TCP.at(frame, at, end)
        flow = self.flows.get(key)
        if flow is not None and (decision := self._further(flow, segment, direction, now)) is not None:
            return decision
        fields = Fields.plain(frame, ip.TCP, src, dst, sport, dport)
        return self._first(key, segment, fields, direction, now)

    def _plain_udp(self, frame: Buffer, version: int, direction: Direction, now: float) -> Decision | None:
        """Decide about an ordinary datagram; None: look closer."""
        plain = udp_plain.read(frame, version)
        if plain is None:
            return None
        src, dst, here, there = plain
        key = (src + dst + here + there if direction is OUT else dst + src + there + here) + _UDP
        flow = self.flows.get(key)
        if flow is None:
            sport, dport = int.from_bytes(here, "big"), int.from_bytes(there, "big")
            fields = Fields.plain(frame, ip.UDP, src, dst, sport, dport)
            return self._first(key, None, fields, direction, now)
        self._spoken(flow, direction, now)
        return flow.decision

    def _followed(self, flow: Flow, ends: Ends, seen: SegmentKind, now: float) -> Decision:
        if not seen.taken:
            return _denied(f"tcp-{seen.text}", flow.decision.rule)
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
            return _denied(got)
        try:
            whole = Packet.at(got.packet)
            # Its receiver drops neighbour discovery that came in fragments, as nobody can inspect it
            decision = (
                _denied("fragment-neighbour") if whole.nd is not None else self.judge(whole, direction, now)
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
            return _denied("icmp-not-sent", flow.decision.rule)
        return Decision(Verdict.ALLOW, flow.decision.rule, "related")

    def _stateless(self, fields: Fields, direction: Direction, now: float) -> Decision:
        """Decide about a packet by itself: it is of no connection that could be followed."""
        judgement = self.policy.judge(direction, fields)
        refused = self._refused(judgement, fields, direction, now)
        if refused:
            return _denied(refused, judgement.rule)
        return Decision(judgement.verdict, judgement.rule, "rule")

    def _first(
        self, key: bytes, segment: TCP | None, fields: Fields, direction: Direction, now: float
    ) -> Decision:
        """Decide about a packet that may begin a connection."""
        if self._recalled and (decision := self._again(key, segment, direction, now)) is not None:
            return decision
        judgement = self.policy.judge(direction, fields)
        if judgement.verdict is not Verdict.ALLOW:
            return Decision(judgement.verdict, judgement.rule, "rule")
        ends: Ends | None = None
        if segment is not None:
            ends = tcp_flow.opened(segment, direction, join=False)
            if ends is None:
                return _denied("tcp-not-open", judgement.rule)
        if refused := self._refused(judgement, fields, direction, now):
            return _denied(refused, judgement.rule)
        opening = Opening(direction, fields.src_mac, fields.dst_mac, fields.vlan)
        if len(self._openings) < _OPENINGS_MAX:
            opening = self._openings.setdefault(opening, opening)
        self._add(Flow(key, self._decision(judgement.rule), opening, ends), judgement.rule, now)
        return Decision(Verdict.ALLOW, judgement.rule, "new")

    def _add(self, flow: Flow, rule: Rule, now: float) -> None:
        if (victim := self.flows.add(flow, now + self._silence(flow), now)) is not None:
            self._closed(victim)
        self._limits.opened(rule, flow.source)

    def _assure(self, flow: Flow) -> None:
        if (victim := self.flows.assure(flow)) is not None:
            self._closed(victim)

    def _again(self, key: bytes, segment: TCP | None, direction: Direction, now: float) -> Decision | None:
        """Decide about a packet of a connection of before a restart; None if it is of none that is allowed.

        Which side began it is known, so that an answer is none the less an answer; the windows are not.
        """
        opening = self._recalled.get(key)
        if opening is None or now >= self._recalled_until:
            return None
        ends: Ends | None = None
        if segment is not None and (
            segment.flags & tcp.SYN or (ends := tcp_flow.opened(segment, direction, join=True)) is None
        ):
            return None
        del self._recalled[key]
        flow = Flow(key, _HELD, opening, ends)
        verdict, rule = self.policy.judge(opening.initiator, Fields.first_of(flow))
        if verdict is not Verdict.ALLOW:
            return None
        flow.decision = self._decision(rule)
        self._add(flow, rule, now)
        self._assure(flow)
        if ends is not None:
            return self._followed(flow, ends, SegmentKind.ACK, now)
        self._spoken(flow, direction, now)
        return flow.decision

    def _refused(self, judgement: Judgement, fields: Fields, direction: Direction, now: float) -> str:
        rule = judgement.rule
        if rule.rate is None and rule.cap is None:
            return ""
        if rule.cap is not None and self._unjudged:  # any of which may count
            for flow in self._unjudged:
                self._still_allowed(flow)
            self._judged_anew()
        source = fields.src if len(fields.src) == 4 else fields.src[:8]
        return self._limits.admit(rule, direction, source, now)

    def left(self, rule: Rule, direction: Direction, source: bytes, now: float) -> dict[str, int]:
        """Return what is left of a rule's limits for a source, by what is limited."""
        return self._limits.remaining(rule, direction, source if len(source) == 4 else source[:8], now)

    def _decision(self, rule: Rule) -> Decision:
        """Return what every further packet of a rule's connections is told, which is one object for all."""
        known = self._known.get(rule)
        if known is None:
            known = self._known[rule] = Decision(Verdict.ALLOW, rule, "known")
        return known

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

    def recall(self, openings: dict[bytes, Opening], until: float) -> None:
        """Know connections of before, by their keys, until a time; each once something is heard of it."""
        self._recalled, self._recalled_until = openings, until

    # --- what an operator does

    def end(self, flow: Flow) -> None:
        """Forget a connection that is known: its next packet is judged as a first one."""
        self.flows.remove(flow)
        self._closed(flow)

    def _closed(self, flow: Flow) -> None:
        self._retries.forget(flow)
        if flow.decision.rule is not None:
            self._limits.closed(flow.decision.rule, flow.source)

    def would_end(self, policy: Policy) -> Iterator[Flow | None]:
        """Return the connections that another policy would not allow, and None for others. Changes nothing.

        One at a time: so that packets may come in between, as with replace().
        """
        for flow in self.flows:
            allowed = (
                flow.share is None
                or policy.judge(flow.initiator, Fields.first_of(flow)).verdict is Verdict.ALLOW
            )
            yield None if allowed else flow

    def replace(self, policy: Policy) -> Iterator[Flow | None]:
        """Take another policy from now on. Connections that it does not allow end.

        Returns what judges one connection at a time, and tells which ended: go to its end. A connection that
        it has not come to is judged when its next packet comes. Those that stay count for the limits of the
        rules that allow them now, but none ends for a limit.
        """
        self.policy, self._limits, self._known = policy, RuleLimits(), {}
        self._closely, self._unjudged = True, list(self.flows)
        return self._judge_anew(self._unjudged)

    def _judge_anew(self, flows: list[Flow]) -> Iterator[Flow | None]:
        for flow in flows:
            yield None if self._still_allowed(flow) else flow
        self._judged_anew()

    def _judged_anew(self) -> None:
        self._closely, self._unjudged = self.policy.asks_macs, []

    def _still_allowed(self, flow: Flow) -> bool:
        """Judge a connection by the policy that holds now, unless it was, or has ended."""
        decision = flow.decision
        if decision.verdict is not Verdict.ALLOW:
            return False
        if flow.share is None or (decision.rule is not None and self._known.get(decision.rule) is decision):
            return True
        verdict, rule = self.policy.judge(flow.initiator, Fields.first_of(flow))
        if verdict is Verdict.ALLOW:
            flow.decision = self._decision(rule)
            self._limits.opened(rule, flow.source)
            return True
        flow.decision = _denied("rule", rule)
        self.flows.remove(flow)
        return False

    def _find(self, key: bytes) -> Flow | None:
        """Return a connection that is known, and still allowed."""
        flow = self.flows.get(key)
        return None if flow is None or (self._unjudged and not self._still_allowed(flow)) else flow


def _malformed(err: Malformed) -> Decision:
    return _denied(f"malformed-{err.what.partition('.')[0]}")


def _denied(why: str, rule: Rule | None = None) -> Decision:
    return Decision(Verdict.DENY, rule, why)
