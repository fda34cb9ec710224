"""vtl-fw: a stateful firewall that the guest cannot touch. Paper section 3.4."""

import logging
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common import cli
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from vtl_tools.common.firewall.flow import Decision
    from vtl_tools.common.firewall.identity import Identity
    from vtl_tools.common.firewall.policy import Policy
    from vtl_tools.common.firewall.rule import Rule
    from vtl_tools.common.runtime import Options

log = logging.getLogger(__name__)

STDIN: Final = "<stdin>"
ANSWERS_PER_S: Final = 1000.0
"""Resets and ICMP errors of `reject` (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4 f)."""
LOGS_PER_S: Final = 100.0
LISTED_MAX: Final = 1000
"""Rules of a status."""
REMARKS_SHOWN: Final = 20
RELOAD_S: Final = 120.0
"""How long a service may take to compile the most rules that there may be, with frames in between."""
_JUDGED: Final = frozenset(("new", "rule", "limit-rate", "limit-connections"))
"""Why a packet is judged by a rule, and not as one of a connection."""


class Firewall(Stage):
    """Two ports: what the policy allows goes from one to the other, what it rejects is answered.

    file: where the policy is from. identity: what the VM may send as; None: as it likes. kept: takes the
    packets of rules that say `pcap`.
    """

    def __init__(
        self,
        policy: "Policy",
        file: str = STDIN,
        *,
        identity: "Identity | None" = None,
        kept: "Callable[[memoryview, float], object] | None" = None,
        flows_max: int = 131_072,
    ) -> None:
        from vtl_tools.common.bucket import Bucket
        from vtl_tools.common.firewall.rule import IN, OUT, Verdict
        from vtl_tools.common.firewall.tracker import Tracker
        from vtl_tools.common.firewall.uploads import Upload

        super().__init__()
        self.tracker = Tracker(policy, flows_max=flows_max)
        self.file, self.identity, self.kept = file, identity, kept
        self.counts: dict[Rule, list[int]] = {}
        self.upload = Upload()
        self._is_compiling = False
        self._directions = OUT, IN
        self._allow, self._reject = Verdict.ALLOW, Verdict.REJECT
        self._answers, self._logs = Bucket(ANSWERS_PER_S), Bucket(LOGS_PER_S)
        self._picked = Batch()

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Judge each frame. A batch in which all pass goes on whole, and as it is."""
        direction, receive = self._directions[port], self.tracker.receive
        identity = self.identity
        refuse = identity.refuse if identity is not None and port == 0 else None
        heard = identity.heard if identity is not None and port == 1 else None
        lost: list[int] = []
        late: list[bytes] = []
        before: Decision | None = None
        tally = [0, 0]
        for i, frame in enumerate(batch):
            if refuse is not None and (why := refuse(frame, now)):
                self.drops[why] += 1
                lost.append(i)
                continue
            decision = receive(frame, direction, now)
            if decision is before:
                tally[0] += 1
                tally[1] += len(frame) - VNET
            elif (
                decision.why == "known" and not decision.frames
            ):  # one object for all packets of a rule's connections
                before, tally = decision, self._tally(decision.rule)
                tally[0] += 1
                tally[1] += len(frame) - VNET
            elif self._other(decision, frame, port, now):
                late += decision.frames
                if decision.frames:
                    lost.append(i)
            else:
                lost.append(i)
                continue
            if heard is not None:
                heard(frame, now)
        if not lost:
            self.out[1 - port](batch, now)
        elif len(lost) < batch.count:
            gone = set(lost)
            kept = [i for i in range(batch.count) if i not in gone]
            self.out[1 - port](self._picked.pick(batch, kept), now)
        if late:
            self.send(1 - port, [(frame,) for frame in late], now)

    def _other(self, decision: "Decision", frame: memoryview, port: int, now: float) -> bool:
        """Take note of a decision that is not the common one; say whether it lets the packet pass."""
        if decision.verdict is None:
            return False  # kept until the rest of its packet is here
        passes = decision.verdict is self._allow
        why = decision.why
        whole = frame if decision.whole is None else memoryview(decision.whole)
        asked = self.identity if decision.frames and port == 0 else None
        if passes and asked is not None and (spoofed := asked.refuse(whole, now)):
            passes, why = False, spoofed
        rule = decision.rule
        if rule is not None:
            tally = self._tally(rule)
            tally[0] += len(decision.frames) or 1
            tally[1] += sum(map(len, decision.frames)) or len(frame) - VNET
            if (rule.log or rule.pcap) and why in _JUDGED:
                self._note(rule, decision, whole, port, now)
        if not passes:
            self.drops[why] += len(decision.frames) or 1
            if decision.verdict is self._reject:
                self._answer(whole, port, now)
        return passes

    def _tally(self, rule: "Rule | None") -> list[int]:
        assert rule is not None
        return self.counts.setdefault(rule, [0, 0])

    def _note(self, rule: "Rule", decision: "Decision", whole: memoryview, port: int, now: float) -> None:
        """Do what a rule's `log` and `pcap` ask for."""
        if rule.pcap and self.kept is not None:
            self.kept(whole, now)
        if not rule.log:
            return
        if not self._logs.take(now):
            return
        from vtl_tools.common.firewall.question import describe

        told = {
            "rule": f"{rule.place.file}:{rule.place.line}",
            "verdict": decision.verdict.value if decision.verdict is not None else "",
            "why": decision.why,
            "direction": self._directions[port].value,
            "suppressed": self._logs.waived(),
        }
        self.event("log", **told, **describe(whole))

    def _answer(self, whole: memoryview, port: int, now: float) -> None:
        """Tell a packet's sender that it was rejected, as the host that it was for would."""
        from vtl_tools.common.packet import derive, icmp
        from vtl_tools.common.packet.ipv4 import IPv4
        from vtl_tools.common.packet.packet import Packet

        try:
            pkt = Packet.at(whole)
            net = pkt.ip
            if net is None:
                return
            if pkt.tcp is not None:
                answer = derive.rst(pkt)
            elif isinstance(net, IPv4):
                answer = derive.icmp_error(pkt, icmp.UNREACHABLE, icmp.ADMIN_PROHIBITED, src=net.dst)
            else:
                answer = derive.icmp_error(pkt, icmp.V6_UNREACHABLE, icmp.V6_ADMIN_PROHIBITED, src=net.dst)
        except Malformed:
            return
        if answer is not None and self._answers.take(now):
            self.send(port, [(bytes(answer),)], now)

    # --- time

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        due = self.tracker.deadline(), self.identity.deadline() if self.identity is not None else None
        return min((when for when in due if when is not None), default=None)

    def wake(self, now: float) -> None:
        """Let go what has ended."""
        self.tracker.wake(now)
        if self.identity is not None:
            self.identity.wake(now)

    # --- what an operator asks

    def status(self, now: float) -> dict[str, object]:
        """Return the policy, what it is applied to, and how often each rule was."""
        tracker = self.tracker
        told: dict[str, object] = {
            "policy": {
                "file": self.file,
                "rules": len(tracker.policy.rules),
                "flows": len(tracker.flows),
                "flows_max": tracker.flows.flows_max,
                "evicted": tracker.flows.evicted,
                "fragmented": len(tracker.fragments),
            }
        }
        if self.identity is not None:
            told["identity"] = self.identity.status()
        counts = sorted(self.counts.items(), key=lambda one: (one[0].place.file, one[0].place.line))
        told["rules"] = {str(r): {"packets": n, "octets": o} for r, (n, o) in counts[:LISTED_MAX]}
        return told

    def kill(self, request: dict[str, Any]) -> dict[str, object]:
        """End a connection. Raises VTLError."""
        from vtl_tools.common.firewall import answers

        return answers.kill(self.tracker, request)

    def explain(self, request: dict[str, Any]) -> dict[str, object]:
        """Say which rule judges a packet. Raises VTLError."""
        from vtl_tools.common.firewall import answers

        return answers.explain(self.tracker, request)

    async def reload(self, request: dict[str, Any]) -> dict[str, object]:
        """Take the policy that was uploaded, or only tell what that would end. Raises VTLError."""
        from asyncio import to_thread

        from vtl_tools.common.firewall import answers

        name = request.get("file")
        if not isinstance(name, str):
            raise VTLError("reload: needs the name of a file")
        if self._is_compiling:  # the first could be done last
            raise VTLError("reload: another one is under way; try again")
        read = self.upload.reader(request.get("token"))
        self._is_compiling = True
        try:
            policy = await to_thread(answers.compiled, name, read)  # frames go on meanwhile
        finally:
            self._is_compiling = False
        if request.get("dry_run"):
            ended = self.tracker.would_end(policy)
        else:
            ended = self.tracker.replace(policy)
            self.file, self.counts = name, {}
        return answers.reloaded(self.tracker, policy, ended)


