"""The schemas of docs/schemas: whether a printed object is as they say."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).resolve().parents[1] / "docs/schemas"
SHARED = "common"
"""The file of the parts that several schemas have; no object is of it."""


@cache
def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


@cache
def _validator(name: str) -> Draft202012Validator:
    files = {
        path.name: Resource.from_contents(json.loads(path.read_text())) for path in FOLDER.glob("*.json")
    }
    return Draft202012Validator(schema(name), registry=Registry().with_resources(files.items()))


def names() -> set[str]:
    """The names of all outputs that have a schema."""
    return {path.stem for path in FOLDER.glob("*.json")} - {SHARED}


def validated(told: dict[str, Any]) -> dict[str, Any]:
    """Return an object that a command printed. Raises AssertionError unless it is as its schema says."""
    assert "schema" in told, f"names no schema: {told}"
    name, _, version = str(told["schema"]).rpartition("/")
    assert name in names(), f"no schema {name}: {told}"
    constant = schema(name)["properties"]["schema"]["const"]
    assert constant == f"{name}/{version}", f"{told['schema']} is printed, {constant} is described"
    faults = [f"{fault.json_path}: {fault.message}" for fault in _validator(name).iter_errors(told)]
    assert not faults, f"{faults} in {json.dumps(told)}"
    return told
