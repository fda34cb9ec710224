"""What the documentation shows works: its programs run, its commands are meant, its Python compiles."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from examples.example_service import Without
from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import ROOT, TOOLS, command, context
from tests.unit.device.helpers import ether, octets, plain, tcp
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.runtime import control

TEXTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
PAGES = sorted((ROOT / "man").iterdir())


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


# --- the texts


def fences(path: Path) -> Iterator[tuple[str, str]]:
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)


def commands(path: Path) -> Iterator[list[str]]:
    """The words of each of our tools' command lines in a page or a text, as a shell would split them."""
    text = path.read_text().replace("\\e\n", "").replace("\\\n", "")
    for line in text.splitlines():
        match = re.match(r"^(?:\.Dl )?\s*(?:Exec\w+=\S*/|[#$] )(vtl-\w+ .*)", line)
        if match:
            words = shlex.split(match[1].partition(" |")[0].partition(" #")[0])
            yield words[:-1] if words[-1] == "&" else words


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_python_in_the_texts_compiles(path: Path) -> None:
    for language, code in fences(path):
        if language == "python":
            compile(code, name(path), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("path", [*TEXTS, *PAGES], ids=name)
def test_command_lines_in_the_texts_are_what_the_tools_take(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in "subnet.key", "udt.key":  # read while the command line is
        (tmp_path / key).write_bytes(bytes(16))
    monkeypatch.chdir(tmp_path)
    for tool, *words in commands(path):
        assert tool in TOOLS, tool
        group = command(tool)
        if words and words[0] in group.commands:
            verb = group.commands[words[0]]
            verb.make_context(words[0], words[1:], parent=context(tool))
            continue
        links = group.make_context(tool, words).params.get("iface", ())
        for spec in [links] if isinstance(links, str) else links:
            open_device(re.sub(r"\$\w+", "/variable", spec)).close()


def test_there_are_command_lines_to_check() -> None:
    found = {path.name: len(list(commands(path))) for path in [*TEXTS, *PAGES]}
    for path in "README.md", "deploy.md", "vtl-bridge.1", "vtl-guard.1", "vtl-tor.1":
        assert found[path] > 1, path


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_in_the_texts_lead_somewhere(path: Path) -> None:
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", path.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", prose):
        assert (path.parent / target).exists(), target


def test_the_overview_of_the_code_names_every_file_of_common() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "vtl_tools/common").iterdir():
        if path.suffix == ".py" and path.stem != "__init__":
            assert f"`{path.name}`" in text, path.name


# --- the programs


def test_the_example_drops_its_ethertype_and_counts_it() -> None:
    service = Without(0x88B5)
    passed: list[bytes] = []
    service.out[1] = lambda batch, now: passed.extend(octets(batch))
    other = tcp(b"data")
    tagged = NONE + ether()[:12] + b"\x81\x00\x00\x07" + ether()[12:]
    runt = bytes(12)
    service.on_batch(0, Batch.of([plain(1), other, tagged, plain(2), runt]), 0.0)
    assert passed == [other[10:], runt[10:]]
    assert service.drops == {"ethertype": 3}


@pytest.fixture
def scene(lab: Lab) -> tuple[Host, Host, Host]:
    """client (10.9.0.1) - vmnet1 [middle] eth0 - server (10.9.0.2)."""
    return line_of_three(lab)


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


@contextmanager
def running(host: Host, program: str, *arguments: str | Path) -> Iterator["subprocess.Popen[str]"]:
    process = host.popen(
        sys.executable, ROOT / "examples" / program, *arguments, stdout=subprocess.PIPE, text=True
    )
    yield process
    assert process.poll() is None
    process.terminate()
    process.wait(PATIENCE_S)


@pytest.mark.lab
def test_two_of_figure_1_are_a_bridge(scene: tuple[Host, Host, Host]) -> None:
    client, middle, _ = scene
    with running(middle, "figure1.py", "vmnet1", "eth0"):
        assert not reaches(client, "10.9.0.2")
        with running(middle, "figure1.py", "eth0", "vmnet1"):
            until(lambda: reaches(client, "10.9.0.2"), "the bridge")
            assert reaches(client, "fd09::2")
    assert not reaches(client, "10.9.0.2")


@pytest.mark.lab
def test_the_example_is_a_service_like_ours(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    client, middle, _ = scene
    socket = lab.dir / "x.sock"
    links = ("--iface", "vmnet1", "--iface", "eth0", "--control", socket, "--json")
    with running(middle, "example_service.py", *links) as process:
        assert process.stdout is not None
        assert '"ready"' in process.stdout.readline()
        assert reaches(client, "10.9.0.2")
        assert not reaches(client, "fd09::2")
        assert control.ask(socket, "status")["drops"]["ethertype"] > 0


def test_the_example_says_what_is_wrong_with_its_usage() -> None:
    program = [sys.executable, ROOT / "examples/example_service.py", "--iface", "a"]
    ran = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "example-service: give --iface twice; see 'example_service.py --help'\n"


def test_command_lines_are_found_where_they_are() -> None:
    """The finder above, on an example: what it does not see it cannot check."""
    path = ROOT / "man/vtl-bridge.1"
    assert ["vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0"] in list(commands(path))
    with pytest.raises(click.NoSuchOption):
        command("vtl-bridge").make_context("vtl-bridge", ["--ifaces", "a"])
