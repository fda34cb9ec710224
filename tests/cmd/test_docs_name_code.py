"""Pages that name tests and functions name those that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "threat-model.md").read_text()


def promises() -> list[list[str]]:
    """The rows of the tables of promises: attacker, attempt, promise, tests."""
    rows = [line.strip("|").split("|") for line in TEXT.splitlines() if line.startswith("|")]
    return [row for row in rows if len(row) == 4 and not row[0].strip().startswith(("attacker", "---"))]


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"`(tests/\S+)::(\w+)`", TEXT)
    assert len(named) > 50
    missing = [f"{file}::{test}" for file, test in named if f"def {test}(" not in (ROOT / file).read_text()]
    assert not missing


def test_every_promise_has_a_test() -> None:
    assert promises()
    assert not [row[:2] for row in promises() if "`tests/" not in row[3]]


def test_the_path_of_a_frame_names_functions_that_are_there() -> None:
    text = (ROOT / "docs" / "frame-path.md").read_text()
    steps = re.findall(r"`(?:(\w+)\.)?(\w+)` \(`([\w/]+\.py)`\)", text)
    assert len(steps) > 15
    missing = [
        f"{path}: {owner}.{name}"
        for owner, name, path in steps
        if not re.search(rf"(?:class|def) {name}\b", (ROOT / "vtl_tools" / path).read_text())
        or (owner and f"class {owner}" not in (ROOT / "vtl_tools" / path).read_text())
    ]
    assert not missing
