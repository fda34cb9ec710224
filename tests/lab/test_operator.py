"""In an operator's hands: services that were killed, or are another user's; uplinks; lists for programs."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lab import kernel
from lab.netns import Host, Lab
from lab.scenes import line_of_three, routed_guest
from lab.user import NOBODY, as_root_alone, as_user
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from tests.terminal import STYLE, terminal

pytestmark = pytest.mark.lab

Scene = tuple[Host, Host, Host]
RUN = Path("/run/vtl")


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """A guest (10.1.0.2) - vmnet1 [host, 10.1.0.1] eth0 - server (10.2.0.2). /run/vtl is the host's."""
    hosts = routed_guest(lab)
    (lab.dir / "web.rules").write_text("allow out any\ndeny any\n")
    own_run(hosts.host)
    return hosts


def own_run(host: Host) -> None:
    RUN.mkdir(mode=0o755, exist_ok=True)
    host.call(kernel.mount, "tmpfs", str(RUN), "tmpfs")
    host.run("chmod", "0755", RUN)


def firewall(lab: Lab) -> list[str | Path]:
    words = [
        "--iface",
        "vmnet1",
        "--uplink",
        "eth0",
        "--address",
        "10.1.0.2",
        "--rules",
        lab.dir / "web.rules",
    ]
    return [BIN / "vtl-fw", *words]


def start(host: Host, *command: str | Path, user: int | None = None) -> subprocess.Popen[str]:
    more: dict[str, Any] = {} if user is None else {"user": user}
    process = host.popen(
        *command, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )
    assert process.stdout is not None
    assert '"ready"' in process.stdout.readline()
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE_S)


def status(host: Host, tool: str = "vtl-fw", *more: str) -> tuple[int, str, str]:
    done = host.run(BIN / tool, "status", *more, check=False)
    return done.returncode, done.stdout, done.stderr


