"""The verbs of vtl-fw in the process that asks a running service, and what they print."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import question
from vtl_tools.services.fw.files import RuleReader, full_name, load_rules, log_warnings, pack
from vtl_tools.services.fw.parser import parse

Answer = dict[str, Any]

RELOAD_S: Final = 120.0
"""How long a service may take to compile the largest rule file while it forwards frames."""


def reload(path: Path, rules: str | None, *, dry_run: bool) -> Answer:
    """Send rule files to a service, and return its answer. Raises VTLError.

    rules: the file; None: the one that the service was given last, by its start or by a reload.
    """
    file = rules
    if file is None:
        policy = control.ask(path, "status")["policy"]
        file = str(policy.get("named_file", policy["file"]))
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
    log_warnings(file, answer["warnings"])
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


def reloaded(answer: Answer, *, dry_run: bool) -> str:
    """Return the line that sums up a reload."""
    counts = (
        f"{answer['ended']} connections {'would end' if dry_run else 'ended'}, {answer['flows']} are known"
    )
    return f"{answer['rules']} rules; {counts}"


def flow_row(flow: Answer) -> Sequence[str]:
    """Return a connection as cells: itself, its states, when it ends, its rule."""
    return flow["flow"], " ".join(flow["states"] or ()), f"{flow['ends_in_s']:.0f} s", flow["rule"]


def explanation(answer: Answer) -> Iterator[str]:
    """Yield the lines of an answer to `explain`."""
    for rule, why in answer["steps"]:
        yield rule
        yield f"    {why}"
    yield answer["rule"]
    yield f"    matches: {answer['verdict']}"
    for limited, left in answer.get("left", {}).items():
        name = "connections" if limited == "connections" else "new ones"
        yield f"    limit: room for {left} more {name}" if left else f"    limit: no more {name}: denied"
    if "known" in answer:
        yield f"but it belongs to a known connection: {answer['known']}"
