"""The folders are the layers: what the sources must keep to, told by reading them and not by running them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vtl_tools"
SOURCES = sorted(PACKAGE.rglob("*.py"))

RANK = {
    "bucket": 0,
    "errors": 0,
    "firewall": 3,
    "freeze": 3,
    "packet": 1,
    "parameters": 2,
    "privilege": 1,
    "confinement": 1,
    "custodian": 2,
    "text": 0,
    "snapshot": 4,
    "socks": 1,
    "watch": 1,
    "gateway": 2,
    "model": 2,
    "tcp": 2,
    "control": 3,
    "device": 3,
    "guard": 3,
    "interface": 1,
    "interfaces": 4,
    "lock": 3,
    "nft": 2,
    "leaktest": 3,
    "shortcut": 3,
    "stage": 4,
    "proxy_check": 1,
    "qmp": 4,
    "filter": 5,
    "stand_in": 5,
    "relay": 5,
    "runtime": 5,
    "tor": 2,
    "workers": 6,
    "cli": 7,
    "cmd": 8,
}
"""What may import what: only what ranks lower. A new part of common/ is given its place here."""

SANS_IO = ("bucket", "firewall", "freeze", "gateway", "model", "packet", "shortcut", "socks", "tcp")
IMPURE = {"asyncio", "random", "select", "selectors", "socket", "threading", "time"}
LINES_MAX = 600
SEQUENCE_NUMBERS = ("_nxt", "_una", "_seq")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part(module: str) -> str:
    """The layer of a module: vtl_tools.common.device.spec is of device, vtl_tools.cmd.bridge of cmd."""
    words = module.split(".")
    return words[2] if words[1] == "common" else words[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Each module that a source imports, anywhere in it; also under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{name(path)}: a relative import"
            assert node.level == 0, f"{name(path)}: a relative import"
            for alias in node.names:
                deeper = ROOT.joinpath(*node.module.split("."), alias.name)
                is_module = deeper.is_dir() or deeper.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def uses() -> list[tuple[str, str]]:
    ours = ((module_of(path), used) for path in SOURCES for used in imported(path))
    return sorted({(user, used) for user, used in ours if used.startswith("vtl_tools.")})


def test_every_part_has_its_rank() -> None:
    parts = {part(module_of(path)) for path in SOURCES if len(module_of(path).split(".")) > 2}
    assert parts <= set(RANK), "give the new part its place in RANK"


@pytest.mark.parametrize(("user", "used"), uses())
def test_imports_point_down(user: str, used: str) -> None:
    if part(user) == part(used):
        assert part(user) != "cmd", "no command imports another: what both need belongs in common/"
        return
    assert RANK[part(used)] < RANK[part(user)], f"{user} must not import {used}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_what_is_sans_io_reads_no_clock_no_socket_and_no_chance(path: Path) -> None:
    module = module_of(path)
    if len(module.split(".")) > 2 and part(module) in SANS_IO:
        assert not IMPURE & {used.partition(".")[0] for used in imported(path)}


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_source_says_what_it_is_for_and_stays_short(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "no docstring"
    assert text.count("\n") < LINES_MAX


@pytest.mark.parametrize("path", [p for p in SOURCES if p.name == "__init__.py"], ids=name)
def test_a_package_holds_nothing_but_its_docstring(path: Path) -> None:
    assert len(ast.parse(path.read_text()).body) == 1


def is_sequence_number(node: ast.expr) -> bool:
    word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return word.endswith(SEQUENCE_NUMBERS)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_sequence_numbers_are_compared_in_one_module_only(path: Path) -> None:
    """Elsewhere `<` would be wrong once in 4 GiB: seq_lt() and its siblings know the circle."""
    if path.name == "seq.py":
        return
    order = ast.Lt | ast.LtE | ast.Gt | ast.GtE
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare) and any(isinstance(op, order) for op in node.ops):
            wrong = [ast.unparse(node) for side in (node.left, *node.comparators) if is_sequence_number(side)]
            assert not wrong, f"{name(path)}:{node.lineno}: {wrong[0]}"
