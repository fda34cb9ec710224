"""What lifts a guard, or walks around the service behind it: each attack on the kernel, by its own means."""

import json
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import routed_guest
from lab.user import NOBODY, as_user
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from vtl_tools.common.device.capture import quiet_scapy

pytestmark = pytest.mark.lab

Scene = tuple[Host, Host, Host]
Running = subprocess.Popen[str]
GUARD = BIN / "vtl-guard"
TOR = ("vtl-tor", "--iface", "vmnet1", "--no-check")
FW = ("vtl-fw", "--iface", "vmnet1", "--uplink", "eth0")
BRIDGE = ("vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0")


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """A guest (10.1.0.2) - vmnet1 [host, 10.1.0.1, forwards] eth0 - world (10.2.0.2)."""
    hosts = routed_guest(lab)
    (lab.dir / "deny.rules").write_text("deny any\n")
    return hosts


def words(lab: Lab, *command: str | Path, run: str = "run") -> list[str | Path]:
    """Return a command whose control sockets are in a directory of its own."""
    (lab.dir / run).mkdir(mode=0o700, exist_ok=True)
    tool, *rest = command
    rules = ["--rules", lab.dir / "deny.rules"] if tool == "vtl-fw" else []
    return ["env", f"VTL_RUN={lab.dir / run}", BIN / tool, *rest, *rules]


