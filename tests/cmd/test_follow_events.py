"""`events` of a running service, followed from another process."""

import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.wait import PATIENCE_S
from tests.cmd.tools import BIN
from vtl_tools.common.cli.event_lines import line_of
from vtl_tools.common.runtime.events import FOLLOWERS_MAX

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose name leaves room for that of a socket."""
    with tempfile.TemporaryDirectory(prefix="vtl-") as name:
        yield Path(name)


@contextmanager
def service(folder: Path, *extra: str) -> Iterator["subprocess.Popen[str]"]:
    """vtl-bridge between two sockets."""
    links = ("--iface", f"qemu:unix:{folder}/a,server", "--iface", f"qemu:unix:{folder}/b,server")
    command = [BIN / "vtl-bridge", *links, "--json", "--guard", "off", *extra]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder)
    ) as process:
        assert process.stdout is not None
        assert '"ready"' in process.stdout.readline()
        yield process
        process.kill()


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "VTL_RUN": str(folder)}


@contextmanager
def follower(folder: Path, *extra: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [BIN / "vtl-bridge", "events", "--last", "9", *extra],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(folder),
    ) as process:  # fmt: skip
        yield process
        process.kill()


def lines_until(process: "subprocess.Popen[str]", what: str) -> list[str]:
    assert process.stdout is not None
    lines = [process.stdout.readline()]
    while what not in lines[-1]:
        assert lines[-1], lines
        lines.append(process.stdout.readline())
    return lines


def test_events_are_followed_as_json_until_the_service_ends(folder: Path) -> None:
    with service(folder) as running, follower(folder, "--json") as reader:
        first, *_ = lines_until(reader, '"up": false')
        assert json.loads(first)["event"] == "ready"
        running.terminate()
        out, err = reader.communicate(timeout=PATIENCE_S)
        last = json.loads(out.splitlines()[-1])
        assert (last["event"], last["status"]["service"]) == ("stats", "vtl-bridge")
        assert err == "vtl-bridge: the service ended\n"
        assert reader.returncode == 0


def test_events_are_lines_with_times_for_people(folder: Path) -> None:
    with service(folder) as running, follower(folder) as reader:
        first, *_ = lines_until(reader, "is down")
        at = re.escape(f"qemu:unix:{folder}/a,server")
        assert re.fullmatch(rf"{STAMP} {at} ready: process \d+, {at} - .*\n", first)
        running.terminate()
        out, _ = reader.communicate(timeout=PATIENCE_S)
        assert "the service ended; " in out.splitlines()[-1]
        assert reader.returncode == 0


def test_an_interrupted_follower_ends_and_the_service_goes_on(folder: Path) -> None:
    with service(folder) as running:
        for _ in range(FOLLOWERS_MAX + 1):
            with follower(folder) as reader:
                lines_until(reader, "ready")
                reader.send_signal(signal.SIGINT)
                assert reader.wait(PATIENCE_S) == 130
        assert running.poll() is None


def test_a_service_that_is_killed_is_told_of_by_the_one_who_follows(folder: Path) -> None:
    with service(folder) as running, follower(folder, "--json") as reader:
        lines_until(reader, '"up": false')
        running.kill()
        out, _ = reader.communicate(timeout=PATIENCE_S)
        last = json.loads(out.splitlines()[-1])
        assert last["event"] == "error"
        assert last["exit"] in (6, 7), "it does not answer, or its record says that it died"
        assert last["service"] == "vtl-bridge"
        assert reader.returncode == last["exit"]


def test_followers_that_do_not_read_leave_room_for_those_who_ask(folder: Path) -> None:
    with service(folder), ExitStack() as stack:
        for _ in range(FOLLOWERS_MAX):
            lines_until(stack.enter_context(follower(folder)), "ready")
        late = subprocess.run(
            [BIN / "vtl-bridge", "events"], capture_output=True, text=True, env=environment(folder)
        )
        assert (late.returncode, late.stderr) == (
            1, f"vtl-bridge: events: {FOLLOWERS_MAX} clients follow already; end one of them\n",
        )  # fmt: skip
        asked = subprocess.run(
            [BIN / "vtl-bridge", "status", "--json"],
            capture_output=True,
            text=True,
            env=environment(folder),
        )
        assert json.loads(asked.stdout)["service"] == "vtl-bridge"


@pytest.mark.parametrize("tool", ["vtl-bridge", "vtl-fw"])
def test_where_no_service_runs_events_says_so(tool: str, folder: Path) -> None:
    done = subprocess.run([BIN / tool, "events"], capture_output=True, text=True, env=environment(folder))
    assert done.returncode == 6
    assert done.stderr.startswith(f"{tool}: no service runs here")


def test_an_event_that_no_service_of_this_version_tells_is_a_line_all_the_same() -> None:
    for odd in {"repeats": {}, "period_s": "long"}, {"repeats": 2}, {"links": 7}:
        line = line_of({"event": "ready", "time": "now", "link": "vmnet1", **odd}, {})
        assert line.startswith("now vmnet1 ready: ")
