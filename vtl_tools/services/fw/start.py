"""Builds vtl-fw: its policy, and a stage that goes on where the firewall before it on the same link ended."""

import atexit
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vtl_tools.common.device.recording import Recording
from vtl_tools.common.host import broker, log_lines
from vtl_tools.common.rules.roles import RESOLVER, of_role
from vtl_tools.common.runtime.control import path_for
from vtl_tools.common.runtime.runner import Options
from vtl_tools.common.text import printable
from vtl_tools.services.fw.files import full_name, load_rules
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.rules_again import RulesAgain
from vtl_tools.services.fw.saved_state import OCTETS_MAX, StateKeeper, recall
from vtl_tools.services.fw.stage import Firewall
from vtl_tools.services.fw.tracker import Tracker

log = logging.getLogger(__name__)

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


def make_stage(
    iface: str,
    rules: str,
    identity: Identity | None,
    options: Options,
    *,
    forget: bool,
    flows_max: int,
    pcap_rules: Path | None,
) -> Firewall:
    """Return the stage of a rule file. Raises RuleError.

    forget: use nothing that the firewall before it learned. pcap_rules: where the packets of rules that say
    `pcap` go.
    """
    policy = load_rules(rules)
    if pcap_rules is None and any(rule.pcap for rule in policy.rules):
        log.warning("%s: a rule says pcap; give --pcap-rules to record its packets", rules)
    if identity is None and any(rule.roles == of_role(RESOLVER) for rule in policy.rules):
        log.warning("%s: with --spoofing no resolver is learned; write 'resolver ADDRESS'", rules)
    kept = None
    if pcap_rules is not None:
        kept = Recording("--pcap-rules", pcap_rules, [iface], options.captures.of_guest()).keep
    stage = Firewall(policy, full_name(rules), identity=identity, kept=kept, link=iface, flows_max=flows_max)
    stage.again = RulesAgain(stage.file)
    path = (options.control or path_for("vtl-fw", iface)).with_suffix(".state")
    stage.keeper = keeper(path, stage.tracker, identity, time.monotonic(), forget=forget)
    if options.log is not None or not (options.json or options.watch):
        stage.say = lambda line: log_lines.tell(printable(line))
    return stage


def keeper(
    path: Path, tracker: Tracker, identity: Identity | None, now: float, *, forget: bool
) -> StateKeeper:
    """Restore the state that the firewall before this one kept in a file, unless it is to be forgotten.

    Returns the keeper that writes the file from now on, and at the end of the process. A file that cannot be
    read or written is a warning.
    """
    boot = _BOOT.read_text().strip()
    file = broker.StateFile(path, OCTETS_MAX)
    try:
        octets = None if forget else file.read()
        if octets is not None and recall(octets.decode("ascii"), boot, tracker, identity, now):
            log.info("%s: restored", path)
    except (OSError, ValueError) as e:
        why = e.strerror if isinstance(e, OSError) and e.strerror else e
        log.warning("%s: not used: %s", path, why)
    failed = False

    def write(text: str) -> bool:
        return tried(lambda: file.begin(text))

    def tried(step: Callable[[], bool]) -> bool:
        nonlocal failed
        try:
            return failed or step()
        except OSError as e:
            failed = True
            log.warning("%s: %s; a restart will have to learn anew", path, e.strerror or e)
        return True

    def close() -> None:
        tried(file.finish)
        made.close()
        tried(file.finish)

    made = StateKeeper(tracker, identity, boot, write)
    atexit.register(close)
    return made
