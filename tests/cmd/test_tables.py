"""Every table of the tools on terminals of several widths, and in a pipe: numbers are whole, lines fit."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.wait import PATIENCE_S
from tests.cmd.tools import BIN
from tests.terminal import STYLE, on_terminal, terminal
from vtl_tools.common.runtime import control
from vtl_tools.common.table import width_of

LINK = "qemu:unix:/run/user/1000/a-long-directory/net0.sock,server"
NUMBER = 123_456_789_012
RULE = "/etc/vtl/web.rules:3: allow out tcp from 10.0.2.0/24 to 2001:db8::/32 port 80, 443, 8080 limit 10/s"
FLOW = "in tcp [2001:db8:0:1:aaaa:bbbb:cccc:1]:40000 [2001:db8:0:2:aaaa:bbbb:cccc:2]:443"


def link_status(name: str) -> dict[str, Any]:
    return {
        "link": name, "up": True, "losses": 3, "rx_frames": NUMBER, "rx_octets": NUMBER, "tx_frames": 7,
        "tx_octets": 7, "drops": {"queue-full": 70_001, "too-big": 70_002, "malformed": 70_003},
    }  # fmt: skip


def status_of(service: str, **parts: object) -> dict[str, Any]:
    return {
        "service": service, "pid": 4242, "uptime_s": 5.5, "cpu_s": {"user": 1.0, "system": 2.0},
        "links": [link_status("vmnet1"), link_status(LINK)], "drops": {"denied": 70_004}, **parts,
    }  # fmt: skip


STATUSES = {
    "vtl-bridge": status_of(
        "vtl-bridge", stations={f"52:54:00:00:00:{i:02x}": {"link": LINK, "age_s": 1.5} for i in range(60)}
    ),
    "vtl-fw": status_of(
        "vtl-fw",
        policy={"file": "/etc/vtl/" + "x" * 90, "rules": 70_010, "flows": 70_011},
        rules={RULE: {"packets": NUMBER, "octets": 9 * NUMBER}},
        guards={"vmnet1": {"form": "kept", "raised_anew": 70_012}},
    ),
    "vtl-tor": status_of("vtl-tor", carried={"opened": 70_020, "octets_up": NUMBER}),
    "vtl-subnet": status_of(
        "vtl-subnet",
        traffic={
            "2001:db8:0:1:aaaa:bbbb:cccc:1": dict.fromkeys(
                ("tx_frames", "tx_octets", "rx_frames", "rx_octets"), NUMBER
            )
        },
    ),
    "vtl-freeze": status_of(
        "vtl-freeze", freeze={"vm": "web", "frozen": True, "qmp": None, "answered": 70_030}
    ),
}
ANSWERS: dict[str, dict[str, Any]] = {
    "vtl-fw": {
        "flows": {
            "flows": [{"flow": FLOW, "states": ["SYN_SENT", "LISTEN"], "ends_in_s": 7440.0, "rule": RULE}],
            "next": None,
        }
    },
    "vtl-tor": {
        "flows": {
            "flows": [
                {
                    "from": "10.0.2.15", "from_port": 40000, "name": "a-name-that-goes-on." * 5 + "onion",
                    "to": "198.18.0.1", "to_port": 443, "stage": "established", "state": "ESTABLISHED",
                    "age_s": 70_040.0, "octets_up": NUMBER, "octets_down": 9 * NUMBER, "held": 0,
                }
            ]
        }
    },
    "vtl-freeze": {
        "report": {
            "connections": [
                {
                    "vm": "[2001:db8:0:1:aaaa:bbbb:cccc:1]:40000", "peer": "[2001:db8:0:2::2]:443",
                    "held_s": 70_050.0, "probes": NUMBER, "not_held": "",
                    "risks": ["closed", "user-timeout", "data-waits"],
                }
            ]
        }
    },
}  # fmt: skip
COMMANDS = [
    *(("status", tool) for tool in STATUSES), ("flows", "vtl-fw"), ("flows", "vtl-tor"),
    ("report", "vtl-freeze"),
]  # fmt: skip
EXACT = {
    "vtl-bridge status": {"70001", "70002", "70003", "70004"},
    "vtl-fw status": {"70010", "70011", "70012", NUMBER, 9 * NUMBER},
    "vtl-tor status": {"70020", NUMBER},
    "vtl-subnet status": {NUMBER},
    "vtl-freeze status": {"70030"},
    "vtl-fw flows": {"7440"},
    "vtl-tor flows": {"70040", NUMBER, 9 * NUMBER},
    "vtl-freeze report": {"70050", NUMBER},
}
ALL_AT_ONCE = """
import importlib, sys
for words in sys.argv[1:]:
    verb, tool = words.split(",")
    print(f"= {tool} {verb}", flush=True)
    sys.argv = [tool, verb]
    try:
        importlib.import_module("vtl_tools.cmd." + tool[4:]).main.main([verb], prog_name=tool)
    except SystemExit as end:
        assert not end.code, end.code
