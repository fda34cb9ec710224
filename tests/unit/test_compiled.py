"""The hot modules can be compiled: what the compiler does not tell, read from the sources."""

import ast
from collections.abc import Iterator
from pathlib import Path

import setup

ROOT = Path(__file__).resolve().parents[2]


def bases(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, str]]:
    """Return each class with each name that it inherits from."""
    for made in ast.walk(tree):
        if isinstance(made, ast.ClassDef):
            for base in made.bases:
                named = base.value if isinstance(base, ast.Subscript) else base
                yield made, ast.unparse(named)


def test_heirs_of_compiled_classes_are_compiled() -> None:
    """Otherwise TypeError is raised when one is made. A protocol is not made."""
    hot, interpreted = set(setup.hot_modules()), []
    for path in (ROOT / "vtl_tools").rglob("*.py"):
        where = str(path.relative_to(ROOT))
        if where in hot:
            continue
        tree = ast.parse(path.read_text())
        origins = {
            alias.asname or alias.name: f"{node.module.replace('.', '/')}.py"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        interpreted += [
            f"{where}: {made.name} inherits from {name}"
            for made, name in bases(tree)
            if origins.get(name) in hot and "Protocol" not in map(ast.unparse, made.bases)
        ]
    assert not interpreted
