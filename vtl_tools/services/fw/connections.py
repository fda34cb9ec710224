"""The policy in force, and the connections that it has let through. `now` is in seconds, and only grows."""

from collections.abc import Callable, Container, Iterator
from typing import Final

from vtl_tools.common.packet import address, ip
from vtl_tools.common.packet.packet import PORTS
from vtl_tools.common.rules import roles
from vtl_tools.common.rules.rule import OUT, Direction, Rule, Verdict
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.flow import Decision, Flow, Timeouts, flow_key
from vtl_tools.services.fw.limits import RuleLimits
from vtl_tools.services.fw.pending_replies import PendingReplies
from vtl_tools.services.fw.policy import Judgement, Policy
from vtl_tools.services.fw.table import FlowTable

_ASKED: Final = {
    (67, 68): (address.ip("255.255.255.255"), PORTS.pack(68, 67)),
    (547, 546): (address.ip("ff02::1:2"), PORTS.pack(546, 547)),
}
"""The group that a VM asks for a lease, and the ports of its request, by the ports of the answer."""


class Connections:
    """A policy and the connections that its rules allow, until they end or another policy denies them."""

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
        self._limits = RuleLimits()
        self._closely = policy.asks_macs
        """Whether each packet has to be judged by all that rules ask, also one of a known connection."""
        self._unjudged: list[Flow] = []
        self._known: dict[Rule, Decision] = {}
        self.resolvers: Container[bytes] = ()
        self.dhcp_servers: Container[bytes] = ()
        """Hosts that the network has named to the VM."""
        self.leased: Callable[[], bytes | None] = lambda: None
        """Returns the VM's IPv4 address by DHCP."""
        self._retries = PendingReplies()

    # --- what a rule may ask for that is in no packet

    def consult(self, direction: Direction, fields: Fields, policy: Policy | None = None) -> Judgement:
        """Return the judgement of a policy, by default of the one in force."""
        policy = policy or self.policy
        if policy.asks_roles:
            fields.roles = self.roles(direction, fields)
        return policy.judge(direction, fields)

    def roles(self, direction: Direction, fields: Fields) -> int:
        """Return the roles of a packet (roles.py)."""
        if direction is OUT:
            resolver = roles.RESOLVER if fields.dst in self.resolvers else 0
            return resolver | (roles.DHCP_SERVER if fields.dst in self.dhcp_servers else 0)
        asked = _ASKED.get((fields.sport, fields.dport)) if fields.protocol == ip.UDP else None
        if asked is None or len(asked[0]) != len(fields.src):
            return 0
        group, ports = asked
        requests = [(fields.dst, group)]
        if len(group) == 4:
            requests.append((bytes(4), group))
            if (own := self.leased()) is not None:  # a refusal is sent to all (RFC 2131 section 4.3.2)
                requests += (own, group), (own, fields.src)
        keys = [flow_key(OUT, ip.UDP, src, dst, ports, fields.vlan, OUT) for src, dst in requests]
        return roles.ASKED if any(self._find(key) is not None for key in keys) else 0

    # --- what begins and ends

    def end(self, flow: Flow) -> None:
        """Forget a connection that is known: its next packet is judged as a first one."""
        self.flows.remove(flow)
        self._closed(flow)

    def end_all(self) -> int:
        """Forget all connections that are known; return how many. The rates of the rules go on."""
        count = len(self.flows)
        for flow in self.flows:
            self.end(flow)
        return count

    def _add(self, flow: Flow, rule: Rule, until: float, now: float) -> None:
        if (victim := self.flows.add(flow, until, now)) is not None:
            self._closed(victim)
        self._limits.opened(rule, flow.source)

    def _assure(self, flow: Flow) -> None:
        if (victim := self.flows.assure(flow)) is not None:
            self._closed(victim)

    def _closed(self, flow: Flow) -> None:
        self._retries.forget(flow)
        if flow.decision.rule is not None:
            self._limits.closed(flow.decision.rule, flow.source)

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

    # --- another policy

    def would_end(self, policy: Policy) -> Iterator[Flow | None]:
        """Return the connections that another policy would not allow, and None for others. Changes nothing.

        One at a time: so that packets may come in between, as with replace().
        """
        for flow in self.flows:
            allowed = (
                flow.share is None
                or self.consult(flow.initiator, Fields.first_of(flow), policy).verdict is Verdict.ALLOW
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
        verdict, rule = self.consult(flow.initiator, Fields.first_of(flow))
        if verdict is Verdict.ALLOW:
            flow.decision = self._decision(rule)
            self._limits.opened(rule, flow.source)
            return True
        flow.decision = denied("rule", rule)
        self.flows.remove(flow)
        return False

    def _find(self, key: bytes) -> Flow | None:
        """Return a connection that is known, and still allowed."""
        flow = self.flows.get(key)
        return None if flow is None or (self._unjudged and not self._still_allowed(flow)) else flow


def denied(why: str, rule: Rule | None = None) -> Decision:
    """Return the decision to drop a packet, and why."""
    return Decision(Verdict.DENY, rule, why)
