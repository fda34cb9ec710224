"""An uplink that the host uses, too: frames for the host's own Ethernet address are the host's alone."""

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.wait import until
from tests.running import Bridge, bridge

pytestmark = pytest.mark.lab

Scene = tuple[Host, Host, Host]
BRIDGE = ("vtl-bridge", "--iface", "vmnet1", "--uplink")
SERVICES = {
    "cable": (*BRIDGE, "eth0"),
    "workers": (*BRIDGE, "eth0", "--workers", "2"),
    "switch": (*BRIDGE, "eth0", "--iface", "spare"),
    "libpcap": (*BRIDGE, "libpcap:eth0"),
    "wan": ("vtl-wan", "--iface", "vmnet1", "--uplink", "eth0"),
    "subnet": ("vtl-subnet", "--iface", "vmnet1", "--default", "eth0", "--direct", "spare",
               "--allow", "10.8.0.0/16"),
    "fw": ("vtl-fw", "--iface", "vmnet1", "--uplink", "eth0", "--mac", "02:00:00:00:00:01"),
}  # fmt: skip


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """guest 10.9.0.1 - vmnet1 [host 10.9.0.3] eth0 - network 10.9.0.2; `spare` is of no use."""
    guest, host, network = line_of_three(lab)
    host.addr("eth0", "10.9.0.3/24")
    lab.veth(host, "spare", host, "loose-end")
    guest.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:01")
    # libpcap has no virtio_net_hdr, so that nothing may be left for a network card to do.
    for each in guest, host, network:
        each.run("ethtool", "-K", "eth0", "tso", "off", "gso", "off", "gro", "off", "tx", "off")
    return guest, host, network


def run(lab: Lab, host: Host, *command: str) -> AbstractContextManager[Bridge]:
    service, *arguments = command
    if service == "vtl-fw":
        rules = lab.dir / "fw.rules"
        rules.write_text("allow any")
        arguments += ["--rules", str(rules), "--address", "10.9.0.1"]
    return bridge(lab, host, *arguments, service=service)


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def pings_the_host(network: Host) -> None:
    network.run("ping", "-c3", "-i0.05", "-q", "10.9.0.3")


def shown_to_the_guest(guest: Host, network: Host, cause: Callable[[], object]) -> list[bytes]:
    """Return the unicast frames that reach the guest while something happens, but those for the guest."""
    wire = guest.wire()
    cause()
    until(lambda: reaches(network, "10.9.0.1"), "the guest")
    return [frame for frame in wire.read() if not frame[0] & 1 and frame[:6] != octets(guest.mac("eth0"))]


@pytest.mark.parametrize("command", SERVICES.values(), ids=SERVICES)
def test_pings_from_the_network_to_the_host_are_not_seen_by_the_guest(
    lab: Lab, scene: Scene, command: tuple[str, ...]
) -> None:
    guest, host, network = scene
    tagged = octets(host.mac("eth0")) + octets(network.mac("eth0")) + b"\x81\0\0\x07\x88\xb5" + b"tagged" * 9
    sender = network.wire()

    def cause() -> None:
        pings_the_host(network)
        sender.send(tagged)

    with run(lab, host, *command) as running:
        assert shown_to_the_guest(guest, network, cause) == []
        assert reaches(guest, "10.9.0.2")
        assert "other-station" not in running.drops()  # not even vtl-fw, which would drop them, gets them


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_the_host_sends_is_not_seen_by_the_guest(lab: Lab, scene: Scene, workers: str) -> None:
    """Also on an interface that the host was not said to use."""
    guest, host, network = scene
    links = ("--iface", "vmnet1", "--iface", "eth0", "--guard", "off", "--workers", workers)
    with run(lab, host, "vtl-bridge", *links):
        shown = shown_to_the_guest(
            guest, network, lambda: host.run("ping", "-c3", "-i0.05", "-q", "10.9.0.2")
        )
    assert [frame for frame in shown if frame[6:12] == octets(host.mac("eth0"))] == []


