"""What the commands print as JSON, run for real, is as docs/schemas says."""

import json
import re
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import TOOLS, command, options
from tests.running import BIN, Bridge, bridge
from tests.schemas import names, schema, validated

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
RULES = """allow out icmp type echo-request
allow out tcp port 80 limit 5/s
allow out tcp port 81
deny any log
"""
ELSEWHERE = {
    "shortcut": "tests/lab/test_subnet.py",
    "bootstrap": "tests/tor/torservice.py",
    "exit": "tests/tor/torservice.py",
    "left": "tests/vm/test_freeze_guest.py",
    "speaks": "tests/lab/test_freeze.py",
    "lost": "tests/unit/runtime/test_events.py",
    "selftest": "tests/cmd/test_selftest.py",
}
"""What is printed in other tests, which validate it, too."""


class Printed:
    """The objects that each verb printed, by executable and verb; of a running service the verb is ""."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.of: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)

    def run(self, host: Host, tool: str, *words: object, status: int = 0) -> list[dict[str, Any]]:
        """Run a verb with --json; its objects."""
        done = host.run(BIN / tool, *map(str, words), "--json", check=False)
        assert done.returncode == status, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert told, f"{tool} {words} prints nothing"
        self.of[tool, str(words[0]) if words else ""] += told
        return told

    def ended(self, running: Bridge) -> None:
        """Take the last events of a service that ends."""
        assert running.process.stdout is not None
        told = [json.loads(line) for line in running.process.stdout]
        self.of[told[-1]["service"], ""] += [running.ready, *told]


@pytest.fixture(scope="module")
def printed() -> Iterator[Printed]:
    with Lab() as lab:
        found = Printed(lab)
        line = line_of_three(lab)
        for part in firewall, others, switch, freezer, tor:
            part(found, line)
        yield found


def firewall(found: Printed, line: Line) -> None:
    """vtl-fw, its rules, what it logs, and what follows it."""
    client, middle, server = line
    rules, wrong = found.lab.dir / "fw.rules", found.lab.dir / "wrong.rules"
    rules.write_text(RULES)
    wrong.write_text("allow out tcp prot 80\ndeny anny\n")
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--address", "10.9.0.1")
    with ExitStack() as stack:
        running = stack.enter_context(
            bridge(found.lab, middle, *links, "--guard", "process", service="vtl-fw", name="fw")
        )
        link = ("--link", running.socket)
        follower = middle.popen(
            BIN / "vtl-fw", "events", "--json", "--last", "9", *link, stdout=subprocess.PIPE, text=True
        )
        with server.call(partial(socket.create_server, ("10.9.0.2", 80))):
            with client.call(partial(socket.create_connection, ("10.9.0.2", 80), PATIENCE_S)) as near:
                with client.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                    for _ in range(3):
                        sender.sendto(b"x", ("10.9.0.2", 99))
                client.run("ping", "-c1", "-q", "10.9.0.2")
                until(lambda: running.status()["rules"], "the packets that rules judge")
                for words in (
                    ["status", *link], ["flows", *link],
                    ["explain", *link, *"out tcp 10.9.0.1:7 10.9.0.2:80".split()],
                    ["explain", *link, *f"out tcp 10.9.0.1:{near.getsockname()[1]} 10.9.0.2:80".split()],
                    ["explain", *link, *"out udp 10.9.0.1:7 10.9.0.2:53".split()],
                    ["explain", *link, *"out udp 10.9.0.7:7 10.9.0.2:53".split()],
                    ["explain", "--rules", rules, *"out arp".split()],
                    ["reload", *link, "--dry-run"], ["reload", *link], ["check", rules],
                ):  # fmt: skip
                    found.run(middle, "vtl-fw", *words)
        found.run(middle, "vtl-fw", "check", wrong, status=2)
        found.run(middle, "vtl-guard", "list")
        middle.run("nft", "flush", "ruleset", check=False)
        middle.run("ip", "link", "set", "eth0", "down")
        middle.run("ip", "link", "set", "eth0", "up")
        until(lambda: running.status()["links"][1]["up"], "the link")
    found.ended(running)
    out, _ = follower.communicate(timeout=PATIENCE_S)
    found.of["vtl-fw", "events"] += map(json.loads, out.splitlines())


def others(found: Printed, line: Line) -> None:
    """What needs no service, and vtl-subnet."""
    found.run(line.middle, "vtl-doctor", status=1)
    with bridge(
        found.lab, line.middle, "--iface", "vmnet1", "--default", "eth0", "--direct",
        f"dgram:unix:{found.lab.dir}/x:unix:{found.lab.dir}/y", "--allow", "10.0.0.0/8",
        service="vtl-subnet", name="subnet",
    ) as running:  # fmt: skip
        found.run(line.middle, "vtl-subnet", "status", "--link", running.socket)
    found.ended(running)


def switch(found: Printed, line: Line) -> None:
    """vtl-bridge as a switch of two workers."""
    found.lab.veth(found.lab.host("third"), "eth0", line.middle, "vmnet2")
    links = ("--iface", "vmnet1", "--iface", "vmnet2", "--uplink", "eth0", "--workers", "2")
    with bridge(found.lab, line.middle, *links, name="switch") as running:
        line.client.run("ping", "-c1", "-q", "10.9.0.2")
        found.run(line.middle, "vtl-bridge", "status", "--link", running.socket)
    found.ended(running)


def freezer(found: Printed, line: Line) -> None:
    """vtl-freeze, with a connection of the VM."""
    middle, server = line.middle, line.server
    middle.addr("eth0", "10.9.0.3/24")
    state = found.lab.dir / "freeze.state"
    with bridge(
        found.lab,
        middle,
        "--iface",
        "eth0",
        "--state",
        state,
        "--vm",
        "web",
        service="vtl-freeze",
        name="freeze",
    ) as running:
        link, exported = ("--link", running.socket), found.lab.dir / "exported"
        with server.call(partial(socket.create_server, ("10.9.0.2", 22))) as listener:
            with middle.call(partial(socket.create_connection, ("10.9.0.2", 22))), listener.accept()[0]:
                until(lambda: running.status()["freeze"]["connections"], "the connection")
                for words in (
                    ["start"], ["status"], ["report"], ["announce"], ["export", exported], ["import", exported],
                    ["stop"],
                ):  # fmt: skip
                    found.run(middle, "vtl-freeze", *words, *link)
    found.ended(running)


def tor(found: Printed, line: Line) -> None:
    """vtl-tor with a proxy that is none, and a connection that it opens."""
    middle = line.middle
    arguments = ("--iface", "vmnet1", "--no-check", "--dhcp", "--socks", "127.0.0.1:9")
    with bridge(found.lab, middle, *arguments, service="vtl-tor", name="tor") as running:
        found.run(middle, "vtl-tor", "status", "--link", running.socket)
    found.ended(running)


def test_every_object_is_as_its_schema_says(printed: Printed) -> None:
    for told in (one for each in printed.of.values() for one in each):
        validated(told)