@contextmanager
def service(lab: Lab, host: Host, *command: str | Path, run: str = "run") -> Iterator[Running]:
    """Run a service until killed; it is ready."""
    pipe = subprocess.PIPE
    process = host.popen(*words(lab, *command, "--json", run=run), stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert '"ready"' in first, (first, process.communicate())
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def refused(lab: Lab, host: Host, *command: str | Path, run: str = "other") -> str:
    """Start a service that does not come to be; return what it says."""
    done = host.run(*words(lab, *command, run=run), check=False)
    assert done.returncode != 0
    return done.stderr


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def listed(host: Host) -> list[dict[str, object]]:
    return [json.loads(line) for line in host.run(GUARD, "list", "--json").stdout.splitlines()]


def states(host: Host) -> list[tuple[object, ...]]:
    return [(g["table"], g["in_force"], g["service"], g["service_pid"]) for g in listed(host)]


def events(process: Running, kind: str) -> Iterator[dict[str, object]]:
    """Yield the events of a kind that a service tells, as they come."""
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == kind:
            yield event


def raised_anew(process: Running, *, interface: str = "vmnet1") -> str:
    """Wait until a service tells that it raised its guard anew; return why."""
    return next(str(e["reason"]) for e in events(process, "guard") if e["interface"] == interface)


# --- a guest that makes its interface look like the way to the world


def advertise(guest: Host) -> None:
    """Say by a router advertisement (RFC 4861 4.2) that the guest is the way to everywhere."""
    with quiet_scapy():
        from scapy.layers.inet6 import ICMPv6ND_RA, IPv6
        from scapy.layers.l2 import Ether
    frame = Ether(src=guest.mac("eth0"), dst="33:33:00:00:00:01")
    frame /= IPv6(src="fe80::bad", dst="ff02::1", hlim=255) / ICMPv6ND_RA(routerlifetime=1800)
    guest.wire().send(frame)


def default_route(host: Host) -> str:
    return host.run("ip", "-6", "route", "show", "default", "dev", "vmnet1").stdout


@pytest.mark.parametrize("command", [TOR, FW, BRIDGE], ids=lambda c: c[0])
def test_a_router_advertisement_of_the_guest_leaves_it_without_a_guard(
    lab: Lab, scene: Scene, command: tuple[str, ...]
) -> None:
    guest, host, _ = scene
    advertise(guest)
    until(lambda: default_route(host), "the route by the guest")
    with service(lab, host, *command) as process:
        assert [(g["name"], g["in_force"]) for g in listed(host)] == [("vmnet1", True)]
        assert not reaches(guest, "10.1.0.1")
        assert not reaches(guest, "fd01::1")
        process.kill()
        assert process.stderr is not None
        (warning,) = [line for line in process.stderr.read().splitlines() if "default route" in line]
    assert warning.endswith("remove it with 'ip -6 route del default dev vmnet1'")


def test_a_link_to_the_world_is_not_cut_off_unasked(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    host.route("default", "10.2.0.2")
    said = refused(lab, host, "vtl-bridge", "--iface", "vmnet1", "--iface", "eth0")
    assert said == (
        "vtl-bridge: eth0: carries the host's default route, and a guard would cut the host off; "
        "name it as --uplink eth0, remove the route by 'ip -4 route del default dev eth0' where a VM is "
        "behind it, or give --guard off\n"
    )
    assert listed(host) == []
    with service(lab, host, *BRIDGE):
        assert reaches(host, "10.2.0.2")
        assert not reaches(guest, "10.1.0.1")


def test_after_a_normal_end_the_guest_is_cut_off_and_the_uplink_is_not(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    with service(lab, host, *FW) as process:
        assert reaches(host, "10.2.0.2")
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    assert [g["name"] for g in listed(host)] == ["vmnet1"]
    assert not reaches(guest, "10.1.0.1")
    assert reaches(host, "10.2.0.2")


# --- names


def test_an_alternative_name_guards_nothing(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    host.run("ip", "link", "property", "add", "dev", "vmnet1", "altname", "guestlan0")
    host.run(GUARD, "raise", "guestlan0")
    assert not reaches(guest, "10.1.0.1")
    assert [(g["name"], g["in_force"]) for g in listed(host)] == [("vmnet1", True)]
    host.run(GUARD, "clear", "guestlan0")
    assert listed(host) == []
    assert reaches(guest, "10.1.0.1")
    said = refused(lab, host, "vtl-bridge", "--iface", "vmnet1", "--iface", "guestlan0")
    assert "guestlan0: is vmnet1; a service stands between different links" in said
    with service(lab, host, "vtl-tor", "--iface", "guestlan0", "--no-check"):
        assert not reaches(guest, "10.1.0.1")
        assert [(g["name"], g["in_force"]) for g in listed(host)] == [("vmnet1", True)]


@pytest.mark.parametrize("command", [TOR, (*BRIDGE, "--workers", "2")], ids=lambda c: c[0])
def test_renaming_the_interface_lifts_its_guard(lab: Lab, scene: Scene, command: tuple[str, ...]) -> None:
    guest, host, _ = scene
    with service(lab, host, *command) as process:
        host.run("ip", "link", "set", "dev", "vmnet1", "name", "renamed0")
        assert raised_anew(process, interface="renamed0") == "was renamed from vmnet1"
        assert not reaches(guest, "10.1.0.1")
        in_force = [g["name"] for g in listed(host) if g["in_force"]]
        assert in_force == ["renamed0"]
        host.run("ip", "link", "set", "dev", "renamed0", "down")  # the link follows, too
        host.run("ip", "link", "set", "dev", "renamed0", "up")
        up = (e for e in events(process, "link") if e["up"])
        assert next(up)["changed"] == "vmnet1"
        assert not reaches(guest, "10.1.0.1")


def test_a_list_shows_a_guard_that_a_new_name_has_lifted_as_one_that_holds(scene: Scene) -> None:
    guest, host, _ = scene
    host.run(GUARD, "raise", "vmnet1")
    host.run("ip", "link", "set", "dev", "vmnet1", "name", "renamed0")
    (found,) = listed(host)
    assert found["in_force"] == (not reaches(guest, "10.1.0.1"))
    if not found["in_force"]:
        assert (
            "not in force: no interface of this name" in host.run("env", "COLUMNS=200", GUARD, "list").stdout
        )


# --- nft


@pytest.mark.parametrize("command", [TOR, BRIDGE, (*BRIDGE, "--guard", "keep", "--workers", "2")])
@pytest.mark.parametrize("attack", ["flush ruleset", "delete table netdev vtl_kept_vmnet1"])
def test_another_program_flushes_the_rules_away(
    lab: Lab, scene: Scene, command: tuple[str, ...], attack: str
) -> None:
    guest, host, _ = scene
    with service(lab, host, *command) as process:
        kept = [g for g in listed(host) if g["form"] == "kept"]
        host.run("nft", attack, check=bool(kept))
        if kept:
            assert raised_anew(process) == "was removed by another program"
        assert [g["in_force"] for g in listed(host)] == [True]
        assert not reaches(guest, "10.1.0.1")


@pytest.mark.parametrize(
    "attack",
    [
        "flush chain netdev vtl_kept_vmnet1 from_guest; "
        "chain netdev vtl_kept_vmnet1 from_guest { policy accept; }",
        "insert rule netdev vtl_kept_vmnet1 from_guest accept",
        "delete chain netdev vtl_kept_vmnet1 from_guest",
        "add table netdev vtl_kept_vmnet1 { flags dormant; }",
    ],
)
def test_another_program_opens_the_guard_a_little(lab: Lab, scene: Scene, attack: str) -> None:
    guest, host, _ = scene
    with service(lab, host, *TOR) as process:
        host.run("nft", attack)
        assert raised_anew(process) == "was changed by another program"
        assert [g["in_force"] for g in listed(host)] == [True]
        assert not reaches(guest, "10.1.0.1")


def test_a_service_that_is_root_no_more_raises_its_guard_anew(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    (lab.dir / "nobodys").mkdir()
    os.chown(lab.dir / "nobodys", NOBODY, NOBODY)
    rights = "+net_admin,+net_raw"
    user = ("setpriv", "--reuid", "65534", "--clear-groups", "--inh-caps", rights, "--ambient-caps", rights)
    tool = ("env", f"VTL_RUN={lab.dir}/nobodys", *as_user(lab, host, "vtl-tor"), *TOR[1:], "--json")
    with host.popen(*user, *tool, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert '"ready"' in process.stdout.readline()
        host.run("nft", "flush", "ruleset")
        assert raised_anew(process) == "was removed by another program"
        assert not reaches(guest, "10.1.0.1")
        process.kill()


def test_a_guard_is_cleared_under_the_service_that_keeps_it(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    with service(lab, host, *TOR) as process:
        done = host.run(GUARD, "clear", "vmnet1", check=False)
        assert done.returncode == 1
        assert "uses it; stop that service first" in done.stderr
        assert not reaches(guest, "10.1.0.1")
        process.terminate()
        process.wait()
    host.run(GUARD, "clear", "vmnet1")
    host.run(GUARD, "raise", "vmnet1")
    with service(lab, host, *BRIDGE):  # whose own guard goes with it
        host.run(GUARD, "clear", "vmnet1")
        assert not reaches(guest, "10.1.0.1")


def test_an_interface_that_is_made_anew_has_no_guard(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    with service(lab, host, *TOR) as process:
        host.run("ip", "link", "del", "vmnet1")
        lab.veth(guest, "eth0", host, "vmnet1")
        guest.addr("eth0", "10.1.0.2/24")
        host.addr("vmnet1", "10.1.0.1/24")
        assert raised_anew(process) == "was created again"
        assert [g["in_force"] for g in listed(host)] == [True]
        assert not reaches(guest, "10.1.0.1")
        said = refused(lab, host, *FW)
        assert "already serves this interface" in said


def test_the_guest_gets_out_while_the_guard_is_flushed_again_and_again(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    heard = "awk '/^Ip: [0-9]/ {print $4}' /proc/net/snmp"
    with service(lab, host, *TOR) as process:
        ping = guest.popen("ping", "-f", "-q", "10.1.0.1")
        guest.run("ip", "neigh", "replace", "10.1.0.1", "lladdr", host.mac("vmnet1"), "dev", "eth0")
        before = host.run("sh", "-c", heard).stdout
        for _ in range(100):
            host.run("nft", "flush", "ruleset")
        assert process.poll() is None
        assert host.run("sh", "-c", heard).stdout == before
        ping.kill()


def test_a_service_counts_what_happened_to_its_guard(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    with service(lab, host, *TOR) as process:
        host.run("nft", "flush", "ruleset")
        raised_anew(process)
        status = json.loads(host.run(*words(lab, "vtl-tor", "status", "--json")).stdout)
        assert status["guards"] == {"vmnet1": {"form": "kept", "raised_anew": 1}}


# --- a second service


OTHERS = {
    "bridge": ("vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0"),
    "bridge without guard": ("vtl-bridge", "--iface", "vmnet1", "--iface", "eth0", "--guard", "off"),
    "an alternative name": ("vtl-bridge", "--iface", "guestlan0", "--uplink", "eth0"),
    "libpcap": ("vtl-bridge", "--iface", "libpcap:vmnet1", "--uplink", "eth0"),
    "as an uplink": ("vtl-bridge", "--iface", "other0", "--uplink", "vmnet1"),
    "one way out": ("vtl-bridge", "--iface", "vmnet1", "--iface", "eth0", "--half-duplex", "--guard", "off"),
    "one way in": ("vtl-bridge", "--iface", "other0", "--iface", "vmnet1", "--half-duplex", "--guard", "off"),
    "workers": ("vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0", "--workers", "2"),
    "tor": ("vtl-tor", "--iface", "vmnet1", "--no-check"),
    "fw": FW,
    "subnet": ("vtl-subnet", "--iface", "vmnet1", "--default", "eth0", "--direct", "other0",
               "--allow", "10.0.0.0/8"),
    "the direct link": ("vtl-subnet", "--iface", "other0", "--default", "eth0", "--direct", "vmnet1",
                        "--allow", "10.0.0.0/8"),
}  # fmt: skip


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_second_service_walks_around_the_first(lab: Lab, scene: Scene, other: tuple[str, ...]) -> None:
    _, host, _ = scene
    host.run("ip", "link", "property", "add", "dev", "vmnet1", "altname", "guestlan0")
    lab.veth(host, "other0", host, "other1")
    with service(lab, host, *FW):
        before = states(host)
        said = refused(lab, host, *other)
        (line,) = [line for line in said.splitlines() if "already serves" in line]
        assert ": vmnet1: vtl-fw (process " in line
        assert line.endswith(" already serves this interface; stop it first")
        assert states(host) == before


def test_a_second_service_comes_from_another_mount_namespace_and_user(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    with service(lab, host, *FW):
        elsewhere = ("unshare", "--mount", "--pid", "--fork", "--ipc", *words(lab, *BRIDGE, run="other"))
        done = host.run(*elsewhere, check=False)
        assert (done.returncode, "already serves this interface" in done.stderr) == (1, True)
        (lab.dir / "nobodys").mkdir()
        os.chown(lab.dir / "nobodys", NOBODY, NOBODY)
        rights = "+net_admin,+net_raw"
        user = (
            "setpriv",
            "--reuid",
            "65534",
            "--clear-groups",
            "--inh-caps",
            rights,
            "--ambient-caps",
            rights,
        )
        tool = ("env", f"VTL_RUN={lab.dir}/nobodys", *as_user(lab, host, "vtl-bridge"), *BRIDGE[1:])
        done = host.run(*user, *tool, check=False)
        assert (done.returncode, "already serves this interface" in done.stderr) == (1, True), done.stderr


def test_the_second_service_comes_first_and_the_firewall_stands_beside_it(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    with service(lab, host, *BRIDGE, "--guard", "off"):
        assert "vtl-bridge (process " in refused(lab, host, *FW)


def test_a_killed_service_keeps_the_next_one_out(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    for command in (FW, (*BRIDGE, "--workers", "2"), TOR):
        with service(lab, host, *command) as process:
            process.kill()
            process.wait()
    assert {g["service"] for g in listed(host)} == {""}


def test_firewalls_of_two_guests_share_an_uplink_that_no_guest_is_behind(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    lab.veth(host, "vmnet2", host, "far2")
    second = ("vtl-fw", "--iface", "vmnet2", "--uplink", "eth0")
    with service(lab, host, *FW), service(lab, host, *second, run="second"):
        said = refused(lab, host, "vtl-tor", "--iface", "eth0", "--no-check")
        assert "eth0: vtl-fw (process " in said
        assert {g["name"]: g["service"] for g in listed(host)} == {"vmnet1": "vtl-fw", "vmnet2": "vtl-fw"}


def test_two_half_duplex_bridges_share_their_interfaces_and_no_third(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    out = ("vtl-bridge", "--half-duplex", "--iface", "vmnet1", "--iface", "eth0")
    back = ("vtl-bridge", "--half-duplex", "--iface", "eth0", "--iface", "vmnet1")
    with service(lab, host, *out), service(lab, host, *back, run="second"):
        for third in (out, back, FW):
            assert "already serves this interface" in refused(lab, host, *third)


def test_a_watcher_stands_beside_a_service_before_and_after(lab: Lab, scene: Scene) -> None:
    _, host, _ = scene
    with service(lab, host, "vtl-freeze", "--iface", "vmnet1"), service(lab, host, *FW):
        pass
    with service(lab, host, *FW), service(lab, host, "vtl-freeze", "--iface", "vmnet1"):
        pass


# --- the time before a service is ready


def test_the_guest_is_let_out_until_the_proxy_answers(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(lab.dir / "proxy"))
        mute.listen()
        command = words(lab, "vtl-tor", "--iface", "vmnet1", "--socks", f"unix:{lab.dir / 'proxy'}")
        process = host.popen(*command, stderr=subprocess.PIPE, text=True)
        asked, _ = mute.accept()
        assert not reaches(guest, "10.1.0.1"), "the proxy was asked before the guest was cut off"
        asked.close()
        _, said = process.communicate()
    assert process.returncode == 1
    assert "vtl-tor: vmnet1: stays guarded, and its guest cut off; " in said.splitlines()[0]
    assert not reaches(guest, "10.1.0.1")


def test_the_guest_is_let_out_until_the_rules_are_read(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    pipe = subprocess.PIPE
    command = words(lab, "vtl-bridge")[:2]
    process = host.popen(
        *command, BIN / "vtl-fw", *FW[1:], "--rules", "-", "--json", stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    until(lambda: listed(host), "the guard")
    assert not reaches(guest, "10.1.0.1")
    assert not select.select([process.stdout], [], [], 0)[0]
    process.stdin.write("deny any\n")
    process.stdin.close()
    assert '"ready"' in process.stdout.readline()
    process.kill()
    process.wait()


def test_tor_that_was_started_holds_the_interface_when_its_service_is_dead(lab: Lab, scene: Scene) -> None:
    """A process that vtl-tor leaves behind must not have its descriptors."""
    _, host, _ = scene
    stub = lab.dir / "bin" / "tor"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    stub.chmod(0o755)
    path = f"PATH={stub.parent}:{os.environ['PATH']}"
    with service(lab, host, "vtl-bridge", "--iface", "vmnet1", "--uplink", "eth0"):
        pass
    command = ("env", path, *words(lab, "vtl-tor", "--iface", "vmnet1", "--start-tor", "--json"))
    process = host.popen(*command, stdout=subprocess.PIPE, text=True)
    with process, suppress(ProcessLookupError):
        assert process.stdout is not None
        until(lambda: '"ready"' in process.stdout.readline(), "vtl-tor")
        process.kill()
        process.wait()
        with service(lab, host, *FW, run="other"):
            pass
