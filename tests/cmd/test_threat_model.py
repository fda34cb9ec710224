"""The tests that docs/threat-model.md names are there, and it names at least one for each promise."""

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