@pytest.mark.parametrize("kind", ["bridge", "macvlan"])
def test_an_uplink_of_another_kind_is_shared_in_the_same_way(lab: Lab, scene: Scene, kind: str) -> None:
    guest, host, network = scene
    host.run("ip", "addr", "flush", "dev", "eth0")
    if kind == "bridge":
        lab.bridge(host, "up0", ["eth0"])
        host.run("ip", "link", "set", "up0", "address", "02:00:00:00:00:33")
    else:
        host.run("ip", "link", "add", "up0", "link", "eth0", "type", "macvlan", "mode", "passthru")
        host.run("ip", "link", "set", "up0", "up")
    host.addr("up0", "10.9.0.3/24")
    with run(lab, host, *BRIDGE, "up0"):
        assert shown_to_the_guest(guest, network, lambda: pings_the_host(network)) == []
        assert reaches(guest, "10.9.0.2")


def test_what_is_for_the_host_stays_the_hosts_after_the_uplink_was_created_again(
    lab: Lab, scene: Scene
) -> None:
    guest, host, network = scene
    with run(lab, host, *BRIDGE, "eth0") as running:
        host.run("ip", "link", "del", "eth0")
        assert running.event()["up"] is False
        lab.veth(network, "eth0", host, "eth0")
        network.addr("eth0", "10.9.0.2/24")
        host.addr("eth0", "10.9.0.3/24")
        assert running.event()["up"] is True
        assert shown_to_the_guest(guest, network, lambda: pings_the_host(network)) == []


def test_bulk_data_for_the_host_is_not_seen_by_the_guest(lab: Lab, scene: Scene) -> None:
    """The kernel joins segments to super-segments, as for the guest."""
    guest, host, network = scene
    for each in host, network:
        each.run("ethtool", "-K", "eth0", "tso", "on", "gso", "on", "gro", "on", "tx", "on")
    content = bytes(range(256)) * 4096
    lab.http(network, 80, {"file": content})

    def cause() -> None:
        assert (
            host.popen("curl", "-s", "http://10.9.0.2/file", stdout=subprocess.PIPE).communicate()[0]
            == content
        )

    with run(lab, host, *BRIDGE, "eth0") as running:
        assert shown_to_the_guest(guest, network, cause) == []
        assert running.status()["links"][1]["rx_octets"] < 10_000


@pytest.mark.parametrize(
    "command",
    [
        ("vtl-bridge", "--iface", "vmnet1", "--iface", "eth0", "--guard", "off"),
        ("vtl-fw", "--iface", "vmnet1", "--uplink", "eth0"),
        ("vtl-fw", "--iface", "vmnet1", "--uplink", "eth0", "--mac", "02:00:00:00:00:33"),
        (*SERVICES["subnet"], "--mac", "02:00:00:00:00:33"),
    ],
    ids=["bridge", "fw", "fw that knows", "subnet"],
)
def test_a_guest_that_is_given_the_uplinks_own_address_gets_its_frames(
    lab: Lab, scene: Scene, command: tuple[str, ...]
) -> None:
    """As behind a virtual function of a network card, which carries no other address."""
    guest, host, _ = scene
    host.run("ip", "addr", "flush", "dev", "eth0")
    for each in guest, host:
        each.run("ip", "link", "set", "eth0", "address", "02:00:00:00:00:33")
    with run(lab, host, *command):
        until(lambda: reaches(guest, "10.9.0.2"), "answers for the guest")


def test_a_guest_that_has_the_shared_uplinks_address_is_named_in_a_warning(lab: Lab, scene: Scene) -> None:
    guest, host, _ = scene
    log = lab.dir / "bridge.log"
    wire = guest.wire()
    with run(lab, host, *BRIDGE, "eth0", "--log", str(log)) as running:
        for _ in range(9):
            wire.send(b"\xff" * 6 + octets(host.mac("eth0")) + b"\x88\xb5" + b"x" * 60)
        until(lambda: running.status()["links"][1]["tx_frames"] >= 9, "the frames")
        text = "eth0: a VM sends from the interface's own Ethernet address"
        until(lambda: text in log.read_text(), "the warning")
        assert log.read_text().count(text) == 1
