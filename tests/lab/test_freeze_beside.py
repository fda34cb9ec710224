"""vtl-freeze on the interface of a service that is inline there: what is firewalled, bridged or has shortcuts
is held as well.

The VM is a host that is silenced. All its connections are with one peer, which is impatient meanwhile.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from lab.figure6 import Figure6
from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import until
from tests.held import IMPATIENT, PATIENT, Flow, ask_five_times, be, idle, state_of, witness
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.host.guard import list_guards
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

CUT = """
table netdev cut {
    chain in { type filter hook ingress device eth0 priority 0; policy drop; }
    chain out {
        type filter hook egress device eth0 priority 0; policy accept;
        fwd to "sink"
    }
}
"""
"""Makes a host as silent and deaf as a VM that is stopped. It does not see that what it sends is lost: Linux
tries again at once what it could not send, and soon gives up."""
RULES = """
allow in tcp from 10.9.0.2, fd09::2
reject
"""
"""Packets of the VM pass as replies only: a firewall that lost a connection resets it at once."""
VM = "10.9.0.1", "fd09::1"
ALLOW = "--allow", "10.0.0.0/8", "--allow", "fd00::/8"
GONE = "10.8.0.9"


@pytest.fixture(scope="module")
def line() -> Iterator[tuple[Lab, Line]]:
    """Yield the VM - vmnet1 [middle] eth0 - its peer."""
    with Lab() as lab:
        yield lab, line_of_three(lab)


@contextmanager
def freezing(lab: Lab, host: Host, iface: str) -> Iterator[Bridge]:
    links = ("--iface", iface, "--state", lab.dir / f"freeze-{len(list(lab.dir.iterdir()))}.state")
    with bridge(lab, host, *links, name="z", service="vtl-freeze") as running:
        assert running.ready["event"] == "ready"
        yield running


def verb(running: Bridge, name: str) -> dict[str, Any]:
    command = [BIN / "vtl-freeze", name, "--json", "--link", running.socket]
    answer: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return answer


def held(running: Bridge) -> dict[str, Any]:
    freeze: dict[str, Any] = running.status()["freeze"]
    return freeze


def probed(running: Bridge) -> int:
    """Return how many connections were answered."""
    rows = control.ask(running.socket, "report")["connections"]
    return len([row for row in rows if row["probes"]])


def kept_in(host: Host, iface: str) -> int:
    """Frames that a guard kept from the host's stack."""
    return sum(guard.kept_in for guard in host.call(list_guards) if guard.name == iface)


def are_held(lab: Lab, vm: Host, peer: Host, host: Host, iface: str, addresses: tuple[str, str]) -> None:
    """Cut off a VM for longer than its peer is patient: its connections go on, octet for octet."""
    gone = lab.host("gone")
    lab.veth(peer, "gone", gone, "eth0")
    lab.veth(vm, "sink", vm, "sank")
    peer.addr("gone", "10.8.0.1/24")
    gone.addr("eth0", f"{GONE}/24")
    with ExitStack() as stack:
        stack.callback(peer.run, "ip", "link", "del", "gone")
        stack.callback(vm.run, "ip", "link", "del", "sink")
        stack.callback(be, peer, PATIENT)
        running = stack.enter_context(freezing(lab, host, iface))
        outlast = stack.enter_context(witness(peer, gone, GONE))
        flows = [Flow(vm, peer, address, download=way) for address in addresses for way in (True, False)]
        for flow in flows:
            stack.callback(flow.close)
        quiet, end = (stack.enter_context(one) for one in idle(vm, peer, addresses[0]))
        until(lambda: all(len(flow.got) > 100_000 for flow in flows), "data")
        vm.run("nft", "-f", "-", input=CUT)
        guarded = kept_in(host, iface)
        told = verb(running, "start")
        assert told["can_hold"] + told["cannot_hold"].pop("unsure", 0) == 5  # of busy ones, a sample is read
        assert (told["can_hold"] >= 1, told["cannot_hold"]) == (True, {})
        until(lambda: probed(running) == 3, "those that send or ask to be answered")
        be(peer, IMPATIENT)
        ask_five_times(quiet)
        outlast()
        assert [flow.error for flow in flows] == [None] * 4
        assert state_of(quiet) == 1
        answered = held(running)["answered"]
        assert kept_in(host, iface) - guarded >= answered
        be(peer, PATIENT)
        before = [len(flow.got) for flow in flows]
        vm.run("nft", "delete", "table", "netdev", "cut")
        assert verb(running, "stop")["ended"]
        until(lambda: all(len(f.got) > n for f, n in zip(flows, before, strict=True)), "data to flow again")
        assert all(flow.is_whole() for flow in flows)
        quiet.sendall(b"still there")
        assert end.recv(99) == b"still there"


def test_beside_a_bridge(line: tuple[Lab, Line]) -> None:
    lab, (vm, middle, peer) = line
    with bridge(lab, middle, "--iface", "vmnet1", "--uplink", "eth0", name="b"):
        are_held(lab, vm, peer, middle, "vmnet1", VM)


def test_beside_a_firewall(line: tuple[Lab, Line]) -> None:
    lab, (vm, middle, peer) = line
    rules = lab.dir / "fw.rules"
    rules.write_text(RULES)
    own = [word for address in (*VM, "fe80::/10") for word in ("--address", address)]
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules)
    with bridge(lab, middle, *links, *own, name="f", service="vtl-fw") as firewall:
        are_held(lab, vm, peer, middle, "vmnet1", VM)
        assert not [why for why in firewall.drops() if why.startswith(("tcp-", "spoofed-"))]


def test_beside_a_subnet(lab: Lab) -> None:
    scene = Figure6(lab)
    vm, host, peer = scene["vm1"], scene["host1"], scene["vm2"]
    with ExitStack() as stack:
        one, _ = (
            stack.enter_context(
                bridge(lab, scene[f"host{n}"], *scene.links(n), *ALLOW, name=f"s{n}", service="vtl-subnet")
            )
            for n in (1, 2)
        )

        def is_short(address: str) -> bool:
            peer.run("ping", "-c1", "-W1", "-q", scene.address(1), check=False)
            peer.run("ping", "-c1", "-W1", "-q", scene.address(1, v6=True), check=False)
            return one.status()["shortcuts"].get(address, {}).get("state") == "up"

        for v6 in False, True:
            until(lambda v6=v6: is_short(scene.address(2, v6=v6)), "the shortcut")  # type: ignore[misc]
        are_held(lab, vm, peer, host, "vm1", (scene.address(1), scene.address(1, v6=True)))
        assert {row["state"] for row in one.status()["shortcuts"].values()} == {"up"}
