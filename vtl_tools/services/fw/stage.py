"""The firewall as a stage: frames in, and those that the rules allow out again. Paper section 3.4."""

import asyncio
import concurrent.futures.thread  # noqa: F401 - asyncio would import it when the service cannot read it
import gc
import sys
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.packet import quick
from vtl_tools.common.packet.offload import bind, is_bound
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import F_NEEDS_CSUM, VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.rules.rule import IN, OUT, Rule, Verdict
from vtl_tools.common.runtime.control import Verb
from vtl_tools.common.stage import Stage
from vtl_tools.services.fw import answers, padding, transfer
from vtl_tools.services.fw.files import STDIN
from vtl_tools.services.fw.flow import Decision
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.identity_report import IdentityReport
from vtl_tools.services.fw.packet_log import PacketLog, Told, log_line
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.refusal import refusal
from vtl_tools.services.fw.rules_again import RulesAgain
from vtl_tools.services.fw.saved_state import StateKeeper
from vtl_tools.services.fw.tracker import Tracker

ANSWERS_PER_S: Final = 1000.0
"""Resets and ICMP errors of `reject`, to each side (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f)."""
LISTED_MAX: Final = 1000
"""Rules of a status."""
SWITCH_S: Final = 100e-6
"""How long the thread that compiles a policy may keep the interpreter from frames that wait."""
AT_ONCE: Final = 256
"""Connections that another policy judges, or rules that are let go, before frames have their turn."""
STATIONS_MAX: Final = 1024
"""Ethernet addresses behind the VM's link that are remembered, of a VM that may use any."""
_DST_MAC: Final = slice(VNET, VNET + 6)
_SRC_MAC: Final = slice(VNET + 6, VNET + 12)
_JUDGED: Final = frozenset(("new", "rule", "limit-rate", "limit-connections"))
"""Why a packet is judged by a rule, and not as one of a connection."""