# --- rule files


class Reader:
    """Reads rule files, and keeps what it read, to be sent on."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, name: str, octets: int) -> bytes:
        """Return at most so many octets of a file; a name of STDIN is standard input."""
        if name not in self.files:
            if name == STDIN:
                self.files[name] = sys.stdin.buffer.read(octets)
            else:
                with Path(name).open("rb") as file:
                    self.files[name] = file.read(octets)
        return self.files[name]


def load(file: str, reader: Reader, *, warn: bool = True) -> "Policy":
    """Return the policy of a file, and print what is odd about it. Raises RuleError.

    On a terminal, the line at fault is shown too.
    """
    from vtl_tools.common.firewall.answers import compiled
    from vtl_tools.common.firewall.place import RuleError

    try:
        policy = compiled(STDIN if file == "-" else file, reader)
    except RuleError as e:
        if e.text and sys.stderr.isatty():
            click.echo(e.excerpt, err=True)
        raise
    remarks = policy.ruleset.remarks if warn else ()
    for remark in remarks[:REMARKS_SHOWN]:
        log.warning("%s", remark)
    if len(remarks) > REMARKS_SHOWN:
        log.warning("%s: %d more warnings; see 'vtl-fw check'", file, len(remarks) - REMARKS_SHOWN)
    return policy


# --- the command


rules_option = click.option("--rules", metavar="FILE", help="What may pass; - is standard input.")


@click.group("vtl-fw", cls=cli.Tool)
@cli.iface_option()
@click.option("--uplink", "-u", metavar="LINK", help="The link to the network, of the same kinds.")
@rules_option
@click.option("--mac", metavar="MAC", help="The VM's Ethernet address.  [default: the first that it uses]")
@click.option(
    "--address",
    multiple=True,
    metavar="ADDRESS",
    help="An address or prefix of the VM; may be repeated.  [default: learned from DHCP and ND]",
)
@click.option("--spoofing", is_flag=True, help="Let the VM send as whoever it likes.")
@click.option(
    "--flows",
    type=click.IntRange(1, 1 << 22),
    default=131_072,
    show_default=True,
    metavar="N",
    help="Connections that are followed at once.",
)
@click.option(
    "--pcap-rules",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the packets of rules that say pcap (pcapng).",
)
@cli.guard_option_of("keep")
@cli.common_options
def main(
    iface: str,
    uplink: str,
    rules: str,
    mac: str | None,
    address: tuple[str, ...],
    spoofing: bool,
    flows: int,
    pcap_rules: Path | None,
    guard: str,
    options: "Options",
) -> None:
    """Let pass between a VM and its network what the rules allow, and nothing else.

    \b
    vtl-fw --iface vmnet1 --uplink eth0 --rules web.rules
    cat web.rules | vtl-fw --iface vmnet1 --uplink eth0 --rules -
    """
    for given, option, what in (
        (iface, "--iface", "the interface that the VM is behind"),
        (uplink, "--uplink", "the link to its network"),
        (rules, "--rules", "the file that says what may pass"),
    ):
        if not given:
            raise click.UsageError(f"give {option}: {what}")
    if spoofing and (mac or address):
        raise click.UsageError("--spoofing lets every address pass: leave --mac and --address out")
    cli.check_links((iface, uplink))
    make_identity = None if spoofing else _identity(mac, address)
    policy = load(rules, Reader())
    if pcap_rules is None and any(rule.pcap for rule in policy.rules):
        log.warning("%s: a rule says pcap, and nothing is kept without --pcap-rules", rules)

    def make_stage() -> Firewall:
        kept = None
        if pcap_rules is not None:
            from vtl_tools.common.device.kept import Kept

            kept = Kept("--pcap-rules", pcap_rules, iface)
        file = STDIN if rules == "-" else str(Path(rules).absolute())
        return Firewall(
            policy,
            file,
            identity=None if make_identity is None else make_identity(),
            kept=kept,
            flows_max=flows,
        )

    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.guard import MARK

    def verbs(stage: Firewall) -> dict[str, Any]:
        from vtl_tools.common.firewall import answers

        return {
            "flows": lambda _: answers.flows(stage.tracker, time.monotonic()),
            "kill": stage.kill,
            "explain": stage.explain,
            "upload": stage.upload.take,
            "reload": stage.reload,
        }

    def make_links(_: int) -> list[Any]:
        return [open_device(spec, mark=MARK) for spec in (iface, uplink)]

    cli.run(make_stage, make_links, options, guard=guard, verbs=verbs)


def _identity(mac: str | None, addresses: tuple[str, ...]) -> "Callable[[], Identity]":
    """Return what makes the VM's identity. Raises click.BadParameter."""
    import ipaddress

    from vtl_tools.common.firewall.identity import Identity
    from vtl_tools.common.packet import address

    own = None
    if mac is not None:
        try:
            own = address.mac(mac)
        except ValueError as e:
            raise click.BadParameter(str(e), param_hint="'--mac'") from None
        if address.is_multicast_mac(own) or not any(own):
            raise click.BadParameter(f"{mac} is no machine's address", param_hint="'--mac'")
    try:
        networks = [ipaddress.ip_network(text) for text in addresses]
    except ValueError as e:
        raise click.BadParameter(f"{e}; write 192.0.2.5 or 2001:db8::/64", param_hint="'--address'") from None
    return partial(Identity, own, networks)


