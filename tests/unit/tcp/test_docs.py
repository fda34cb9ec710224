"""What the documents say of the endpoint: the tests they name exist, and the driver runs."""

import re
from functools import cache
from pathlib import Path
from random import Random

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.memory import pair
from vtl_tools.common.packet import address
from vtl_tools.common.tcp import wire
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, State

ROOT = Path(__file__).resolve().parents[3]


def test_every_clause_of_the_sender_has_a_verdict_and_what_is_met_is_shown():
    for what, verdict, shown in rows_of("tcp-sender.md"):
        check(what, verdict, shown)


def test_every_requirement_has_a_verdict_and_what_is_met_is_shown():
    rows = rows_of("rfc9293.md")
    for word, last in ("MUST", 69), ("SHLD", 31), ("MAY", 18):  # RFC 9293 appendix B, in order
        heads = [what.split(":")[0] for what, *_ in rows if what.startswith(f"{word}-")]
        numbers = [int(number) for head in heads for number in re.findall(rf"{word}-(\d+)", head)]
        assert numbers == list(range(1, last + 1)), word
    for what, verdict, shown in rows:
        check(what, verdict, shown)


@cache
def names_of_tests():
    homes = "unit/tcp", "sim", "lab", "oracle/tcp"
    sources = [path for home in homes for path in ROOT.glob(f"tests/{home}/*.py")]
    names = set(
        re.findall(r"(?:def |^)(test_\w+|TestHostile)", "\n".join(p.read_text() for p in sources), re.M)
    )
    return names | {path.name for path in (ROOT / "tests/unit/tcp/scripts").iterdir()}


def rows_of(page):
    found = re.findall(
        r"^\| ((?:\w+[ -])?\d.*?) \| (.*?) \| ?(.*?) ?\|$", (ROOT / "docs" / page).read_text(), re.M
    )
    assert found
    return found


def check(what, verdict, shown):
    assert verdict in ("met", "not met", "not applicable"), what
    named = re.findall(r"`([\w.-]+)`", shown)
    assert set(named) <= names_of_tests(), what
    assert named or verdict != "met", what


def test_the_driver_of_the_documentation_echoes():
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/endpoint.md").read_text(), re.M | re.S)
    scope = {}
    exec(compile(code, "endpoint.md", "exec"), scope)
    near, far = pair()
    for device in near, far:
        device.connect()
    echo = scope["Echo"](far, b"secret")
    macs = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
    path = wire.Path(*macs, address.ip("10.0.0.1"), address.ip("10.0.0.2"), 40000, 7)
    now, client = 100.0, Endpoint(path, b"mine", 100.0)
    client.connect()
    data, got = Random(1).randbytes(100_000), bytearray()
    left = data
    for _ in range(5000):
        for frame in near.read():
            client.receive(frame, now)
        client.wake(now)
        if client.state is State.ESTABLISHED and left:
            left = left[client.write(left) :]
            if not left:
                client.close()
        while piece := client.read():
            got += piece
        if frames := client.transmit(now):
            near.write(Batch.of(frames))
        echo.turn(now)
        now += 0.001
        if client.at_eof and echo.tcp.state is State.CLOSED:
            break
    near.close()
    far.close()
    assert got == data
    assert echo.tcp.ended is Ended.CLOSED
