"""The man pages say what the commands do: held against click and the sources, in both directions."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.cmd.tools import KEPT, ROOT, SERVICES, TOOLS, arguments, command, options
from tests.schemas import schema
from vtl_tools.common.cli.options import common_options
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.spec import _KINDS
from vtl_tools.common.errors import DiedError, VTLError
from vtl_tools.common.guest_net.guest_network import KINDS
from vtl_tools.common.rules import lexer, sets
from vtl_tools.common.rules.keywords import KEYWORDS
from vtl_tools.common.rules.service_names import SERVICE_PORTS
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.holdings import OBSTACLES
from vtl_tools.services.freeze.report import RISKS
from vtl_tools.services.freeze.stage import Freeze
from vtl_tools.services.fw import parser
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.stage import Firewall
from vtl_tools.services.subnet.path_cache import PROTOCOL
from vtl_tools.services.subnet.peer import Discovery, PeerState
from vtl_tools.services.subnet.stage import NEIGHBOURS, Subnet
from vtl_tools.services.subnet.vm import VM
from vtl_tools.services.tor.stage import Tor

PAGES = sorted((ROOT / "man").iterdir())
OVERVIEW = ROOT / "man/vtl-tools.7"
RULES = ROOT / "man/vtl-fw.5"
FORMATS = [RULES]
SOURCES = sorted((ROOT / "vtl_tools").rglob("*.py"))


ORDER = (
    "NAME", "SYNOPSIS", "DESCRIPTION", "LINKS", "OPTIONS", "VERBS", "CONTROL SOCKET", "TABLES",
    "JSON OUTPUT", "RULES",
    "RISKS", "GUEST BASICS", "SETS AND INCLUDES", "ERRORS IN A RULE FILE", "GRAMMAR", "ICMP TYPES",
    "SERVICES", "TIMELINE", "STATUS", "LOG", "MEMORY", "EVENTS", "DROPS", "SIGNALS", "ENVIRONMENT", "FILES",
    "EXIT STATUS", "EXAMPLES", "PRIVILEGES", "SECURITY", "SEE ALSO", "CAVEATS",
)  # fmt: skip


def page(tool: str) -> str:
    return (ROOT / f"man/{tool}.1").read_text()


def section(text: str, title: str) -> str:
    """What stands between a section's or subsection's heading and the next heading."""
    match = re.search(rf"^\.S[hs] {title}\n(.*?)(?=^\.S[hs] |\Z)", text, re.M | re.S)
    assert match, f"no section {title}"
    return match[1]


def flags(text: str) -> set[str]:
    return {f"-{word}" for word in re.findall(r"\bFl (-?[\w-]+)", text)}


def listed_options(text: str) -> set[str]:
    return {flag for line in re.findall(r"^\.It (Fl .*)", text, re.M) for flag in flags(line)}


def items(text: str) -> list[str]:
    """The words that a list explains: `.It Cm one , two`."""
    lines = re.findall(r"^\.It Cm (.+)", text, re.M)
    return [word for line in lines for word in line.split(" , ")]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_a_page_is_sound_mdoc_and_renders(path: Path) -> None:
    lint = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", path], capture_output=True, text=True, check=False
    )
    assert (lint.returncode, lint.stdout) == (0, "")
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "80", "MANPAGER": "cat"}
    command = ["man", "--warnings", "-l", path]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert shown.stderr == ""
    needed = ["NAME", "DESCRIPTION", "SEE ALSO", "CAVEATS", *["EXIT STATUS"] * (path not in FORMATS)]
    for heading in needed:
        assert re.search(rf"^{heading}$", shown.stdout, re.M), heading


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_the_sections_of_all_pages_are_in_one_order(path: Path) -> None:
    found = re.findall(r"^\.Sh (.+)", path.read_text(), re.M)
    assert found == [title for title in ORDER if title in found]


@pytest.mark.parametrize("tool", TOOLS)
def test_the_description_begins_with_three_sentences_and_a_command(tool: str) -> None:
    """The purpose of the tool, its users, and the first command to type."""
    text = section(page(tool), "DESCRIPTION")
    match = re.match(r"(.*?)\n(?:\.Pp\n\.Dl|\.Bd -literal[^\n]*\n)\s*# (\S+)", text, re.S)
    assert match, "no command"
    assert match[2] == tool
    assert len(re.findall(r"[.:]$", match[1], re.M)) == 3


def test_every_executable_has_a_page_and_every_page_an_executable() -> None:
    commands = [ROOT / f"man/{tool}.1" for tool in TOOLS]
    assert sorted([*commands, *FORMATS, OVERVIEW]) == PAGES
    assert {f"Xr {tool} 1" for tool in TOOLS} <= set(re.findall(r"Xr [\w-]+ 1", OVERVIEW.read_text()))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_page_lists_exactly_the_options(tool: str) -> None:
    assert listed_options(section(page(tool), "OPTIONS")) == options(tool)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_page_lists_exactly_the_verbs_with_their_options_and_arguments(tool: str) -> None:
    verbs = section(page(tool), "VERBS") if command(tool).commands else ""
    lines = re.findall(r"^\.It Cm (\w+)(.*)", verbs, re.M)
    assert sorted(verb for verb, _ in lines) == sorted(command(tool).commands)
    for verb, rest in lines:
        assert flags(rest) == options(tool, verb), verb
        of_none = re.sub(r"Fl -?[\w-]+ Ar \S+", "", rest)
        assert set(re.findall(r"Ar (\w+)", of_none)) == arguments(tool, verb), verb


def codes(text: str) -> set[int]:
    return {int(code) for code in re.findall(r"^\.It (\d+)$", section(text, "EXIT STATUS"), re.M)}


def test_exit_statuses_are_named() -> None:
    family = {VTLError, *VTLError.__subclasses__(), DiedError}
    known = {error.exit_code for error in family} | {0, 130}
    assert codes(OVERVIEW.read_text()) == known
    for tool in TOOLS:
        named = codes(page(tool))
        least = known if tool in SERVICES else {0, 1, 2, 130}
        assert least <= named <= known, tool


@pytest.mark.parametrize("tool", SERVICES)
def test_a_page_names_what_the_service_keeps_of_roots_rights(tool: str) -> None:
    """tests/lab/test_privileges.py holds the services to the same table."""
    assert set(re.findall(r"^\.It (CAP_\w+)", section(page(tool), "PRIVILEGES"), re.M)) == KEPT[tool]


def test_shared_options_are_explained_in_the_overview() -> None:
    explained = listed_options(section(OVERVIEW.read_text(), "OPTIONS"))
    declared = common_options(lambda **_: None).__click_params__  # type: ignore[attr-defined]
    shared = {word for option in declared for word in (*option.opts, *option.secondary_opts)}
    assert shared <= explained
    for tool in SERVICES:
        assert explained - options(tool) <= ({"--guard"} if tool == "vtl-freeze" else set()), tool


def test_every_kind_of_link_is_explained() -> None:
    named = re.findall(r"^\.It Cm (\w+)", section(OVERVIEW.read_text(), "LINKS"), re.M)
    assert set(named) == set(_KINDS)


def test_every_reason_of_a_drop_is_explained() -> None:
    text = section(OVERVIEW.read_text(), "DROPS")
    of_links, _, of_services = text.partition("Those of a service")
    assert items(of_links) == [str(reason) for reason in Drop]
    assert set(items(of_services)) == {reason for path in SOURCES for reason in stage_drops(path)}


def stage_drops(path: Path) -> set[str]:
    """Reasons that stages count by: self.drops["local"] += 1, self.drop(batch, indices, "local")."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        told: ast.expr | None = None
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "self.drops":
            told = node.slice
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "self.drop" and len(node.args) == 3:
            told = node.args[2]
        if isinstance(told, ast.Constant):
            found.add(told.value)
    return found