def objects(host: Host, tool: str = "vtl-fw") -> list[dict[str, Any]]:
    return [json.loads(line) for line in status(host, tool, "--json")[1].splitlines()]


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def test_after_kill_9_nobody_said_which_interface_is_cut_off(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    kill(start(host, *firewall(lab)))
    until(lambda: not list(host.call(lambda: list(RUN.glob("*.sock")))), "the broker to clean up")
    code, out, err = status(host)
    assert (code, err) == (7, "")
    (line,) = out.splitlines()
    service, pid, state, links, alive, cut_off, told = line.split("\t")
    assert (service, state, links, cut_off) == ("vtl-fw", "died", "link=vmnet1 eth0", "cut_off=vmnet1")
    assert alive.startswith("last_alive=20")
    again = f"vtl-fw {shlex.join(map(str, firewall(lab)[1:]))} --json"
    assert told == (
        f"vmnet1: vtl-fw (process {pid}) died after {alive.partition('=')[2]}; vmnet1 stays cut off; "
        f"start it again with '{again}', or run 'vtl-guard clear vmnet1'"
    )
    (found,) = objects(host)
    assert (found["cut_off"], found["links"]) == (["vmnet1"], ["vmnet1", "eth0"])
    assert found["remedies"] == [again, "vtl-guard clear vmnet1"]
    asked = host.run(BIN / "vtl-fw", "flows", check=False)
    assert (asked.returncode, asked.stderr) == (7, f"vtl-fw: {told}\n")
    (row,) = host.run(BIN / "vtl-guard", "list").stdout.splitlines()
    assert row.split("\t")[:4] == ["vmnet1", "in force", "vtl-guard clear vmnet1", "none"]
    assert row.split("\t")[6].startswith("vtl-fw 20")

    with terminal(60) as screen:
        process = host.popen(BIN / "vtl-guard", "list", stdin=screen.theirs, stdout=screen.theirs)
        said = screen.rest()
        assert process.wait(PATIENCE_S) == 0
    assert not screen.too_wide
    assert re.search(r"^vmnet1 +in force ", STYLE.sub("", said), re.M)

    host.run("chmod", "0700", RUN)
    process = start(host, *firewall(lab))  # the first remedy
    assert status(host)[0] == 0
    assert "\trunning\t" in status(host)[1]
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert process.stderr is not None
    *_, line = process.stderr.read().splitlines()
    assert line.partition(" ")[2] == (  # after the time
        "vtl-fw: vmnet1: stays guarded, and its guest cut off; start a service again, or give the interface "
        "back with 'vtl-guard clear vmnet1'"
    )
    assert reaches(host, "10.2.0.2"), "the uplink stays guarded after a normal end"
    code, _, err = status(host)
    assert code == 6
    assert err.endswith("; vmnet1 stays cut off since one ended: 'vtl-guard clear vmnet1' gives it back\n")
    assert host.call(lambda: list(RUN.glob("vtl-fw-*.run"))) == []

    kill(start(host, *firewall(lab)))
    host.run(BIN / "vtl-guard", "clear", "vmnet1")  # the other
    code, _, err = status(host)
    assert (code, err) == (
        6,
        "vtl-fw: no service runs here; start one, or give its control socket by --link\n",
    )
    assert reaches(guest, "10.1.0.1")


def test_a_guard_that_ended_with_its_killed_service_cuts_nothing_off(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    kill(start(host, BIN / "vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0"))
    kill(start(host, *firewall(lab)))
    host.run("nft", "flush", "ruleset")
    assert reaches(guest, "10.1.0.1")
    for tool in "vtl-bridge", "vtl-fw":
        (found,) = objects(host, tool)
        assert (found["state"], found["cut_off"]) == ("died", [])
        assert "; the host receives the frames of vmnet1 again; " in found["error"]
    with terminal(80) as screen:
        process = host.popen(BIN / "vtl-fw", "status", stdin=screen.theirs, stdout=screen.theirs)
        said = screen.rest().replace("\r\n", "\n")
        assert process.wait(PATIENCE_S) == 7
    assert "\n  start it again:    vtl-fw --iface vmnet1 " in said
    assert "\n  or forget it:      rm /run/vtl/vtl-fw-vmnet1.run\n" in said


def test_the_status_of_roots_service_was_that_none_runs(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    start(host, *firewall(lab))
    home = lab.dir / "home"
    home.mkdir(mode=0o700)
    os.chown(home, NOBODY, NOBODY)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(home)}
    asked = [*as_user(lab, host, "vtl-fw"), "status"]
    for more in [], ["--link", "vmnet1"]:
        done = host.run(*asked, *more, user=NOBODY, env=environment, check=False)
        assert done.returncode == 5, done
        assert "/run/vtl/vtl-fw-vmnet1.sock: not permitted to ask; run as root" in done.stdout + done.stderr

    bridge = [*as_user(lab, host, "vtl-bridge")]
    ends = [f"qemu:unix:{home}/a,server", f"qemu:unix:{home}/b,server"]
    links = [word for end in ends for word in ("--iface", end)]
    pipe = subprocess.PIPE
    own = host.popen(*bridge, *links, "--json", user=NOBODY, env=environment, stdout=pipe, text=True)
    assert '"ready"' in own.stdout.readline()
    start(
        host,
        BIN / "vtl-bridge",
        "--iface",
        f"qemu:unix:{lab.dir}/c,server",
        "--iface",
        f"qemu:unix:{lab.dir}/d",
    )
    done = host.run(*bridge, "status", user=NOBODY, env=environment, check=False)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert sorted({row[2] for row in rows}) == ["link", "not permitted", "running"]
    kill(own)
    assert list((home / "vtl").glob("*.sock")), "the user's socket is left: this user has no broker"
    done = host.run(*bridge, "status", "--json", user=NOBODY, env=environment, check=False)
    found = {each["state"]: each for each in map(json.loads, done.stdout.splitlines())}
    assert (done.returncode, set(found)) == (7, {"died", "not permitted"})
    assert found["died"]["links"] == ends

    host.run("chmod", "0700", "/run/vtl")
    done = host.run(*asked, user=NOBODY, env=environment, check=False)
    assert done.returncode == 5
    assert done.stderr == "vtl-fw: /run/vtl: not permitted to look for root's services; run as root\n"


def test_the_uplink_could_be_guarded_by_a_slip_and_locked_the_administrator_out(
    lab: Lab, scene: Scene
) -> None:
    _, host, _ = scene
    host.route("default", "10.2.0.2")
    done = host.run(BIN / "vtl-guard", "raise", "eth0", check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "vtl-guard: eth0: carries the host's default route of IPv4: a guard would cut the host off from its "
        "network, and you from the host; remove the route by 'ip -4 route del default dev eth0' where a VM "
        "is behind it, or give --force\n"
    )
    assert host.run(BIN / "vtl-guard", "list", check=False).stdout == ""
    for command in ["vtl-fw", "--iface", "eth0", "--uplink", "vmnet1", "--rules", lab.dir / "web.rules"], [
        "vtl-bridge", "--iface", "eth0", "--uplink", "vmnet1",
    ]:  # fmt: skip
        with terminal(80) as screen:  # where a person starts it
            tool, *words = command
            process = host.popen(BIN / tool, *words, stdin=screen.theirs, stderr=screen.theirs)
            assert "eth0: carries the host's default route" in screen.rest()
            assert process.wait(PATIENCE_S) == 2
    assert reaches(host, "10.2.0.2")

    host.run("ip", "route", "del", "default")
    host.run("ip", "link", "add", "link", "eth0", "name", "above", "type", "macvlan")
    host.run("ip", "link", "set", "above", "up")
    host.addr("above", "10.5.0.1/24")
    host.run("ip", "route", "add", "default", "via", "10.5.0.2", "table", "77")
    done = host.run(BIN / "vtl-guard", "raise", "eth0", check=False)
    assert "'ip -4 route del default dev above'" in done.stderr

    host.run(BIN / "vtl-guard", "raise", "--force", "eth0")
    assert not reaches(host, "10.2.0.2")
    host.run(BIN / "vtl-guard", "clear", "eth0")
    assert reaches(host, "10.2.0.2")


def test_the_live_table_of_a_service_goes_on_after_it_gave_up_root(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    with terminal(80) as screen:
        bridge = [*as_root_alone(lab, host, "vtl-bridge"), "--iface", "vmnet1", "--uplink", "eth0"]
        words = ["env", "TERM=xterm", "NO_COLOR=1", *bridge, "--guard", "keep", "--watch"]
        process = host.popen(*words, stdin=screen.theirs, stdout=screen.theirs, stderr=screen.theirs)
        screen.until(lambda: screen.said.count("per second:") >= 2)
        screen.resize(60, 8)
        host.run("ip", "link", "set", "vmnet1", "down")
        screen.until(lambda: any(line.startswith("vmnet1 ") and " down " in line for line in screen.seen()))
        host.run("ip", "link", "set", "vmnet1", "up")
        process.send_signal(signal.SIGINT)
        said = screen.rest()
        assert process.wait(PATIENCE_S) == 130
    assert "\x1b[1m" not in said
    assert "vmnet1: stays guarded" in said.splitlines()[-1]


def test_what_flows_lists_kill_accepts(lab: Lab) -> None:
    client, middle, server = line_of_three(lab)
    own_run(middle)
    (lab.dir / "web.rules").write_text("allow any\n")
    addresses = ["--address", "10.9.0.1", "--address", "fd09::1"]
    start(middle, *firewall(lab)[:5], *addresses, "--rules", lab.dir / "web.rules")
    until(lambda: reaches(client, "10.9.0.2") and reaches(client, "fd09::2"), "the firewall")
    for family, address in (socket.AF_INET, "10.9.0.2"), (socket.AF_INET6, "fd09::2"):
        with server.enter():
            lab.defer(socket.create_server((address, 80), family=family).close)
        with client.enter():
            lab.defer(socket.create_connection((address, 80), PATIENCE_S).close)

    def flows() -> list[str]:
        return middle.run(BIN / "vtl-fw", "flows").stdout.splitlines()

    until(lambda: len([line for line in flows() if "ESTABLISHED" in line and "tcp" in line]) == 2, "both")
    ended = middle.run("sh", "-ec", f"{BIN}/vtl-fw flows | grep tcp | cut -f1 | xargs -L1 {BIN}/vtl-fw kill")
    assert ended.stderr == ""
    ping = f"{BIN}/vtl-fw flows | awk '$2 == \"icmp\" {{print $1, $2, $3, $4}}' | xargs -L1 {BIN}/vtl-fw kill"
    middle.run("sh", "-ec", ping)
    assert not [line for line in flows() if "ESTABLISHED" in line or "icmp" in line]