"""


@pytest.fixture(scope="module")
def run() -> Iterator[Path]:
    """A directory of control sockets on which one service of each tool answers what it is to."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(function: Callable[[], Any]) -> None:
        async def call() -> None:
            if asyncio.iscoroutine(made := function()):
                await made

        asyncio.run_coroutine_threadsafe(call(), loop).result(PATIENCE_S)

    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        servers = []
        for tool, status in STATUSES.items():
            answers = {"status": status, **ANSWERS.get(tool, {})}
            verbs = {verb: lambda _, told=told: told for verb, told in answers.items()}
            servers.append(control.ControlServer(Path(name) / f"{tool}-vmnet1.sock", verbs))
        for server in servers:
            on_loop(server.start)
        yield Path(name)
        for server in servers:
            on_loop(server.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def environment(run: Path, **more: str) -> dict[str, str]:
    cleared = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    return {**cleared, "VTL_RUN": str(run), "TERM": "xterm-256color", **more}


def everything() -> list[str | Path]:
    return [sys.executable, "-c", ALL_AT_ONCE, *(f"{verb},{tool}" for verb, tool in COMMANDS)]


def by_command(said: str) -> dict[str, str]:
    parts = re.split(r"^= (.*)\n", said, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_at_80_columns_packet_and_octet_columns_had_no_width(run: Path) -> None:
    for columns in 60, 80, 200:
        status, said = on_terminal(columns, everything(), environment(run))
        assert status == 0
        assert not set(said) & set("│┃━─┏")
        for command, text in by_command(STYLE.sub("", said)).items():
            assert all(width_of(line) <= columns for line in text.splitlines()), text
            for number in EXACT[command]:
                assert re.search(rf"(^|\s)({int(number):,}|{number})\b", text), (command, number, text)
        assert "\x1b[32mup\x1b[m" in said


def test_no_color_is_respected_and_a_pipe_has_neither_colour_nor_box_nor_ellipsis(run: Path) -> None:
    status, said = on_terminal(80, everything(), environment(run, NO_COLOR="1"))
    assert (status, "\x1b" in said) == (0, False)
    piped = subprocess.run(
        everything(), env=environment(run), capture_output=True, text=True, check=True
    ).stdout
    assert not set(piped) & set("│┃━─┏\x1b…")
    found = by_command(piped)
    for command, numbers in EXACT.items():
        for number in numbers:
            assert re.search(rf"(^|[\s=]){number}\b", found[command], re.M), (command, number, found[command])
    (flow,) = found["vtl-fw flows"].splitlines()
    assert flow.split("\t") == [FLOW, "SYN_SENT LISTEN", "7440 s", RULE]
    stations = [line for line in found["vtl-bridge status"].splitlines() if "\tstations\t" in line]
    assert len(stations) == 60
    assert stations[0] == f"vtl-bridge\t4242\tstations\t52:54:00:00:00:00\tlink={LINK}\tage_s=1.5"


def test_the_live_table_fits_the_screen_also_when_that_becomes_smaller(run: Path) -> None:
    with terminal(80, 24) as screen:
        command = [BIN / "vtl-bridge", "status", "--watch"]
        ends = screen.theirs
        with subprocess.Popen(command, stdin=ends, stdout=ends, stderr=ends, env=environment(run)) as process:
            pictures = 0

            def drawn() -> bool:
                """Whether two pictures were begun since then, and the last is complete."""
                whole = [line for line in screen.seen() if line]
                return screen.said.count("\x1b[J") >= pictures + 2 and "more lines" in whole[-1]

            try:
                screen.until(drawn)
                assert screen.top == 0, "it scrolled"
                seen = screen.seen()
                assert any(re.match(r"vmnet1 +up", line) for line in seen)
                assert len([line for line in seen if line]) <= 23
                pictures = screen.said.count("\x1b[J")
                screen.resize(60, 12)
                screen.until(drawn)
                assert len([line for line in screen.seen() if line]) <= 11
                process.send_signal(signal.SIGINT)
                assert process.wait(PATIENCE_S) == 130
            finally:
                process.kill()
        assert not screen.too_wide


def test_a_live_table_in_a_pipe_is_lines_for_programs(run: Path) -> None:
    command = [BIN / "vtl-bridge", "status", "--watch"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, text=True, env=environment(run)) as process:
        assert process.stdout is not None
        starts = [line for line, _ in zip(process.stdout, range(150), strict=False) if "\trunning\t" in line]
        assert len(starts) >= 2
        assert starts[0] == "vtl-bridge\t4242\trunning\tuptime_s=5.5\tcpu_s=3.0\n"
        process.kill()


def test_a_service_whose_live_table_would_go_into_a_pipe_says_so_before_it_does_anything(run: Path) -> None:
    command = [BIN / "vtl-bridge", "--iface", f"qemu:unix:{run}/q,server", "--iface", "pcap:x", "--watch"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(run), check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "vtl-bridge: --watch: no terminal to draw on; leave it out, and use 'vtl-bridge status --watch'\n"
    )
    assert not (run / "q").exists()


REPORT = """
from collections import Counter
from vtl_tools.common.selftest.report import print_table
from vtl_tools.common.selftest.result import TrialResult
asked = ["resolve a-long-name.example", *(f"connect 192.0.2.{i}:443" for i in range(20))]
name = "TCP to the world, by IPv6 and a hop-by-hop header"
held = TrialResult(name, 70_060, 1, 1, Counter(rst=70_061), asked)
leaked = TrialResult("DNS", 70_062, leaked=70_063, leaks=["to 192.0.2.1: " + "x" * 100])
print_table([held, leaked])
"""


def test_the_report_of_a_selftest_fits_and_names_each_leak_in_full(run: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", REPORT]
    for columns in 60, 80, 200:
        status, said = on_terminal(columns, command, environment(run))
        table, leak = STYLE.sub("", said.rpartition("\x1b[K")[2]).rstrip().rsplit("\n", 1)
        assert (status, leak) == (0, f"DNS: to 192.0.2.1: {'x' * 100}")
        assert all(width_of(line) <= columns for line in table.splitlines())
        for text in "70,061", "70,062", "70,063", "held", "leaked":
            assert text in table
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment(run))
    assert done.stderr == ""
    first, second, leak = done.stdout.splitlines()
    assert first.split("\t")[1:5] == ["70061", "0", "held", "rst 70061"]
    assert first.endswith("connect 192.0.2.19:443")
    assert second.split("\t")[:4] == ["DNS", "70062", "70063", "leaked"]


def test_a_terminal_without_an_ellipsis_shows_another_character(run: Path) -> None:
    words = environment(run, PYTHONIOENCODING="latin-1")
    status, said = on_terminal(60, [BIN / "vtl-fw", "flows"], words)
    assert (status, "?" in said) == (0, True)


def test_status_in_json_is_one_object_a_line_on_a_terminal_too(run: Path) -> None:
    status, said = on_terminal(60, [BIN / "vtl-fw", "status", "--json"], environment(run))
    assert status == 0
    assert json.loads(said)["rules"] == STATUSES["vtl-fw"]["rules"]