def test_every_reason_why_vtl_tor_drops_is_explained_on_its_page() -> None:
    relay, frames = ((ROOT / f"vtl_tools/common/relay/{name}.py").read_text() for name in ("relay", "frames"))
    source = (ROOT / "vtl_tools/common/guest_net/guest_network.py").read_text()
    judged = source[source.index("def on_frame") : source.index("def deadline")]
    known = set(re.findall(r'self\.drop_frame\([^"]*"([\w-]+)"', relay))
    known |= set(re.findall(r'return "([\w-]+)"', frames[frames.index("def why_nobodys") :]))
    known -= {"not-tcp"}  # the gateway's are finer
    known |= {
        word
        for line in re.findall(r"(?:return|reason =) .*", judged)
        for word in re.findall('"([a-z-]+)"', line)
    }
    assert set(items(section(page("vtl-tor"), "DROPS"))) == known | set(KINDS.values())


def test_every_member_of_vtl_tors_own_status_is_explained() -> None:
    status = Tor(("127.0.0.1", 9050)).status(0.0)
    text = section(page("vtl-tor"), "STATUS")
    assert items(text) == list(status)
    for member, value in status.items():
        assert isinstance(value, dict)
        for key in value:
            assert re.search(rf"^\.Cm {key}\b", text, re.M), (member, key)


