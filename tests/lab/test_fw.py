"""vtl-fw between real network stacks, used as its user would."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

RULES = """
set @server = 10.9.0.2, fd09::2
allow out tcp to @server port 80
allow in tcp from 10.9.0.2 port 22
allow out icmp, icmp6 type echo-request
reject out tcp port 81
deny any log
"""
SIX = ("--address", "fd09::1", "--address", "fe80::/10")
Scene = tuple[Host, Host, Host]


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """client, the VM (10.9.0.1) - vmnet1 [middle] eth0 - server (10.9.0.2)."""
    return line_of_three(lab)


@contextmanager
def firewall(lab: Lab, middle: Host, *arguments: str, text: str = RULES) -> Iterator[Bridge]:
    rules = lab.dir / "fw.rules"
    rules.write_text(text)
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules)
    own = () if "--spoofing" in arguments else ("--address", "10.9.0.1", *SIX)
    with bridge(lab, middle, *links, *own, *arguments, service="vtl-fw") as running:
        assert running.ready["event"] == "ready"
        yield running


def verb(running: Bridge, name: str, *words: str) -> str:
    """Run a verb of the tool; its standard output."""
    where = ["--link", running.socket]
    command = [BIN / "vtl-fw", name, *words, *where]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def listen(host: Host, port: int) -> socket.socket:
    return host.call(partial(socket.create_server, ("", port)))


def connect(host: Host, address: str, port: int) -> socket.socket:
    return host.call(partial(socket.create_connection, (address, port), 1.0))


@pytest.mark.parametrize(
    ("text", "options"),
    [("reject any", ()), ("allow any", ()), ("reject any", ("--spoofing",))],
    ids=["rejecting", "allowing", "rejecting for a router"],
)
def test_a_connection_of_the_host_on_the_shared_uplink_is_neither_reset_nor_shown_to_the_vm(
    lab: Lab, scene: Scene, text: str, options: tuple[str, ...]
) -> None:
    client, middle, server = scene
    middle.addr("eth0", "10.9.0.3/24")
    with listen(server, 82) as listener, firewall(lab, middle, *options, text=text) as running:
        reaches(client, "10.9.0.2")  # so that the Ethernet address of the VM is known
        wire = client.wire()
        before = sum(running.drops().values())
        with connect(middle, "10.9.0.2", 82) as ours, listener.accept()[0] as theirs:
            for number in range(20):
                theirs.sendall(bytes([number]))
                assert ours.recv(1) == bytes([number])
                ours.sendall(bytes([number]))
                assert theirs.recv(1) == bytes([number])
            until(lambda: sum(running.drops().values()) >= before + 20, "the firewall's look at each segment")
            theirs.sendall(b"end")
            assert ours.recv(3) == b"end"
        assert options or running.drops()["other-station"] >= 20
        assert not [frame for frame in wire.read() if socket.inet_aton("10.9.0.3") in frame[26:34]]


def test_rules_decide_and_answers_need_none(lab: Lab, scene: Scene) -> None:
    client, middle, server = scene
    web, ssh = listen(server, 80), listen(client, 22)
    with web, ssh, firewall(lab, middle) as running:
        assert reaches(client, "10.9.0.2")
        assert reaches(client, "fd09::2")
        assert not reaches(server, "10.9.0.1")
        for address in "10.9.0.2", "fd09::2":  # in fragments
            client.run("ping", "-c1", "-W1", "-q", "-s4000", address)
        for listener, caller, address, port in (
            (web, client, "10.9.0.2", 80),
            (ssh, server, "10.9.0.1", 22),
        ):
            with connect(caller, address, port) as near, listener.accept()[0] as far:
                for source, sink in (near, far), (far, near):
                    source.sendall(bytes(100_000))
                    sink.settimeout(PATIENCE_S)
                    with sink.makefile("rb") as octets:
                        assert len(octets.read(100_000)) == 100_000
        with pytest.raises(ConnectionRefusedError):
            connect(client, "10.9.0.2", 81)
        with pytest.raises(TimeoutError):
            connect(client, "10.9.0.2", 82)
        event = running.event()
        while event["direction"] != "out" or event.get("dport") != 82:
            event = running.event()
        assert (event["event"], event["verdict"], event["rule"][-2:]) == ("packet", "deny", ":7")
        assert running.drops()["rule"] > 0
        counts = running.status()["rules"]
        assert any(row["text"].endswith("port 22") and row["packets"] > 10 for row in counts.values())


def test_a_reload_ends_what_it_does_not_allow_and_spares_the_rest(lab: Lab, scene: Scene) -> None:
    client, middle, server = scene
    other = lab.dir / "other.rules"
    other.write_text('include "more.rules"\ndeny any\n')
    (lab.dir / "more.rules").write_text("allow out tcp port 8080\n")
    text = "allow out tcp port 80, 8080\ndeny any\n"
    with listen(server, 80) as one, listen(server, 8080) as two, firewall(lab, middle, text=text) as running:
        with connect(client, "10.9.0.2", 80) as gone, connect(client, "10.9.0.2", 8080) as stays:
            ours, theirs = one.accept()[0], two.accept()[0]
            with ours, theirs:
                named = f"out tcp 10.9.0.1:{gone.getsockname()[1]} 10.9.0.2:80"
                listed = [json.loads(line)["flow"] for line in verb(running, "flows", "--json").splitlines()]
                assert named in listed
                assert verb(running, "reload", "--dry-run", "--rules", str(other)) == f"{named}\n"
                assert running.status()["policy"]["file"] == str(lab.dir / "fw.rules")
                assert verb(running, "reload", "--rules", str(other)) == f"{named}\n"
                assert "other.rules:2: deny any\n" in verb(running, "explain", *named.split())
                for sender, listener, passes in (gone, ours, False), (stays, theirs, True):
                    sender.sendall(b"more")
                    listener.settimeout(PATIENCE_S if passes else 0.5)
                    if passes:
                        assert listener.recv(9) == b"more"
                    else:
                        with pytest.raises(TimeoutError):
                            listener.recv(9)
                other.write_text("deny any\nalow out\n")
                command = [BIN / "vtl-fw", "reload", "--link", running.socket]  # again the file that it has
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                assert done.returncode == 2
                assert f"{other}:2:1: expected" in done.stderr
                stays.sendall(b"still")
                assert theirs.recv(9) == b"still"
                kept = f"out tcp 10.9.0.1:{stays.getsockname()[1]} 10.9.0.2:8080"
                verb(running, "kill", kept)
                stays.sendall(b"no")
                theirs.settimeout(0.5)
                with pytest.raises(TimeoutError):
                    theirs.recv(9)


def test_kill_9_opens_nothing(lab: Lab, scene: Scene) -> None:
    client, middle, _ = scene
    for interface in "vmnet1", "eth0":  # the host would answer, and forward
        middle.addr(interface, f"10.9.0.{3 if interface == 'vmnet1' else 4}/24")
    middle.call(partial(Path("/proc/sys/net/ipv4/ip_forward").write_text, "1"))
    rules = lab.dir / "fw.rules"
    rules.write_text("allow any\n")
    command = [BIN / "vtl-fw", "--iface", "vmnet1", "--uplink", "eth0", "--rules", rules]
    command += ["--address", "10.9.0.1", "--json", "--control", lab.dir / "k.sock"]
    process = middle.popen(*command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert b"ready" in process.stdout.readline()
    until(lambda: reaches(client, "10.9.0.2"), "the firewall")
    process.kill()
    process.wait(PATIENCE_S)
    for address in "10.9.0.2", "10.9.0.3", "10.9.0.4":
        assert not reaches(client, address), address


def test_a_vm_sends_as_itself_or_not_at_all(lab: Lab, scene: Scene) -> None:
    client, middle, _ = scene
    with firewall(lab, middle, text="allow any\n") as running:
        assert reaches(client, "10.9.0.2")
        client.addr("eth0", "10.9.0.77/24")
        ping = ("ping", "-c1", "-W1", "-q", "-I", "10.9.0.77", "10.9.0.2")
        assert client.run(*ping, check=False).returncode == 1
        assert {"spoofed-arp", "spoofed-address"} & set(running.drops())
        client.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
        assert not reaches(client, "10.9.0.2")
        assert running.drops()["spoofed-mac"] > 0
    with firewall(lab, middle, "--spoofing", text="allow any\n") as running:
        until(lambda: reaches(client, "10.9.0.2"), "anybody to pass")


def test_rules_come_by_a_pipe_and_wrong_ones_start_nothing(lab: Lab, scene: Scene) -> None:
    client, middle, _ = scene
    socket_path = lab.dir / "p.sock"
    command = [BIN / "vtl-fw", "--iface", "vmnet1", "--uplink", "eth0", "--rules", "-", "--json"]
    command += ["--address", "10.9.0.1", "--control", socket_path]
    for text, starts in ("allow any\n", True), ("allow any\nallow out tcp port htp\n", False):
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        pipe = subprocess.PIPE
        process = middle.popen(*command, stdin=reading, stdout=pipe, stderr=pipe, text=True)
        os.close(reading)
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        if starts:
            assert first["event"] == "ready"
            assert reaches(client, "10.9.0.2")
            assert control.ask(socket_path, "status")["policy"]["file"] == "<stdin>"
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
        else:
            _, err = process.communicate(timeout=PATIENCE_S)
            assert process.returncode == 2
            guarded, said = err.splitlines()
            assert "vtl-fw: vmnet1: stays guarded, and its guest cut off; " in guarded
            assert said.startswith("vtl-fw: <stdin>:2:20: expected a")
    assert not reaches(client, "10.9.0.2")


def test_what_rules_log_is_told_on_standard_error_and_nobody_need_read_it(lab: Lab, scene: Scene) -> None:
    client, middle, _ = scene
    rules = lab.dir / "fw.rules"
    rules.write_text("allow icmp type echo-request\ndeny any log\n")
    command = [BIN / "vtl-fw", "--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--forget"]
    command += ["--address", "10.9.0.1", "--control", lab.dir / "l.sock"]
    process = middle.popen(*command, stderr=subprocess.PIPE, text=True)
    until(lambda: reaches(client, "10.9.0.2"), "the firewall")
    with client.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("10.9.0.1", 5000))
        sender.sendto(b"x", ("10.9.0.2", 99))
        assert process.stderr is not None
        line = "vtl-fw: deny out udp 10.9.0.1:5000 10.9.0.2:99 by "
        while line not in (said := process.stderr.readline()):
            assert said, "the service ended"
        for port in range(1000, 3000):
            sender.sendto(b"x", ("10.9.0.2", port))
    assert reaches(client, "10.9.0.2")
    follower = (BIN / "vtl-fw", "events", "--last", "1000", "--link", lab.dir / "l.sock")
    with middle.popen(*follower, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert re.match(r"\S+Z vmnet1 (packet: deny out udp|ready: process) ", reader.stdout.readline())
        process.terminate()
        *_, last = reader.stdout
        assert "vmnet1 stats: the service ended; vmnet1 received" in last
    _, rest = process.communicate(timeout=PATIENCE_S)
    assert rest.count("vtl-fw: deny out udp 10.9.0.1:5000 10.9.0.2:") >= 50
    assert re.search(r"deny out udp packets that are not told one by one by \S+ \(\d+ more in 60 s\)", rest)


def test_many_flows_are_listed_as_far_as_one_asks_for(lab: Lab, scene: Scene) -> None:
    client, middle, _ = scene
    with firewall(lab, middle, text="allow out udp\ndeny any\n") as running:
        with client.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("10.9.0.1", 5000))
            sender.sendto(b"x", ("10.9.0.2", 1))  # the others would be more than wait for an answer to ARP
            until(lambda: running.status()["policy"]["flows"], "the first flow")
            for port in range(10_000, 12_500):
                sender.sendto(b"x", ("10.9.0.2", port))
        until(lambda: running.status()["policy"]["flows"] >= 2500, "the flows")
        command = [BIN / "vtl-fw", "flows", "--json", "--link", running.socket]

        def asked(*words: str) -> tuple[int, str]:
            ran = subprocess.run([*command, *words], capture_output=True, text=True, check=True)
            return ran.stdout.count('"flow"'), ran.stderr

        assert asked() == (1000, "there are more: give --rule or --address, or a higher --limit\n")
        count, said = asked("--limit", "10000")
        assert (count >= 2500, said) == (True, "")
        assert asked("--limit", "1500", "--address", "10.9.0.2/32", "--rule", "1")[0] == 1500
        assert asked("--address", "10.9.0.3") == (0, "")
