"""The folders are the layers: rules that the sources keep, checked by reading them and not by running them.

Each test lists every offender at once.
"""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "vtl_tools"
SOURCES = sorted(PACKAGE.rglob("*.py"))

RANK = {
    "bounded": 0,
    "errors": 0,
    "rate_limit": 0,
    "repeats": 0,
    "text": 0,
    "host": 1,
    "packet": 1,
    "rules": 2,
    "socks": 1,
    "table": 1,
    "units": 1,
    "guest_net": 2,
    "model": 2,
    "tcp": 2,
    "device": 3,
    "stage": 4,
    "relay": 5,
    "runtime": 5,
    "selftest": 5,
    "session": 6,
    "doctor": 7,
    "services": 7,
    "cli": 8,
    "cmd": 9,
}
"""What may import what: only parts of a lower rank. A new part of common/ gets its place here."""

SANS_IO = (
    "common.bounded",
    "common.guest_net",
    "common.model",
    "common.packet",
    "common.rate_limit",
    "common.repeats",
    "common.rules",
    "common.socks",
    "common.tcp",
    "services.ack",
    "services.freeze",
    "services.fw",
    "services.subnet",
    "services.vortex",
)
EDGES = (
    "services.ack.start",
    "services.freeze.qmp",
    "services.freeze.stage",
    "services.freeze.start",
    "services.freeze.verbs",
    "services.fw.rules_again",
    "services.fw.selftest",
    "services.fw.stage",
    "services.fw.start",
    "services.fw.transfer",
    "services.vortex.client_keys",
    "services.vortex.listener",
    "services.vortex.port_events",
    "services.vortex.sock_diag",
    "services.vortex.start",
    "services.vortex.tap",
    "services.vortex.volunteer",
)
"""Parts of these that do I/O."""
IMPURE = {"asyncio", "random", "select", "selectors", "socket", "threading", "time"}
LINES_MAX = 450
COMMAND_LINES_MAX = 200
SEQUENCE_NUMBERS = ("_nxt", "_una", "_seq")
LOOSE = {"bounded", "errors", "rate_limit", "repeats", "socks", "stage", "table", "text", "units"}
"""The only modules of common/ that are in no package of it."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part(module: str) -> str:
    """The layer of a module: common.device.spec is of device, services.fw.rule of services."""
    words = module.split(".")
    return words[1] if words[0] == "common" and len(words) > 1 else words[0]


def service(module: str) -> str:
    """The service that a module belongs to: services.fw.rule to fw."""
    words = module.split(".")
    return words[1] if words[0] == "services" and len(words) > 1 else ""


def imported(path: Path) -> Iterator[str]:
    """Each module that a source imports, anywhere in it; also under TYPE_CHECKING."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                deeper = ROOT.joinpath(*module.split("."), alias.name)
                is_module = deeper.is_dir() or deeper.with_suffix(".py").is_file()
                yield f"{module}.{alias.name}" if is_module else module


@cache
def graph() -> dict[str, set[str]]:
    """Who imports whom within the package, by module name without `vtl_tools.`."""
    ours = "vtl_tools."
    return {
        module_of(path): {used.removeprefix(ours) for used in imported(path) if used.startswith(ours)}
        for path in SOURCES
    }


def circles() -> list[list[str]]:
    """Sets of modules that import each other (strongly connected components, Tarjan)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for used in graph().get(module, ()):
            if used not in number:
                visit(used)
                low[module] = min(low[module], low[used])
            elif used in stack:
                low[module] = min(low[module], number[used])
        if low[module] == number[module]:
            start = stack.index(module)
            if len(stack) - start > 1:
                found.append(sorted(stack[start:]))
            del stack[start:]

    for module in graph():
        if module not in number:
            visit(module)
    return found


def test_every_part_has_its_rank() -> None:
    parts = {part(module) for module in graph() if "." in module}
    assert parts <= set(RANK), "give the new part its place in RANK"


def test_only_a_few_modules_of_common_are_in_no_package() -> None:
    assert {path.stem for path in (PACKAGE / "common").glob("*.py")} - {"__init__"} == LOOSE


def test_imports_point_down() -> None:
    wrong = [
        f"{user} imports {used}"
        for user, uses in graph().items()
        for used in uses
        if "." in user and part(user) != part(used) and RANK[part(used)] >= RANK[part(user)]
    ]
    assert not wrong


def test_no_service_and_no_command_imports_another() -> None:
    wrong = [
        f"{user} imports {used}"
        for user, uses in graph().items()
        for used in uses
        if (service(user) and service(used) not in ("", service(user)))
        or (part(user) == part(used) == "cmd" and used != f"{user}_verbs")
    ]
    assert not wrong


def test_no_two_files_import_each_other() -> None:
    assert not circles()


def test_no_public_class_name_is_used_twice() -> None:
    homes = defaultdict(list)
    for path in SOURCES:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(module_of(path))
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


def test_sans_io_parts_read_no_clock_no_socket_and_no_random_numbers() -> None:
    wrong = [
        f"{module_of(path)} imports {name}"
        for path in SOURCES
        if module_of(path).startswith(SANS_IO) and not module_of(path).startswith(EDGES)
        for name in sorted(IMPURE & {used.partition(".")[0] for used in imported(path)})
    ]
    assert not wrong


def test_every_source_has_a_docstring() -> None:
    assert not [module_of(path) for path in SOURCES if not ast.get_docstring(tree(path))]


def test_every_source_is_short() -> None:
    lines = {path: path.read_text().count("\n") for path in SOURCES}
    long = {
        module_of(path): count
        for path, count in lines.items()
        if count > (COMMAND_LINES_MAX if part(module_of(path)) == "cmd" else LINES_MAX)
    }
    assert not long


def test_a_package_holds_nothing_but_its_docstring() -> None:
    assert not [module_of(p) for p in SOURCES if p.name == "__init__.py" and len(tree(p).body) != 1]


def test_imports_are_absolute() -> None:
    nodes = ((path, node) for path in SOURCES for node in ast.walk(tree(path)))
    assert not [module_of(path) for path, node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def is_sequence_number(node: ast.expr) -> bool:
    word = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return word.endswith(SEQUENCE_NUMBERS)


def test_sequence_numbers_are_compared_in_one_module_only() -> None:
    """Elsewhere `<` would be wrong once in 4 GiB: seq_lt() and its siblings know the circle."""
    order = ast.Lt | ast.LtE | ast.Gt | ast.GtE
    wrong = [
        f"{module_of(path)}:{node.lineno}: {ast.unparse(node)}"
        for path in SOURCES
        if path.name != "seq.py"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Compare)
        and any(isinstance(op, order) for op in node.ops)
        and any(is_sequence_number(side) for side in (node.left, *node.comparators))
    ]
    assert not wrong
