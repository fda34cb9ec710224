"""--help and --version: quick, since they import little, and right."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

from tests.cmd.tools import BIN, ROOT, SERVICES, TOOLS, arguments, command, executables, options

SLOW = {"asyncio", "dns", "rich", "scapy"}
"""Each costs a tenth of a second or more: imported where it is used."""

LOADED = """
import json, sys
sys.argv = sys.argv[1:]
try:
    from {module} import {attribute}
    {attribute}()
finally:
    print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""

COMPILED = any((ROOT / "vtl_tools").glob("compiled__mypyc*.so"))
CALLS = [(tool, *verb) for tool in TOOLS for verb in [(), *((v,) for v in command(tool).commands)]]


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_given_with_status_0(call: tuple[str, ...], flag: str) -> None:
    ran = subprocess.run([BIN / call[0], *call[1:], flag], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"Usage: {' '.join(call)} ")


@pytest.mark.parametrize("tool", TOOLS)
def test_version_is_the_packages(tool: str) -> None:
    ran = subprocess.run([BIN / tool, "--version"], capture_output=True, text=True, check=True)
    version, build = importlib.metadata.version("vtl-tools"), "compiled" if COMPILED else "pure Python"
    assert ran.stdout == f"{tool}, version {version} ({build})\n"


@pytest.mark.parametrize("tool", TOOLS)
def test_help_imports_nothing_slow(tool: str) -> None:
    module, _, attribute = executables()[tool].partition(":")
    code = LOADED.format(module=module, attribute=attribute)
    # -I: what the environment lets Python import by itself is not ours
    command = [sys.executable, "-I", "-c", code, tool, "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not SLOW & set(json.loads(ran.stderr))


WITHOUT_A_SERVICE = {
    ("vtl-fw", "check"),
    ("vtl-fw", "selftest"),
    ("vtl-tor", "check"),
    ("vtl-tor", "selftest"),
    ("vortex-backend", "keygen"),
    ("vtl-udt", "keygen"),
    ("vtl-vnet", "keygen"),
    ("vtl-wan", "verify"),
}


def test_every_verb_names_a_running_service_in_the_same_way() -> None:
    verbs = {(tool, verb) for tool in SERVICES for verb in command(tool).commands}
    assert {(tool, verb) for tool, verb in verbs if "--link" not in options(tool, verb)} == WITHOUT_A_SERVICE
    assert not [v for v in verbs if {"--iface", "--vm"} & options(*v) or "link" in arguments(*v)]
