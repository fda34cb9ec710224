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


def test_every_form_of_output_and_every_unit_is_listed() -> None:
    listed = (ROOT / "docs/schemas/README.md").read_text()
    schemas = {path.name for path in (ROOT / "docs/schemas").glob("*.json")}
    assert not {name for name in schemas - {"common.json"} if f"]({name})" not in listed}
    deploying = (ROOT / "docs/deploy.md").read_text()
    units = {path.name for path in (ROOT / "contrib/systemd").iterdir()}
    assert not {unit for unit in units if f"| `{unit.replace('@', '@vmnet1')}` |" not in deploying}


def test_every_source_file_that_a_page_names_exists() -> None:
    roots = [ROOT, ROOT / "vtl_tools", ROOT / "vtl_tools/common"]
    named = {
        (page.name, path)
        for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for path in re.findall(r"`([\w.]+/[\w./-]+\.(?:py|md|json))`", page.read_text())
        if "NAME" not in path
    }
    assert len(named) > 50
    assert not {(page, path) for page, path in named if not any((root / path).exists() for root in roots)}
