"""vtl-tor selftest: everything is held back; and where it is not, the test says so."""

import json
import subprocess

import pytest

from lab.netns import Lab
from lab.user import NOBODY, as_user
from tests.cmd.tools import BIN
from vtl_tools.common.leaktest import traffic

pytestmark = [pytest.mark.lab, pytest.mark.slow]

CARRIED = {"tcp", "names", "dns over tcp", "dot, doh", "stun over tcp"}


def selftest(*options: str) -> tuple[int, dict[str, dict[str, object]], dict[str, object]]:
    """Run it: its exit status, the result of each kind of traffic, and that of all."""
    ran = subprocess.run(
        [BIN / "vtl-tor", "selftest", "--json", "--", *options], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    found = {str(line["class"]): line for line in lines if "class" in line}
    return ran.returncode, found, next((line for line in lines if "classes" in line), {})


@pytest.mark.parametrize(
    "options", [(), ("--dhcp", "--dns", "resolve", "--isolate", "conn")], ids=["default", "other"]
)
def test_nothing_leaks_and_what_is_to_be_carried_is(options: tuple[str, ...]) -> None:
    status, found, total = selftest(*options)
    assert {name: line["leaks"] for name, line in found.items() if line["leaked"]} == {}
    assert set(found) == {kind.name for kind in traffic.KINDS} | {"afterwards"}
    assert {name for name, line in found.items() if line["carried"]} == CARRIED
    assert all(line["carried"] == line["connections"] for line in found.values())
    assert all(line["sent"] or line["connections"] for name, line in found.items() if name != "afterwards")
    assert found["names"]["asked"][-1] in ("connect www.example.com:80", "resolve www.example.com:0")
    assert total["held"] is True
    assert status == 0


# A host's stack has no use for these by itself, so that without a guard, too, they end there.
HARMLESS = {
    "vlan", "vlan, double", "vlan, double 802.1q", "other ethertypes", "lldp", "stp", "afterwards",
    *CARRIED,
}  # fmt: skip


def test_without_a_guard_it_sees_the_host_leak() -> None:
    status, found, total = selftest("--guard", "off")
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
