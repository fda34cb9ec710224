"""Rule files at the command line: errors all at once, presets in full, and policies that a script tests."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from lab.wait import PATIENCE_S
from tests.cmd.tools import BIN

README = (Path(__file__).parents[2] / "README.md").read_text()
POLICY = (
    "allow guest-basics resolver 10.0.0.1\nallow out tcp to 10.0.0.0/8 port https\nreject out\ndeny any\n"
)


def fw(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    ran = subprocess.run(
        [BIN / "vtl-fw", *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "web.rules"
    path.write_text(text)
    return path


def test_check_prints_all_errors_of_a_file_and_what_it_includes(tmp_path: Path) -> None:
    path = write(tmp_path, 'drop in\ninclude "more"\nallow out tcp dport 80\ndeny any\n')
    (tmp_path / "more").write_text("allow out tcp\nallow 22/tcp\n")
    out, err = fw("check", path, code=2)
    assert out == ""
    places = [re.match(r"vtl-fw: (\S+): expected .*; write '(.*)'$", line) for line in err.splitlines()]
    assert [found and found.groups() for found in places] == [
        (f"{path}:1:1", "deny"),
        (f"{path}:3:15", "port"),
        (f"{tmp_path}/more:2:7", "tcp port 22"),
    ]


def test_twenty_errors_are_printed_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "alow out\n" * 30 + "deny any\n")
    lines = fw("check", path, code=2)[1].splitlines()
    assert len(lines) == 21
    assert lines[19].startswith(f"vtl-fw: {path}:20:1: expected")
    assert lines[20] == f"vtl-fw: {path}: and 10 more"


def test_a_service_and_explain_print_all_errors_too(tmp_path: Path) -> None:
    path = write(tmp_path, "alow out\ndrop in\ndeny any\n")
    links = (f"qemu:unix:{tmp_path}/a,server", f"qemu:unix:{tmp_path}/b,server")
    started = fw("--iface", links[0], "--uplink", links[1], "--rules", path, code=2)[1]
    explained = fw("explain", "--rules", path, "out", "arp", code=2)[1]
    assert started == explained == fw("check", path, code=2)[1]
    assert started.count("\n") == 2


def test_check_gives_programs_the_errors_as_a_list(tmp_path: Path) -> None:
    path = write(tmp_path, "alow out\n" * 21 + "deny any\n")
    event = json.loads(fw("check", "--json", path, code=2)[0])
    assert (event["event"], event["exit"], event["left_out"]) == ("error", 2, 1)
    assert [error["line"] for error in event["errors"]] == list(range(1, 21))
    assert event["errors"][0]["problem"].startswith("expected a rule")
    assert event["error"] == f"{path}:1:1: {event['errors'][0]['problem']}"


def test_check_shows_the_rules_that_a_preset_stands_for(tmp_path: Path) -> None:
    path = write(tmp_path, POLICY)
    lines = fw("check", "--expand", path)[0].splitlines()
    assert lines[-1] == f"{path}:4: deny any"
    assert f"{path}:1.8: allow out tcp, udp to 10.0.0.1 port 53" in lines
    expanded = json.loads(fw("check", "--expand", "--json", path)[0])["expanded"]
    assert [f"{one['rule']}: {one['text']}" for one in expanded] == lines
    plain = write(tmp_path, "".join(line.partition(": ")[2] + "\n" for line in lines))
    again = fw("check", "--expand", plain)[0].splitlines()
    assert [line.partition(": ")[2] for line in again] == [line.partition(": ")[2] for line in lines]


@pytest.mark.parametrize(
    ("packet", "code"),
    [
        ("out tcp 10.0.0.5:40000 10.2.3.4:443", 0),
        ("out udp 10.0.0.5:40000 10.0.0.1:53", 0),
        ("out udp 10.0.0.5:40000 192.0.2.1:53", 1),
        ("out tcp 10.0.0.5:40000 10.2.3.4:80", 1),
        ("in tcp 10.2.3.4:40000 10.0.0.5:22", 1),
        ("out arp", 0),
        ("out tcp nonsense", 2),
    ],
)
def test_a_policy_is_tested_by_the_exit_status_of_explain(tmp_path: Path, packet: str, code: int) -> None:
    path = write(tmp_path, POLICY)
    out = fw("explain", "--exit-code", "--json", "--rules", path, *packet.split(), code=code)[0]
    if code < 2:
        assert (json.loads(out)["verdict"] == "allow") == (code == 0)


def test_the_first_example_of_the_readme_has_no_warnings(tmp_path: Path) -> None:
    found = re.search(r"^# cat web\.rules\n(.*?)^# vtl-fw check web\.rules$", README, re.M | re.S)
    assert found is not None
    path = write(tmp_path, found[1])
    assert fw("check", path)[1].endswith("rules, 0 warnings\n")
