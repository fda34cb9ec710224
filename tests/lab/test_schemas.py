"""The JSON of all commands, run for real, is as docs/schemas says."""

import json
import re
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from scapy.layers.l2 import Ether

from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import SERVICES, TOOLS, command, options
from tests.proxy import proxy
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
    "control-plane": "tests/lab/test_evpn.py",
    "shortcut": "tests/lab/test_subnet.py",
    "adapt": "tests/lab/test_vnet_door.py",
    "rule": "tests/lab/test_vnet_moving.py",
    "bootstrap": "tests/tor/torservice.py",
    "left": "tests/unit/freeze/test_freeze_stage.py",
    "speaks": "tests/unit/freeze/test_freeze_stage.py",
    "error": "tests/cmd/test_errors.py",
    "holds": "tests/unit/freeze/test_freeze_stage.py",
    "recording": "tests/lab/test_full_disk.py",
    "undelivered": "tests/lab/test_ack.py",
    "inherited": "tests/lab/test_ack.py",
    "lost": "tests/unit/runtime/test_events.py",
    "selftest": "tests/cmd/test_selftest.py",
    "transport": "tests/unit/udt/test_far_module.py",
}
"""Outputs of other tests, which validate them, too."""


class Printed:
    """The objects that each verb printed, by executable and verb; of a running service the verb is ""."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.of: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)

    def run(self, host: Host, tool: str, *words: object, status: int | None = 0) -> list[dict[str, Any]]:
        """Run a verb with --json; its objects. status: None: any."""
        done = host.run(BIN / tool, *map(str, words), "--json", check=False)
        assert status in (None, done.returncode), done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        assert told, f"{tool} {words} prints nothing"
        self.of[tool, str(words[0]) if words else ""] += told
        return told

    def ended(self, running: Bridge) -> None:
        """Take the last events of a service that ends."""
        assert running.process.stdout is not None
        told = [json.loads(line) for line in running.process.stdout]
        self.of[told[-1]["service"], ""] += [*running.events, *told]


@pytest.fixture(scope="module")
def printed() -> Iterator[Printed]:
    with Lab() as lab:
        found = Printed(lab)
        line = line_of_three(lab)
        for part in (
            firewall, others, dead, switch, wide_area, overlay, local_ack, vortex, freezer, tor, split,
            other_transport,
        ):  # fmt: skip
            part(found, line)
        yield found


def firewall(found: Printed, line: Line) -> None:
    """vtl-fw, its rules, what it logs, and what follows it."""
    client, middle, server = line
    rules, wrong = found.lab.dir / "fw.rules", found.lab.dir / "wrong.rules"
    rules.write_text(RULES)
    exported = found.lab.dir / "exported.fw"
    wrong.write_text("allow out tcp prot 80\ndeny anny\n")
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--address", "10.9.0.1")
    with ExitStack() as stack:
        running = stack.enter_context(
            bridge(found.lab, middle, *links, "--guard", "keep", service="vtl-fw", name="fw")
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
                client.addr("eth0", "10.9.0.7/24")  # which is not the VM's
                client.run("ping", "-c1", "-W1", "-I", "10.9.0.7", "10.9.0.2", check=False)
                client.run("ping", "-c1", "-q", "10.9.0.2")
                until(lambda: running.status()["rules"], "the packets that rules judge")
                for words in (
                    ["status", *link], ["flows", *link],
                    ["explain", *link, *["out", "tcp", "10.9.0.1:7", "10.9.0.2:80"]],
                    ["explain", *link, *f"out tcp 10.9.0.1:{near.getsockname()[1]} 10.9.0.2:80".split()],
                    ["explain", *link, *["out", "udp", "10.9.0.1:7", "10.9.0.2:53"]],
                    ["explain", *link, *["out", "udp", "10.9.0.7:7", "10.9.0.2:53"]],
                    ["explain", "--rules", rules, *["out", "arp"]],
                    ["reload", *link, "--dry-run"], ["reload", *link], ["check", rules],
                    ["check", "--expand", rules], ["export", exported, *link], ["import", exported, *link],
                    ["forget", *link],
                ):  # fmt: skip
                    found.run(middle, "vtl-fw", *words)
        found.run(middle, "vtl-fw", "check", wrong, status=2)
        found.run(middle, "vtl-guard", "list")
        running.process.send_signal(signal.SIGHUP)
        middle.run("nft", "flush", "ruleset")
        middle.run("ip", "link", "set", "eth0", "down")
        middle.run("ip", "link", "set", "eth0", "up")
        until(lambda: running.status()["links"][1]["up"], "the link")
    middle.run(BIN / "vtl-guard", "clear", "vmnet1")
    found.ended(running)
    out, _ = follower.communicate(timeout=PATIENCE_S)
    found.of["vtl-fw", "events"] += map(json.loads, out.splitlines())


def others(found: Printed, line: Line) -> None:
    """Verbs that need no service, and vtl-subnet."""
    found.run(line.middle, "vtl-doctor", status=None)
    with bridge(
        found.lab, line.middle, "--iface", "vmnet1", "--default", "eth0", "--direct", "tap:lan0",
        "--allow", "10.0.0.0/8", service="vtl-subnet", name="subnet",
    ) as running:  # fmt: skip
        found.run(line.middle, "vtl-subnet", "status", "--link", running.socket)
    found.ended(running)


def dead(found: Printed, line: Line) -> None:
    """vtl-bridge, after it was killed."""
    where = found.lab.dir / "dead.sock"
    links = ("--iface", "tap:t0", "--iface", "tap:t1", "--control", where, "--json")
    process = line.middle.popen(BIN / "vtl-bridge", *links, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert validated(json.loads(process.stdout.readline()))["event"] == "ready"
    process.kill()
    process.wait(PATIENCE_S)
    (told,) = found.run(line.middle, "vtl-bridge", "status", "--link", where, status=None)
    assert told["schema"] == "absent/1"


def switch(found: Printed, line: Line) -> None:
    """vtl-bridge as a switch of two workers."""
    found.lab.veth(found.lab.host("third"), "eth0", line.middle, "vmnet2")
    pcap = ("--pcap", found.lab.dir / "seen.pcapng")
    links = ("--iface", "vmnet1", "--iface", "vmnet2", "--uplink", "eth0", "--workers", "2", *pcap)
    with bridge(found.lab, line.middle, *links, name="switch") as running:
        line.client.run("ping", "-c1", "-q", "10.9.0.2")
        found.run(line.middle, "vtl-bridge", "status", "--link", running.socket)
    found.ended(running)


def wide_area(found: Printed, line: Line) -> None:
    """vtl-wan, whose settings change, and what it measures of itself."""
    timeline = found.lab.dir / "timeline"
    timeline.write_text("at 0s outage 1ms\n")
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--preset", "lan", "--timeline", timeline)
    with bridge(found.lab, line.middle, *links, service="vtl-wan", name="wan") as running:
        running.wait_for("outage")
        until(lambda: not line.client.run("ping", "-c1", "10.9.0.2", check=False).returncode, "the network")
        for words in ["set", "--delay", "1ms"], ["status"]:
            found.run(line.middle, "vtl-wan", *words, "--link", running.socket)
    found.ended(running)
    short = ("--frames", "200", "--per-second", "1000")
    found.run(line.middle, "vtl-wan", "verify", "--delay", "1ms", *short, status=None)


def overlay(found: Printed, line: Line) -> None:
    """vtl-vnet, with a service as a link, and a station that moves."""
    with bridge(
        found.lab, line.middle, "--iface", "vmnet1", "--uplink", "eth0", service="vtl-vnet", name="vnet"
    ) as running:
        until(lambda: not line.client.run("ping", "-c1", "10.9.0.2", check=False).returncode, "the network")
        link = ("--link", running.socket)
        found.run(line.middle, "vtl-vnet", "link", "add", "wan", "service:wan?delay=1ms", *link)
        running.wait_for("service-link")
        found.run(line.middle, "vtl-vnet", "rule", "add", "on", "vmnet1", "via", "wan", *link)
        until(lambda: running.status()["overlay"]["wan"]["up"], "the service, which passes the clone's frame")
        clone = Ether(src=line.server.mac("eth0"), dst="ff:ff:ff:ff:ff:ff", type=0x88B5)
        line.client.wire("eth0").send(clone)
        running.wait_for("station")
        found.run(line.middle, "vtl-vnet", "rule", "list", *link)
        found.run(line.middle, "vtl-vnet", "status", *link)
    found.ended(running)


def local_ack(found: Printed, line: Line) -> None:
    """vtl-ack, without a connection."""
    links = ("--iface", "vmnet1", "--uplink", "eth0")
    with bridge(found.lab, line.middle, *links, service="vtl-ack", name="ack") as running:
        found.run(line.middle, "vtl-ack", "status", "--link", running.socket)
    found.ended(running)


def vortex(found: Printed, line: Line) -> None:
    """vortex-client, whose backend is the client, with a flow."""
    middle, server = line.middle, line.server
    middle.addr("eth0", "10.9.0.9/24")
    line.client.run("ip", "addr", "add", "198.18.0.2/24", "dev", "eth0")
    line.client.run("ip", "route", "add", "default", "dev", "eth0")
    links = ("--iface", "eth0", "--backend", "vmnet1", "--private")
    with bridge(found.lab, middle, *links, service="vortex-client", name="vortex") as running:
        with server.call(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"x", ("10.9.0.9", 99))
        until(lambda: running.status()["vortex"]["flows"], "the flow")
        with middle.call(partial(socket.create_server, ("10.9.0.9", 80))):
            running.wait_for("given-back")
        for words in ["log"], ["status"], ["pause"], ["resume"]:
            found.run(middle, "vortex-client", *words, "--link", running.socket)
    found.ended(running)
    wormholes(found, line)
    line.client.run("ip", "addr", "del", "198.18.0.2/24", "dev", "eth0")
    line.client.run("ip", "route", "del", "default")
    middle.run("ip", "addr", "del", "10.9.0.9/24", "dev", "eth0")


def wormholes(found: Printed, line: Line) -> None:
    """vortex-backend, whose honeypot is the client, with a flow of a vortex-client."""
    middle, server, keys = line.middle, line.server, found.lab.dir / "clients"
    middle.run(BIN / "vortex-backend", "keygen", keys, "alice")
    links = ("--iface", "vmnet1", "--listen", "127.0.0.1:7701", "--keys", keys)
    key = ("--backend", "tcp:127.0.0.1:7701", "--key-file", keys / "1-alice", "--private")
    with bridge(found.lab, middle, *links, service="vortex-backend", name="end") as running:
        with bridge(found.lab, middle, "--iface", "eth0", *key, service="vortex-client", name="vortex"):
            running.wait_for("client")
            with server.call(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)) as sender:
                sender.sendto(b"x", ("10.9.0.9", 99))
            running.wait_for("attack")
        for words in ["log"], ["status"]:
            found.run(middle, "vortex-backend", *words, "--link", running.socket)
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
                    ["start"], ["status"], ["report"], ["announce"], ["export", exported],
                    ["import", exported], ["stop"],
                ):  # fmt: skip
                    found.run(middle, "vtl-freeze", *words, *link)
    found.ended(running)


def tor(found: Printed, line: Line) -> None:
    """vtl-tor with a proxy that is not Tor, and a connection through it."""
    client, middle, _ = line
    client.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth0")
    seen = b'HTTP/1.0 200 OK\r\n\r\n{"IP": "192.0.2.9", "IsTor": false}'
    with proxy(found.lab.dir / "proxy", b"\5\0", b"\5\0\0\1\0\0\0\0\0\0", seen) as socks:
        url = ("--socks", socks, "--url", "http://check.example/")
        found.run(middle, "vtl-tor", "check", *url, status=1)
        arguments = ("--iface", "vmnet1", "--isolate", "none", "--guard", "process", *url)
        with bridge(found.lab, middle, *arguments, service="vtl-tor", name="tor") as running:
            assert running.event()["event"] == "ready"  # after the address that the world sees
            with client.call(socket.socket) as near:
                near.setblocking(False)
                near.connect_ex(("192.0.2.77", 80))
                until(lambda: running.status()["connections"], "the connection")
                for verb in "status", "flows":
                    found.run(middle, "vtl-tor", verb, "--link", running.socket)
    found.ended(running)


def other_transport(found: Printed, line: Line) -> None:
    """vtl-udt, both modules on one host, with a stranger and a destination that is not allowed."""
    client, middle, _ = line
    key, address = found.lab.dir / "udt.key", "127.0.0.1:7700"
    middle.run(BIN / "vtl-udt", "keygen", key)
    common = ("--key-file", key, "--transport", "tcp")
    there = ("--iface", "eth0", "--listen", address, "--to", "10.9.0.2", *common)
    here = ("--iface", "vmnet1", "--peer", address, *common)
    with bridge(found.lab, middle, *here, service="vtl-udt", name="near") as near:
        with bridge(found.lab, middle, *there, service="vtl-udt", name="far") as far:
            near.wait_for("peer-up")
            with middle.enter(), socket.create_connection(("127.0.0.1", 7700)) as stranger:
                stranger.sendall(bytes(200))
            far.wait_for("peer-refused")
            with client.enter(), pytest.raises(OSError, match="No route to host"):
                socket.create_connection(("10.9.0.3", 80), PATIENCE_S)
            far.wait_for("refused")
            for running in near, far:
                found.run(middle, "vtl-udt", "status", "--link", running.socket)
        found.ended(far)
        near.wait_for("peer-down")
    found.ended(near)


def split(found: Printed, line: Line) -> None:
    """vtl-split, and a connection to a server that it opens."""
    client, middle, _ = line
    middle.addr("lo", "192.0.2.78/32")
    with middle.call(partial(socket.create_server, ("192.0.2.78", 80))):
        opened = ("--iface", "vmnet1", "--allow", "192.0.2.78:80")
        with bridge(found.lab, middle, *opened, service="vtl-split", name="split") as running:
            address = ("192.0.2.78", 80)
            with client.call(partial(socket.create_connection, address, PATIENCE_S)):
                for verb in "status", "flows":
                    found.run(middle, "vtl-split", verb, "--link", running.socket)
    found.ended(running)


def test_every_object_is_as_its_schema_says(printed: Printed) -> None:
    for told in (one for each in printed.of.values() for one in each):
        validated(told)


def test_every_command_that_prints_json_was_run(printed: Printed) -> None:
    able = {
        (tool, verb) for tool in TOOLS for verb in command(tool).commands if "--json" in options(tool, verb)
    }
    able |= {(tool, "") for tool in TOOLS if "--json" in options(tool)}
    assert not {one for one in able if one[1] not in ELSEWHERE and one[1] != "events"} - set(printed.of)
    assert ("vtl-fw", "events") in printed.of


def test_every_schema_has_its_object_and_every_object_its_schema() -> None:
    """The names that the sources have, and the files."""
    sources = [path.read_text() for path in (ROOT / "vtl_tools").rglob("*.py")]
    named = {name for text in sources for name in re.findall(r'"([a-z][a-z.-]*)/[0-9]+"', text)}
    assert any('.status/1"' in text for text in sources)
    assert named | {f"{tool}.status" for tool in SERVICES} == names()


def test_every_event_is_printed_by_a_test(printed: Printed) -> None:
    seen = {one["event"] for each in printed.of.values() for one in each if one["schema"] == "event/1"}
    assert set(schema("event")["properties"]["event"]["enum"]) - set(ELSEWHERE) <= seen
    for file in ELSEWHERE.values():
        text = (ROOT / file).read_text()
        assert "validated(" in text or "tests.running" in text, f"{file} validates nothing"


def test_every_schema_is_sound_and_says_what_it_describes() -> None:
    for name in names():
        Draft202012Validator.check_schema(schema(name))
        assert schema(name)["title"] == schema(name)["properties"]["schema"]["const"]
        assert schema(name)["description"]