def test_every_member_of_vtl_fws_own_status_is_explained() -> None:
    policy = Policy(parse("x", lambda name, octets: b"deny any"))
    status = Firewall(policy, identity=Identity()).status(0.0)
    text = section(page("vtl-fw"), "STATUS")
    assert items(text) == list(status)
    for value in status.values():
        assert isinstance(value, dict)
        for key in value:
            assert re.search(rf"^(\.Cm )?{key}\b", text, re.M), key


def test_vtl_freezes_page_explains_its_status_risks_and_reasons() -> None:
    text = page("vtl-freeze")
    status = Freeze(Freezer()).status(0.0)
    assert items(section(text, "STATUS")) == list(status)
    for value in status.values():
        assert isinstance(value, dict)
        for key in value:
            assert re.search(rf"^\.Cm {key}\b", section(text, "STATUS"), re.M), key
    assert items(section(text, "RISKS")) == list(RISKS)
    assert items(section(text, "Connections that are not held")) == list(OBSTACLES)
    source = (ROOT / "vtl_tools/services/freeze/freezer.py").read_text()
    reasons = dict.fromkeys(re.findall(r'self\.unanswered\["([\w-]+)"\]', source))
    assert sorted(items(section(text, "DROPS"))) == sorted(reasons)


def literal(text: str) -> list[str]:
    """What stands in a page's displays, as it is shown."""
    return re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$", text, re.M | re.S)


def test_the_grammar_of_rules_is_that_of_the_documentation() -> None:
    text = (ROOT / "docs/fw.md").read_text()
    grammar = "".join(re.findall(r"^```ebnf\n(.*?)^```$", text, re.M | re.S))
    assert literal(section(RULES.read_text(), "GRAMMAR")) == [grammar]
    in_page = re.findall(r"^\.It Cm (\S+) Ta (\S+) Ta (\S+)$", RULES.read_text(), re.M)
    in_text = re.findall(r"^\| `(\S+)` \| (\d*) +\| (\d*) +\|$", text, re.M)
    assert in_page == [(name, four or "-", six or "-") for name, four, six in in_text]
    assert len(in_page) > 10


def test_the_examples_of_rules_are_right() -> None:
    examples = literal(section(RULES.read_text(), "EXAMPLES"))
    assert len(examples) >= 3
    first = literal(section(RULES.read_text(), "DESCRIPTION"))
    for example in [*examples, *first, *literal(section(page("vtl-fw"), "DESCRIPTION"))]:
        ruleset = parse("x", lambda name, octets, text=example: text.encode())
        assert ruleset.rules
        assert not ruleset.remarks


def test_the_page_has_the_rules_of_guest_basics_and_all_names_of_ports() -> None:
    text = RULES.read_text()
    policy = "allow guest-basics\ndeny any\n"
    basics = [rule.text for rule in parse("x", lambda name, octets: policy.encode()).rules[:-1]]
    assert literal(section(text, "GUEST BASICS")) == ["\n".join(basics) + "\n"]
    assert "\n".join(basics) in (ROOT / "docs/fw.md").read_text()
    shown = re.findall(r"Cm (\S+) Ta (\d+)", section(text, "SERVICES"))
    assert {name: int(port) for name, port in shown} == SERVICE_PORTS


