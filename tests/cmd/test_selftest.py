"""The self-tests of vtl-tor and vtl-fw: everything is held back; and where it is not, the test says so."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.user import NOBODY, as_user
from tests.cmd.tools import BIN
from tests.schemas import validated
from vtl_tools.common.selftest import situations, traffic
from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.services.fw.selftest import attacks as fw_attacks
from vtl_tools.services.fw.selftest.scene import Firewalled

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(600)]

SITUATIONS = {situation.name for situation in situations.ALL}

CARRIED = {"tcp", "names", "dns over tcp", "dot, doh", "stun over tcp"}


OTHER = ("--dhcp", "--dns", "resolve", "--isolate", "conn")
LENIENT = "any.rules"
RUNS = (
    ("vtl-fw",), ("vtl-fw", "--spoofing", "--rules", LENIENT),
    ("vtl-tor",), ("vtl-tor", *OTHER), ("vtl-tor", "--guard", "off"),
)  # fmt: skip
AT_ONCE = 3
"""They wait for most of their time, each in networks of its own."""

Ran = tuple[int, dict[str, dict[str, object]], dict[str, object]]
Runs = dict[tuple[str, ...], Future[Ran]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """The selftests that the tests look at, by executable and options. All have begun, or wait for others."""
    place = tmp_path_factory.mktemp("rules")
    (place / LENIENT).write_text("allow any\n")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {words: pool.submit(selftest, place, *words) for words in RUNS}


def selftest(place: Path, tool: str, *options: str) -> Ran:
    """Run one in a directory: its exit status, the result of each kind of traffic, and that of all."""
    ran = subprocess.run(
        [BIN / tool, "selftest", "--json", "--", *options],
        capture_output=True, text=True, check=False, cwd=place,
    )  # fmt: skip
    lines = [validated(json.loads(line)) for line in ran.stdout.splitlines()]
    found = {str(line["class"]): line for line in lines if "class" in line}
    return ran.returncode, found, next((line for line in lines if "classes" in line), {})


@pytest.mark.parametrize("options", [(), OTHER], ids=["default", "other"])
def test_nothing_leaks_and_what_is_to_be_carried_is(runs: Runs, options: tuple[str, ...]) -> None:
    status, found, total = runs["vtl-tor", *options].result()
    assert {name: line["leaks"] for name, line in found.items() if line["leaked"]} == {}
    assert set(found) == {kind.name for kind in traffic.KINDS} | SITUATIONS | {"afterwards"}
    assert {name for name, line in found.items() if line["carried"]} == CARRIED
    assert all(line["carried"] == line["connections"] for line in found.values())
    assert all(
        line["sent"] or line["connections"] or line["answered"] == {"no start": 1}
        for name, line in found.items()
        if name != "afterwards"
    )
    assert found["names"]["asked"][-1] in ("connect www.example.com:80", "resolve www.example.com:0")
    assert total["held"] is True
    assert status == 0


# A host's stack has no use for these by itself, so that without a guard, too, they end there.
HARMLESS = {
    "vlan", "vlan, double", "vlan, double 802.1q", "other ethertypes", "lldp", "stp", "afterwards",
    "names of the host", *CARRIED,
}  # fmt: skip


def test_without_a_guard_it_sees_the_host_leak(runs: Runs) -> None:
    status, found, total = runs["vtl-tor", "--guard", "off"].result()
    assert status == 1
    assert total["held"] is False
    leaked = {name for name, line in found.items() if line["leaked"]}
    assert leaked | HARMLESS == set(found)
    for name, where in (("udp", "uplink"), ("udp", "host"), ("fragments", "uplink"), ("6in4", "uplink")):
        assert any(str(leak).startswith(where) for leak in found[name]["leaks"]), (name, where)


def test_a_service_that_does_not_start_is_reported_with_what_it_said() -> None:
    ran = subprocess.run(
        [BIN / "vtl-tor", "selftest", "--", "--frobnicate"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 1
    assert "the service ended: vtl-tor: no such option '--frobnicate'" in ran.stderr


def test_it_needs_root_and_says_so(lab: Lab) -> None:
    host = lab.host("host")
    ran = host.run(*as_user(lab, host, "vtl-tor"), "selftest", check=False, user=NOBODY)
    assert ran.returncode == 5
    assert ran.stderr == "vtl-tor: selftest: not permitted to make networks for it; run as root\n"


def test_it_has_a_proxy_of_its_own() -> None:
    ran = subprocess.run(
        [BIN / "vtl-tor", "selftest", "--", "--start-tor"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "leave --start-tor out" in ran.stderr


# --- vtl-fw


def test_nothing_gets_around_vtl_fw(runs: Runs) -> None:
    status, found, total = runs["vtl-fw",].result()
    assert {name: line["leaks"] for name, line in found.items() if line["leaked"]} == {}
    assert {name for name, line in found.items() if line["verdict"] == "not carried"} == set()
    assert set(found) == {name for name, _ in fw_attacks.ATTACKS} | SITUATIONS | {"afterwards"}
    for name in "allowed connections", "lease and neighbours", "spoofed flood", "flood of the guest":
        assert found[name]["connections"], name
    assert total["held"] is True
    assert status == 0


SPOOFED = {
    "spoofed senders", "arp spoofing", "dhcp as another client", "rogue dhcp server", "dhcp in an answer",
    "ipv6 address of another", "rogue router", "data in neighbour discovery",
}  # fmt: skip
"""What the identity holds back, whatever the rules."""


def test_with_lenient_rules_and_no_identity_it_sees_the_guest_be_another(
    runs: Runs,
) -> None:
    status, found, total = runs["vtl-fw", "--spoofing", "--rules", LENIENT].result()
    assert status == 1
    assert total["held"] is False
    assert {name for name, line in found.items() if line["leaked"]} >= {*SPOOFED, "strangers", "udp"}


def test_without_a_guard_it_sees_the_host_get_what_the_firewall_denies() -> None:
    program = [BIN / "vtl-fw"]
    with closing(Firewalled([str(word) for word in program], ["--guard", "off"])) as scene:
        results = list(
            scene.run(each for each in fw_attacks.ATTACKS if each[0] in ("lease and neighbours", "udp"))
        )
    (udp,) = (result for result in results if result.kind == "udp")
    assert any(leak.startswith("host: UDP port 33434") for leak in udp.leaks)


BRIDGE = """
import os, sys
words = iter(sys.argv[1:])
links = [next(words) for word in words if word in ("--iface", "--uplink")]
rest = sys.argv[sys.argv.index("--json"):]
os.execv({0!r}, [{0!r}, *(word for link in links for word in ("--iface", link)), *rest])
"""


def test_with_a_bridge_in_its_place_it_sees_all_of_it_pass(tmp_path: Path) -> None:
    script = tmp_path / "bridge.py"
    script.write_text(BRIDGE.format(str(BIN / "vtl-bridge")))
    with closing(Firewalled([sys.executable, str(script)], ())) as scene:
        results = {result.kind: result for result in scene.run(fw_attacks.ATTACKS)}

    def is_seen(result: TrialResult) -> bool:
        return result.verdict == "leaked"

    passed = {"lease and neighbours", "allowed connections", "ipv6 address taken away", "spoofed flood",
              "flood of the guest", "afterwards"}  # fmt: skip
    assert {name for name, result in results.items() if not is_seen(result)} == passed
