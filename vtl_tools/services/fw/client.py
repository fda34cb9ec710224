"""The verbs of vtl-fw in the process that asks a running service, and what they print."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host.broker import replace
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import question
from vtl_tools.services.fw.files import RuleReader, full_name, load_rules, log_warnings, pack
from vtl_tools.services.fw.parser import parse

Answer = dict[str, Any]

TRANSFER_S: Final = 60.0
"""How long a service may take to write or read what it knows while it forwards frames."""
RELOAD_S: Final = 120.0
"""How long a service may take to compile the largest rule file while it forwards frames."""


def _named_file(path: Path) -> str:
    """Return the rule file that a service was given; "": standard input. Raises VTLError."""
    policy = control.ask(path, "status").get("policy")
    name = policy.get("named_file") if isinstance(policy, dict) else None
    if not isinstance(name, str):
        raise VTLError(f"{path}: its answer names no rule file; give --rules")
    return name


def reload(path: Path, rules: str | None, *, dry_run: bool) -> Answer:
    """Send rule files to a service, and return its answer. Raises VTLError.

    rules: the file; None: the one that the service was given last, by its start or by a reload.
    """
    file = rules or _named_file(path)
    if not file:
        raise SpecError("reload: the rules came from standard input; give --rules")
    reader, name = RuleReader(), full_name(file)
    if not rules:
        parse(name, reader)  # a service that was taken over could name any file: it is sent rules only
    reader.gather(name)
    try:
        with SealedFile.of(pack(reader.files)) as upload:
            answer = control.ask(
                path, "reload", patience_s=RELOAD_S, upload=upload, file=name, dry_run=dry_run
            )
    except VTLError:
        load_rules(name, reader)  # if the file is at fault, this error has the line
        raise
    log_warnings(file, ["{file}:{line}:{column}: {problem}".format(**one) for one in answer["warnings"]])
    return answer


def flows(
    paths: Sequence[Path], limit: int, rule: str | None, address: str | None
) -> tuple[list[Answer], bool]:
    """Return the connections of services, `limit` of each at most, and whether there are more.

    rule, address: only the connections of that rule and address or prefix; None: all.
    """
    found: list[Answer] = []
    more = False
    for path in paths:
        room, start = limit, 0
        while room and start is not None:
            answer = control.ask(path, "flows", start=start, rule=rule, address=address)
            found += answer["flows"][:room]
            more |= len(answer["flows"]) > room
            room, start = max(0, room - len(answer["flows"])), answer["next"]
        more |= start is not None
    return found, more


def forget(paths: Sequence[Path]) -> list[Answer]:
    """Let a service forget its VM. Raises VTLError, also if there are several services."""
    if len(paths) > 1:
        raise SpecError("forget: several services run, and each would cut off its VM; choose one by --link")
    return [control.ask(path, "forget") for path in paths]


def forgotten(answer: Answer) -> str:
    """Return the line that sums up what a service forgot."""
    mac, addresses = answer["mac"] or "no Ethernet address", ", ".join(answer["addresses"]) or "no IP address"
    return f"{answer['link']}: forgot {mac}, {addresses}; {answer['ended']} connections ended"


def kill(paths: Sequence[Path], words: Sequence[str]) -> None:
    """End a connection at each service that has it. Raises VTLError if none has it."""
    question.read(words)
    refusals = []
    for path in paths:
        try:
            control.ask(path, "kill", words=words)
        except VTLError as e:
            refusals.append(e)
    if len(refusals) == len(paths):
        raise refusals[0]


def only_one(paths: Sequence[Path]) -> Path:
    """Return the one control socket. Raises SpecError if there are several."""
    path, *others = paths
    if others:
        raise SpecError("several services run here; choose one with --link")
    return path


def export_state(path: Path) -> Answer:
    """Return what a service knows of its VM: the text as `state`, and counts. Raises VTLError."""
    answer = control.ask(path, "export", patience_s=TRANSFER_S)
    state = answer.get("state")
    if not isinstance(state, str) or not state.isascii() or not state.replace("\n", "").isprintable():
        raise VTLError(f"{path}: its answer is no state; the service is not to be trusted")
    return answer


def write_state(file: str, text: str) -> None:
    """Replace a file as a whole, with mode 0600. Raises VTLError."""
    try:
        replace(Path(file), [text])
    except OSError as e:
        raise VTLError(f"{file}: {e.strerror}; name a file that can be written") from None


def import_state(path: Path, octets: bytes) -> Answer:
    """Have a service take up what another knew of the VM, and return its answer. Raises VTLError."""
    with SealedFile.of([octets]) as upload:
        return control.ask(path, "import", patience_s=TRANSFER_S, upload=upload)


def imported(answer: Answer) -> str:
    """Return the line that sums up an import."""
    vm = "the VM is known" if answer["identity"] else "the identity of the VM was not taken"
    return f"{answer['connections']} connections; {vm}"


def reloaded(answer: Answer, *, dry_run: bool) -> str:
    """Return the line that sums up a reload."""
    counts = (
        f"{answer['ended']} connections {'would end' if dry_run else 'ended'}, {answer['flows']} are known"
    )
    return f"{answer['rules']} rules; {counts}"


def flow_row(flow: Answer) -> Sequence[str]:
    """Return a connection as cells: itself, its states, when it ends, its rule."""
    return flow["flow"], " ".join(flow["states"] or ()), f"{flow['ends_in_s']:.0f} s", flow["rule"]


def is_allowed(answer: Answer) -> bool:
    """Return whether an answer to `explain` is that the packet passes."""
    return bool(answer["verdict"] == "allow")


def explanation(answer: Answer) -> Iterator[str]:
    """Yield the lines of an answer to `explain`."""
    identity = answer.get("identity")
    if identity and identity["verdict"] == "deny":
        yield f"deny: {identity['text']}"
        yield f"    {identity['reason']}: {identity['remedy']}"
        return
    if identity:
        yield f"identity: {identity['text']}"
    for step in answer["steps"]:
        yield f"{step['rule']}: {step['text']}"
        yield f"    {step['why']}"
    yield f"{answer['rule']}: {answer['text']}"
    yield f"    matches: {answer['verdict']}"
    for limited, left in answer.get("left", {}).items():
        name = "connections" if limited == "connections" else "new ones"
        yield f"    limit: room for {left} more {name}" if left else f"    limit: no more {name}: denied"
    if "known" in answer:
        yield f"but it belongs to a known connection: {answer['known']}"
