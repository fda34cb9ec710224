"""Control sockets: requests that anybody writes to a service, and answers that anybody gives to a client.

Checked: a request has an answer that JSON can say, ok or with one line of error, and no exception comes out;
frames pass by the same rules afterwards unless a reload was asked for; the connections that a service knows
stay as many or fewer; a client gets a result or VTLError.
"""

import asyncio
import json

from tests.fuzz.octets import Octets, blob
from tests.fuzz.places import place
from tests.unit.fw.fw import IN, OUT, Wire, policy, segment
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.stage import Freeze
from vtl_tools.services.freeze.verbs import verbs
from vtl_tools.services.fw.files import pack
from vtl_tools.services.fw.stage import Firewall

RULES = "allow out tcp port 80\nallow in tcp port 22 limit 9/s\ndeny any\n"
PLACE = place()
STEPS_MAX = 6
WORDS = [f'"{word}"'.encode() for word in (
    "flows", "kill", "explain", "reload", "status", "start", "stop", "report", "import", "export",
    "announce", "verb", "words", "upload", "file", "rule", "address", "dry_run", "name",
    "out", "tcp", "10.0.0.5:40000", "192.0.2.1:80",
)]  # fmt: skip


def firewall() -> Firewall:
    """A firewall that knows a connection."""
    stage = Firewall(policy(RULES), "fw.rules")
    talk = Wire(RULES)
    talk.tracker = stage.tracker
    talk.open()
    return stage


class Disk:
    """What keeps the state, but in no file: each write would be a process."""

    path = PLACE / "state"
    is_writing = False

    def __init__(self) -> None:
        self.written = self.failed = 0

    def begin(self, now: float) -> bool:
        self.written += 1
        return True


def freezing() -> Freeze:
    """vtl-freeze with a connection."""
    freezer = Freezer()
    for direction, flags, seq, ack in ((OUT, "S", 0, 0), (IN, "S.", 0, 1), (OUT, ".", 1, 1)):
        freezer.overhear(segment(direction, flags, seq, ack), direction is OUT, 1.0)
    return Freeze(freezer, "vm", snapshot=Disk())


async def ask(lines: list[bytes]) -> None:
    """Ask both services. A line that is no request goes along with the next one, as a file in memory."""
    stage, other = firewall(), freezing()
    services = (
        control.ControlServer(PLACE / "fw", {"status": lambda _: stage.status(0.0), **stage.verbs()}),
        control.ControlServer(PLACE / "freeze", {"status": lambda _: other.status(0.0), **verbs(other)}),
    )
    upload: bytes | None = None
    for line in lines:
        if not line.startswith(b"{"):
            upload = line
            continue
        before = len(stage.tracker.flows)
        for server in services:
            with SealedFile.of([upload or b""]) as sealed:
                answer, _ = await server.reply(line, None if upload is None else sealed)
            told = json.loads(json.dumps(answer))
            assert told["ok"] in (True, False)
            assert set(told) == {"ok", "result" if told["ok"] else "error"}
            assert told["ok"] or (isinstance(told["error"], str) and told["error"])
            read(json.dumps(answer).encode())
        assert len(stage.tracker.flows) <= before
        assert stage.tracker.receive(segment(OUT, "S", 0, vm=9), OUT, 1.0).why


def read(line: bytes) -> None:
    """Read an answer as a client does."""
    try:
        result = control.result_of(line, PLACE)
    except VTLError as err:
        assert str(err) or line
        return
    assert isinstance(result, dict)


def one(data: bytes) -> None:
    take = Octets(data)
    lines = []
    while take.left and len(lines) < STEPS_MAX:
        lines.append(take.blob())
    for line in lines:
        read(line)
    asyncio.run(ask(lines))


def seeds() -> list[bytes]:
    packed = blob(b"".join(pack({"fw.rules": b'include "more"\n', "more": b"deny any\n"})))
    reloads: list[dict[str, object]] = [
        {"verb": "reload", "file": "fw.rules"}, {"verb": "reload", "file": "fw.rules", "dry_run": True},
        {"verb": "reload", "file": "more"}, {"verb": "reload", "file": "none"},
    ]  # fmt: skip
    requests: list[list[object]] = [
        [{"verb": "status"}], [{"verb": "flows", "start": 0, "rule": "1", "address": "10.0.0.0/8"}],
        [{"verb": "kill", "words": ["out", "tcp", "10.0.0.5:40000", "192.0.2.1:80"]}],
        [{"verb": "explain", "words": ["in", "icmp", "1.2.3.4", "10.0.0.5", "type", "echo-request"]}],
        [{"verb": "explain", "words": ["out", "arp"]}],
        [{"verb": verb} for verb in ("start", "report", "stop", "announce", "import", "export")],
        [{"ok": True, "result": {}}, {"ok": False, "error": "x"}, {"ok": True, "result": []}, [], {}, 1],
    ]  # fmt: skip
    return [
        *(b"".join(blob(json.dumps(line).encode()) for line in lines) for lines in requests),
        *(packed + blob(json.dumps(request).encode()) for request in reloads),
        blob(b"[" * 5000),
        blob(b'{"verb": ["status"]}'),
    ]