# --- verbs

link_option = click.option("--link", metavar="LINK", help="Which service, by its first link; else all.")


@main.command(epilog=cli.EPILOG)
@cli.link_argument
@rules_option
@click.option("--dry-run", is_flag=True, help="Change nothing; list the connections that would end.")
@cli.json_option
@cli.verbose_option
def reload(link: str | None, rules: str | None, dry_run: bool, json: bool) -> None:
    """Put other rules in the place of those that hold; connections that they do not allow end.

    LINK is the service's first link, or the path of its control socket; without it all are told. The file is
    read here, as whoever asks: without --rules, the one that the service was started with.
    """
    from secrets import token_hex

    from vtl_tools.common import control
    from vtl_tools.common.firewall.uploads import pieces

    results = []
    for path in control.find("vtl-fw", link):
        file = rules or str(control.ask(path, "status")["policy"]["file"])
        if file == STDIN and not rules:
            raise click.UsageError("the rules came by a pipe: give --rules")
        reader, token = Reader(), token_hex(8)
        name = STDIN if file == "-" else str(Path(file).absolute())
        load(name, reader)  # what is wrong with it is told here, and never gets there
        for request in pieces(reader.files, token):
            control.ask(path, "upload", **request)
        results.append(
            control.ask(path, "reload", patience_s=RELOAD_S, token=token, file=name, dry_run=dry_run)
        )
    if json:
        cli.print_json(results)
        return
    for result in results:
        for flow in result["names"]:
            click.echo(flow)
        would = "would end" if dry_run else "ended"
        click.echo(
            f"{result['rules']} rules; {result['ended']} connections {would}, {result['flows']} are known",
            err=True,
        )