class Firewall(Stage):
    """Two ports: what the policy allows goes from one to the other, what it rejects is answered.

    file: where the policy is from. identity: what the VM may send as; None: as it likes. kept: takes the
    packets of rules that say `pcap`. link: the VM's, for messages.
    """

    def __init__(
        self,
        policy: Policy,
        file: str = "",
        *,
        identity: Identity | None = None,
        kept: Callable[[memoryview, float], object] | None = None,
        link: str = "",
        flows_max: int = 131_072,
    ) -> None:
        super().__init__()
        self.tracker = Tracker(policy, flows_max=flows_max)
        self.file, self.identity, self.kept, self.link = file, identity, kept, link
        self.keeper: StateKeeper | None = None
        self.again: RulesAgain | None = None
        """Reads the rules again at SIGHUP."""
        self.say: Callable[[str], object] | None = None
        """Takes a line for people for what a rule logs."""
        self.counts: dict[Rule, list[int]] = {}
        self.named_file = "" if file == STDIN else file
        """The last file that was not standard input, which a reload without a file reads."""
        self._stations: set[bytes] = set()
        if identity is not None:
            self.tracker.vm_mac = lambda: identity.mac
        self._is_reloading = False
        self._directions = OUT, IN
        self._allow, self._reject = Verdict.ALLOW, Verdict.REJECT
        self._answers = TokenBucket(ANSWERS_PER_S), TokenBucket(ANSWERS_PER_S)
        self._logs = PacketLog(OUT, self._tell), PacketLog(IN, self._tell)
        self._picked = Batch()
        self._report: IdentityReport | None = None
        self._is_quiet = False
        if identity is not None:
            identity.bindings.may_ask = self._lets_out
            identity.replaced, identity.look = self._replaced, lambda: self.occupant(0)
            self._report = IdentityReport(identity, link)
            self._report.event = lambda name, **fields: self.event(name, **fields)
            self.tracker.resolvers, self.tracker.dhcp_servers = identity.resolvers.known, identity.dhcp4.met
            self.tracker.leased = identity.dhcp4.leased

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Judge each frame. A batch in which all pass goes on whole, and as it is."""
        direction, decide, read = self._directions[port], self.tracker.decide, quick.read
        identity = self.identity
        check = None if port else identity.check if identity is not None else padding.check
        learn = identity.learn_from if identity is not None and port == 1 else None
        lost: list[int] = []
        late: list[bytes] = []
        before: Decision | None = None
        packets = octets = 0
        frames = (batch[0],) if batch.count == 1 else batch  # as of bulk TCP: 0.4 us less
        for i, frame in enumerate(frames):
            headers = read(frame)
            if (frame[0] & F_NEEDS_CSUM or frame[1]) and (headers is None or not is_bound(frame, headers)):
                if not self._bind(frame):
                    lost.append(i)
                    continue
                headers = read(frame)  # as a checksum may have been written over what was read
            if check is not None and (why := check(frame, headers, now)):
                self.drops[why] += 1
                lost.append(i)
                if self._report is not None:
                    self._report.refused(why, now, quietly=self._is_quiet)
                continue
            decision = decide(frame, headers, direction, now)
            if decision is before:
                packets += 1
                octets += len(frame)
            elif decision.why == "known" and not decision.frames:
                # one object for all packets of a rule's connections
                self._count(before, packets, octets - packets * VNET)
                before, packets, octets = decision, 1, len(frame)
            elif self._other(decision, frame, port, now):
                late += decision.frames
                if decision.frames:
                    lost.append(i)
            else:
                lost.append(i)
                continue
            if learn is not None:
                learn(frame, headers, now)
        self._count(before, packets, octets - packets * VNET)
        if not lost:
            self.out[1 - port](batch, now)
        elif len(lost) < batch.count:
            gone = set(lost)
            kept = [i for i in range(batch.count) if i not in gone]
            self.out[1 - port](self._picked.pick(batch, kept), now)
        if late:
            self.send(1 - port, [(frame,) for frame in late], now)

    def _bind(self, frame: memoryview) -> bool:
        """Bind a frame; say whether that was possible."""
        try:
            bind(frame)
        except Malformed as err:
            self.drops[f"malformed-{err.what.partition('.')[0]}"] += 1
            return False
        return True

    def _other(self, decision: Decision, frame: memoryview, port: int, now: float) -> bool:
        """Take note of a decision that is not the common one; say whether it lets the packet pass."""
        if decision.verdict is None:
            return False  # kept until the rest of its packet is here
        passes = decision.verdict is self._allow
        why = decision.why
        whole = frame if decision.whole is None else memoryview(decision.whole)
        if port == 0 and len(self._stations) < STATIONS_MAX:
            self._stations.add(bytes(frame[_SRC_MAC]))
        asked = self.identity if decision.frames and port == 0 else None
        if passes and asked is not None and (spoofed := asked.refuse(whole, now)):
            passes, why = False, spoofed
            if self._report is not None:
                self._report.refused(why, now, quietly=self._is_quiet)
        rule = decision.rule
        if rule is not None:
            octets = sum(map(len, decision.frames)) or len(frame) - VNET
            self._count(decision, len(decision.frames) or 1, octets)
            if (rule.log or rule.pcap) and why in _JUDGED:
                self._note(rule, decision, whole, port, now)
        if not passes:
            self.drops[why] += len(decision.frames) or 1
            if decision.verdict is self._reject:
                self._answer(whole, port, now)
        return passes

    def _count(self, decision: Decision | None, packets: int, octets: int) -> None:
        """Add packets to those that the rule of a decision was applied to."""
        if decision is not None and decision.rule is not None:
            count = self.counts.setdefault(decision.rule, [0, 0])
            count[0] += packets
            count[1] += octets

    def _note(self, rule: Rule, decision: Decision, whole: memoryview, port: int, now: float) -> None:
        """Do what a rule's `log` and `pcap` ask for."""
        if rule.pcap and self.kept is not None:
            self.kept(whole, now)
        if rule.log:
            self._logs[port].note(rule, decision, whole, now)

    def _tell(self, told: Told) -> None:
        """Tell of a packet that a rule logs, or of its repeats."""
        self.event("packet", **told)
        if self.say is not None:
            self.say(log_line(told))

    def _answer(self, whole: memoryview, port: int, now: float) -> None:
        """Tell a packet's sender that it was rejected, as the host that it was for would.

        A packet for a station that is not known to be behind the VM's link is that of another host, whose
        connections a reset would end.
        """
        if port == 1 and not whole[VNET] & 1 and bytes(whole[_DST_MAC]) not in self._vm_stations():
            return
        answer = refusal(whole)
        if answer is not None and self._answers[port].take(now):
            self.send(port, [(bytes(answer),)], now)

    def _vm_stations(self) -> Collection[bytes]:
        """Return the Ethernet addresses that are behind the VM's link."""
        mac = self.identity.mac if self.identity is not None else None
        return self._stations if mac is None else (mac,)

    def _lets_out(self, frame: bytes) -> bool:
        """Return whether the rules let the VM send this, so that no frame of the service gets around them."""
        return self.tracker.lets_out(Packet.at(bytearray(frame)))

    # --- another VM

    def on_occupant(self, port: int, occupant: str, now: float) -> None:
        """Note who is behind the VM's link. Frames that wait there are of the occupant before."""
        if port or self.identity is None:
            return
        if self.identity.has_other(occupant):
            self._is_quiet = True
            self.drain(port)
            self._is_quiet = False
        self.identity.meet(occupant)

    def _replaced(self, former: bytes, mac: bytes, now: float) -> None:
        ended = self.tracker.end_all()
        if self._report is not None:
            self._report.replaced(former, mac, ended, now)
        if self.keeper is not None:
            self.keeper.begin(now)

    def forget(self, request: dict[str, Any]) -> dict[str, object]:
        """Discard what was learned of the VM, and its connections. Raises VTLError."""
        if self.identity is None:
            raise VTLError("forget: this service runs with --spoofing, and knows no identity")
        self.drain(0)
        before = self.identity.status()
        learned = [of for of, how in self.identity.origins().items() if how != "option"]
        self.identity.forget()
        told: dict[str, object] = {"link": self.link, "mac": before["mac"], "addresses": learned}
        told["ended"] = self.tracker.end_all()
        if self.keeper is not None:
            self.keeper.begin(time.monotonic())
        self.event("identity", reason="forgotten", mac=before["mac"], ended=told["ended"])
        return told

    # --- time

    def settle(self, now: float) -> None:
        """Ask who has an IPv6 address, where that is to be known."""
        if self.identity is not None:
            for port, frame in self.identity.transmit():
                self.send(port, [(frame,)], now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        first: float | None = None
        for part in (self.tracker, self.identity, self._report, self.keeper, *self._logs):
            if part is None or (due := part.deadline()) is None:
                continue
            if first is None or due < first:
                first = due
        return first

    def wake(self, now: float) -> None:
        """Let go what has ended."""
        self.tracker.wake(now)
        if self.identity is not None:
            self.identity.wake(now)
        if self._report is not None:
            self._report.wake(now)
        if self.keeper is not None:
            self.keeper.wake(now)
        for packets in self._logs:
            packets.wake(now)

    def on_stop(self, now: float) -> None:
        """Tell the repeats of packets that were logged."""
        for packets in self._logs:
            packets.finish(now)

    # --- what an operator asks

    def status(self, now: float) -> dict[str, object]:
        """Return the policy, what it is applied to, and how often each rule was."""
        policy = answers.status(self.tracker, self.file)
        told: dict[str, object] = {"policy": {**policy, "named_file": self.named_file}}
        if self.identity is not None:
            told["identity"] = self.identity.status()
        if self._report is not None:
            told["refused"] = self._report.status(now)
        counts = sorted(self.counts.items(), key=lambda one: (one[0].place.file, one[0].place.line))
        told["rules"] = {
            rule.key: {"text": rule.text, "packets": packets, "octets": octets}
            for rule, (packets, octets) in counts[:LISTED_MAX]
        }
        return told

    def verbs(self) -> dict[str, Verb]:
        """Return what can be asked beside the status, by name."""
        return {
            "flows": lambda request: answers.flows(self.tracker, request, time.monotonic()),
            "kill": partial(answers.kill, self.tracker),
            "explain": lambda request: answers.explain(
                self.tracker, self.identity, request, self.link, time.monotonic()
            ),
            "forget": self.forget,
            "reload": self.reload,
            "export": lambda _: transfer.export(self.tracker, self.identity),
            "import": lambda request: transfer.import_(self.tracker, self.identity, request.get("upload")),
        }

    def on_hang_up(self, now: float) -> None:
        """Begin to reload the file of --rules."""
        if self.again is not None:
            self.again.begin(self)

    async def reload(self, request: dict[str, Any]) -> dict[str, Any]:
        """Apply the rules that were uploaded, or return what that would end. Raises VTLError."""
        name, upload = request.get("file"), request.get("upload")
        if not isinstance(name, str) or upload is None:
            raise VTLError("reload: no rule files came along; use 'vtl-fw reload'")
        if self._is_reloading:  # the first could be done last
            raise VTLError("reload: another one is under way; try again")
        self._is_reloading = True
        gone: list[Rule] = []
        interval = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        gc.disable()
        try:
            policy = await asyncio.to_thread(answers.compiled, name, upload)  # frames go on meanwhile
            gc.freeze()
            if request.get("dry_run"):
                steps = self.tracker.would_end(policy)
            else:
                gone = list(self.tracker.policy.rules)
                steps = self.tracker.replace(policy)
                self.file, self.counts = name, {}
                self.named_file = self.named_file if name == STDIN else name
            ended = []
            for number, flow in enumerate(steps):
                if number % AT_ONCE == 0:
                    await asyncio.sleep(0)
                if flow is not None:
                    ended.append(flow)
            while gone:  # all at once would take ten milliseconds
                del gone[-AT_ONCE:]
                await asyncio.sleep(0)
        finally:
            self._is_reloading = False
            gc.enable()
            sys.setswitchinterval(interval)
        return answers.reloaded(self.tracker, policy, ended)