def test_every_word_and_every_bound_of_a_rule_is_on_the_page() -> None:
    text = RULES.read_text()
    explained = set(re.findall(r"^\.(?:It )?Cm ([^\n]+)", text[: text.index(".Sh GRAMMAR")], re.M))
    assert KEYWORDS - {"set"} <= {word for line in explained for word in re.findall(r"[a-z][a-z0-9-]*", line)}
    errors = section(text, "ERRORS IN A RULE FILE")
    assert f"{parser.OCTETS_MAX >> 20} MiB" in errors
    for bound in parser.RULES_MAX, parser.LINES_MAX, lexer.LINE_MAX, sets.ITEMS_MAX, parser.DEPTH_MAX:
        assert f"{bound:,}" in errors, bound


def test_every_reason_why_a_vm_may_not_send_is_explained() -> None:
    source = (ROOT / "vtl_tools/services/fw/identity.py").read_text()
    reasons = set(re.findall(r'"((?:spoofed|rogue)-\w+)"', source))
    assert reasons <= set(items(section(page("vtl-fw"), "DROPS")))


def test_every_member_of_vtl_subnets_own_status_is_explained() -> None:
    stage = Subnet(VM(), nonce=bytes, given={bytes((10, 0, 0, 1)): bytes((2, 0, 0, 0, 0, 1))})
    status = stage.status(0.0)
    text = section(page("vtl-subnet"), "STATUS")
    assert set(status) <= set(items(text))
    words = {state.value for state in PeerState} | {found.value for found in Discovery}
    for name, value in status.items():
        assert isinstance(value, dict)
        words |= set(*value.values()) if name in ("shortcuts", "traffic") else set(value)
    for word in words:
        assert re.search(rf"^\.(It )?Cm (\w+ , )*{word}\b|No or Cm {word}\b", text, re.M), word


def test_every_reason_and_every_why_of_vtl_subnet_is_explained() -> None:
    folder = ROOT / "vtl_tools/services/subnet"
    stage, ways = (folder / "stage.py").read_text(), (folder / "path_cache.py").read_text()
    peers = (folder / "peers.py").read_text() + (folder / "table.py").read_text()
    judged = ways + stage[stage.index("def _deliver") : stage.index("# --- frames")]
    reasons = {PROTOCOL, NEIGHBOURS, *re.findall(r'return "([\w-]+)"', judged)}
    counted = re.findall(r"ignored\[.*", peers)
    reasons |= {word for line in counted for word in re.findall('"([a-z-]+)"', line)}
    assert set(items(section(page("vtl-subnet"), "DROPS"))) == reasons - {"tag"}
    changes = (folder / "peer.py").read_text() + peers + stage
    calls = re.findall(r"(?:_on_change|_told|_become|_try|mark_lost|remove|_forget|lost_link)\(.*", changes)
    whys = {word for line in calls for word in re.findall('"([a-z-]+)"', line)}
    assert set(items(section(page("vtl-subnet"), "EVENTS"))) == whys


def test_every_event_and_every_member_of_a_status_is_explained() -> None:
    text = section(OVERVIEW.read_text(), "JSON OUTPUT")
    events = set(schema("event")["properties"]["event"]["enum"])
    calls = {word for path in SOURCES for word in re.findall(r'\.(?:event|tell)\("(\w+)"', path.read_text())}
    assert calls <= events
    of_events, _, of_status = text.partition("A status, as")
    assert set(items(of_events)) == events
    source = (ROOT / "vtl_tools/common/runtime/runner.py").read_text()
    members = re.findall(r'^            "(\w+)": ', source[source.index("def status") :], re.M)
    assert set(items(of_status)) - {"guards", "recordings", "stations", "workers"} == set(members)


def test_every_variable_of_the_environment_is_explained() -> None:
    text = section(OVERVIEW.read_text(), "ENVIRONMENT")
    used = {v for path in SOURCES for v in re.findall(r'environ\b[^"\n]*"(\w+)"', path.read_text())}
    assert set(re.findall(r"^\.It Ev (\w+)", text, re.M)) == used