@main.command(epilog=cli.EPILOG)
@cli.link_argument
@cli.json_option
@cli.verbose_option
def flows(link: str | None, json: bool) -> None:
    """List the connections that are known: who made them, their state, when they end, their rule."""
    found = [flow for flows in cli.ask_each(main, "flows", link) for flow in flows]
    if json:
        cli.print_json(found)
        return
    rows = (
        (flow["flow"], " ".join(flow["states"] or ()), f"{flow['ends_in_s']:.0f} s", flow["rule"])
        for flow in found
    )
    cli.print_table(("connection", "state", "ends in", "rule"), rows, right=("ends in",))


words_argument = click.argument("packet", nargs=-1, required=True)


@main.command(epilog=cli.EPILOG)
@words_argument
@link_option
@cli.verbose_option
def kill(packet: tuple[str, ...], link: str | None) -> None:
    """End a connection, as `flows` names it: its next packet is judged as a first one.

    \b
    vtl-fw kill out tcp 10.0.0.5:40000 1.2.3.4:443
    """
    from vtl_tools.common.firewall.question import read

    read(packet)  # so that what is wrong with it is told as wrong usage
    from vtl_tools.common import control

    refusals = []
    paths = control.find("vtl-fw", link)
    for path in paths:
        try:
            control.ask(path, "kill", words=packet)
        except VTLError as e:
            refusals.append(e)
    if len(refusals) == len(paths):  # no service has it
        raise refusals[0]


@main.command(epilog=cli.EPILOG)
@words_argument
@rules_option
@link_option
@cli.json_option
@cli.verbose_option
def explain(packet: tuple[str, ...], rules: str | None, link: str | None, json: bool) -> None:
    """Say which rule judges the first packet of a connection, and why those before it do not.

    \b
    vtl-fw explain out tcp 10.0.0.5:40000 1.2.3.4:443
    vtl-fw explain --rules web.rules in icmp 1.2.3.4 10.0.0.5 type echo-request
    """
    from vtl_tools.common.firewall.answers import explained
    from vtl_tools.common.firewall.question import read

    asked = read(packet)
    if rules is not None:
        results: list[Any] = [explained(load(rules, Reader()), asked)]
    else:
        results = cli.ask_each(main, "explain", link, words=packet)
    if json:
        cli.print_json(results)
        return
    for result in results:
        for rule, why in result["steps"]:
            click.echo(f"{rule}\n    {why}")
        click.echo(f"{result['rule']}\n    matches: {result['verdict']}")
        if "known" in result:
            click.echo(f"but it is of a connection that is known: {result['known']}")


@main.command(epilog=cli.EPILOG)
@click.argument("file")
@cli.json_option
@cli.verbose_option
def check(file: str, json: bool) -> None:
    """See whether a rule FILE can be used, and what is odd about it. Needs no privilege and no service."""
    from vtl_tools.common.firewall.explain import unreachable

    policy = load(file, Reader(), warn=False)
    remarks = [*policy.ruleset.remarks, *unreachable(policy)]
    if json:
        cli.print_json([{"file": file, "rules": len(policy.rules), "warnings": [str(r) for r in remarks]}])
        return
    for remark in remarks:
        click.echo(f"{remark}")
    click.echo(f"{file}: {len(policy.rules)} rules, {len(remarks)} warnings", err=True)


cli.status_verb(main)
