"""vtl-bridge between real network stacks, used as its user would."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.user import NOBODY
from lab.wait import PATIENCE_S, until
from tests.running import BIN, bridge, own_fields
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import NONE

pytestmark = pytest.mark.lab

TWO = ("--iface", "vmnet1", "--iface", "eth0")
PATTERN = bytes(range(251)) * 64


@pytest.fixture
def scene(lab: Lab) -> tuple[Host, Host, Host]:
    """client (10.9.0.1) - vmnet1 [middle] eth0 - server (10.9.0.2)."""
    return line_of_three(lab, ipv6=True)


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def download(client: Host, url: str) -> bytes:
    code = (
        "import sys,urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1], timeout=10).read())"
    )
    process = client.popen(sys.executable, "-c", code, url, stdout=subprocess.PIPE)
    out: bytes = process.communicate(timeout=PATIENCE_S)[0]
    return out


def test_two_links_carry_ipv4_ipv6_and_a_large_transfer_whole(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    client, middle, server = scene
    content = PATTERN * 1000
    lab.http(server, 80, {"big": content})
    with bridge(lab, middle, *TWO) as running:
        assert running.ready["event"] == "ready"
        assert running.ready["links"] == ["vmnet1", "eth0"]
        assert reaches(client, "10.9.0.2")
        assert reaches(client, "fd09::2")
        assert download(client, "http://10.9.0.2/big") == content
        assert download(client, "http://[fd09::2]/big") == content
        status = running.status()
        assert running.drops() == {}
        assert status["links"][0]["rx_frames"] == status["links"][1]["tx_frames"]
        assert status["links"][0]["rx_octets"] == status["links"][1]["tx_octets"]
    assert not reaches(client, "10.9.0.2")


def test_vlan_tags_pass_though_the_kernel_takes_them_out(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    client, middle, server = scene
    addresses = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"
    bodies = [
        b"\x88\xb5 none",
        b"\x81\x00\x20\x07\x88\xb5 one",
        b"\x81\x00\x00\x00\x88\xb5 priority only",
        b"\x88\xa8\x00\x07\x81\x00\x00\x08\x88\xb5 two",
    ]
    sent = [NONE + addresses + body.ljust(48, b".") for body in bodies] * 3
    with client.enter():
        source = PacketDevice("eth0")
        source.connect()
    with server.enter():
        sink = PacketDevice("eth0")
        sink.connect()
    got: list[bytes] = []

    def received() -> bool:
        # Of what else the hosts say by themselves nothing has this destination.
        got.extend(bytes(f) for f in sink.read() if bytes(f[10:16]) == addresses[:6])
        return len(got) >= len(sent)

    with closing(source), closing(sink), bridge(lab, middle, *TWO):
        for frame in sent:
            source.write(Batch.of([frame]))
        source.write(Batch.of(sent))
        sent *= 2
        until(received, "the tagged frames")
    assert sorted(got) == sorted(sent)


def test_half_duplex_carries_one_direction_and_two_of_them_make_a_bridge(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    client, middle, _ = scene
    with bridge(lab, middle, *TWO, "--half-duplex", name="there") as there:
        assert not reaches(client, "10.9.0.2")
        assert there.status()["links"][0]["rx_frames"] > 0
        assert there.status()["links"][1]["rx_frames"] == 0
        back = ("--iface", "eth0", "--iface", "vmnet1", "--half-duplex")
        with bridge(lab, middle, *back, name="back"):
            until(lambda: reaches(client, "10.9.0.2"), "the way back")


def test_workers_share_the_flows_and_are_one_service_to_their_user(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    client, middle, server = scene
    content = PATTERN * 100
    lab.http(server, 80, {"big": content})
    with bridge(lab, middle, *TWO, "--workers", "2") as running:
        for _ in range(8):
            assert download(client, "http://10.9.0.2/big") == content
        status = running.status()
        assert status["workers"] == 2
        assert len(status["links"]) == 2
        assert status["links"][0]["rx_octets"] > 0
        assert status["links"][1]["rx_octets"] > 8 * len(content)
        assert running.drops() == {}


def test_a_worker_that_is_killed_ends_the_service(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    _, middle, _ = scene
    process = middle.popen(
        BIN / "vtl-bridge",
        *TWO,
        "--workers",
        "2",
        "--json",
        "--control",
        lab.dir / "w.sock",
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert b"ready" in process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().strip() == "vtl-bridge"]
    assert len(workers) == 2
    os.kill(int(workers[0]), signal.SIGKILL)
    assert process.wait(PATIENCE_S) == 1


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one", "workers"])
def test_a_switch_learns_and_never_floods_known_unicast(lab: Lab, workers: tuple[str, ...]) -> None:
    middle = lab.host("middle", ipv6=False)
    hosts = [lab.host(f"h{i}", ipv6=False) for i in range(3)]
    arguments: list[str] = []
    for i, host in enumerate(hosts):
        lab.veth(host, "eth0", middle, f"p{i}")
        host.addr("eth0", f"10.9.0.{i + 1}/24")
        arguments += ["--iface", f"p{i}"]
    with bridge(lab, middle, *arguments, *workers) as running:
        assert all(reaches(a, f"10.9.0.{i + 1}") for a in hosts for i in range(3))
        stations = running.status()["stations"]
        for i, host in enumerate(hosts):
            assert stations[host.mac("eth0")]["link"] == f"p{i}"
        bystander = Path("/sys/class/net/eth0/statistics/rx_packets")
        before = int(hosts[2].call(bystander.read_text))
        hosts[0].run("ping", "-c20", "-i0.01", "-q", "10.9.0.2")
        assert int(hosts[2].call(bystander.read_text)) == before, "known unicast was flooded"


def test_an_interface_that_is_deleted_and_comes_back_is_bridged_again(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    client, middle, _ = scene
    with bridge(lab, middle, *TWO) as running:
        assert reaches(client, "10.9.0.2")
        middle.run("ip", "link", "del", "vmnet1")
        assert own_fields(running.event()) == {"event": "link", "changed": "vmnet1", "up": False}
        lab.veth(client, "eth0", middle, "vmnet1")
        client.addr("eth0", "10.9.0.1/24")
        told = own_fields(running.event())
        assert told == {"event": "guard", "interface": "vmnet1", "reason": "was created again"}
        assert own_fields(running.event()) == {"event": "link", "changed": "vmnet1", "up": True}
        until(lambda: reaches(client, "10.9.0.2"), "the link that came back")
        assert running.status()["links"][0]["losses"] == 1
        middle.run("ip", "link", "set", "vmnet1", "down")
        assert running.event()["up"] is False
        middle.run("ip", "link", "set", "vmnet1", "up")
        assert running.event()["up"] is True
        until(lambda: reaches(client, "10.9.0.2"), "the link that was down")


def test_no_reconnect_ends_the_service_with_its_own_exit_status(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    _, middle, _ = scene
    command = (BIN / "vtl-bridge", *TWO, "--no-reconnect", "--json", "--control", lab.dir / "x.sock")
    process = middle.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    middle.run("ip", "link", "del", "vmnet1")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 4
    assert "vtl-bridge: vmnet1: link lost; not waiting for it, as requested\n" in err


def test_one_link_that_is_full_does_not_hold_up_another(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    """A channel whose other end never reads fills up; frames between the others go on."""
    client, middle, _ = scene
    socket = lab.dir / "stuck.sock"
    with bridge(lab, middle, *TWO, "--iface", f"channel:{socket},server") as running:
        code = (
            "import socket,sys,time; s=socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET);"
            "s.connect(sys.argv[1]); print('in', flush=True); time.sleep(600)"
        )
        stuck = middle.popen(sys.executable, "-c", code, socket, stdout=subprocess.PIPE)
        assert stuck.stdout is not None
        assert stuck.stdout.readline() == b"in\n"
        assert reaches(client, "10.9.0.2")
        with client.enter():
            source = PacketDevice("eth0")
            source.connect()
        broadcast = Batch.of([NONE + b"\xff" * 6 + b"\x02\0\0\0\0\x01\x88\xb5" + bytes(1400)] * 64)
        with closing(source):
            until(
                lambda: source.write(broadcast) and running.drops().get("queue-full", 0), "the link to fill"
            )
        assert reaches(client, "10.9.0.2")
        stuck.kill()


def test_an_ordinary_user_bridges_qemu_and_channel_links(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    """client - root's bridge - qemu socket - nobody's bridge - channel - root's bridge - server."""
    client, middle, server = scene
    content = PATTERN * 50
    lab.http(server, 80, {"big": content})
    links = lab.dir / "links"
    links.mkdir()
    links.chmod(0o777)
    near, far = f"qemu:unix:{links}/near,server", f"channel:{links}/far,server"
    with bridge(lab, middle, "--iface", near, "--iface", far, name="n", user=NOBODY) as running:
        left = ("--iface", "vmnet1", "--iface", f"qemu:unix:{links}/near")
        right = ("--iface", f"channel:{links}/far", "--iface", "eth0")
        with bridge(lab, middle, *left, name="l"), bridge(lab, middle, *right, name="r"):
            until(lambda: reaches(client, "10.9.0.2"), "the chain of bridges")
            assert download(client, "http://10.9.0.2/big") == content
        assert running.status()["links"][0]["rx_frames"] > 0


def test_a_service_keeps_no_capability_but_that_of_guards_and_locks(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    _, middle, _ = scene
    for guard, kept in ("process", 1 << 12), ("off", 1 << 12):
        with bridge(lab, middle, *TWO, "--guard", guard) as running:
            fields = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
            )
            for name in "CapPrm", "CapEff", "CapBnd":
                assert int(fields[name], 16) == kept
            assert fields["NoNewPrivs"] == "1"


def test_pcap_records_what_was_seen_and_sent(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    client, middle, _ = scene
    file = lab.dir / "seen.pcapng"
    with bridge(lab, middle, *TWO, "--pcap", file):
        assert reaches(client, "10.9.0.2")
    shown = subprocess.run(["tcpdump", "-nr", file], capture_output=True, text=True, check=True).stdout
    assert shown.count("ICMP echo request") == 2
    assert shown.count("ICMP echo reply") == 2


def test_frames_that_no_link_takes_are_counted_by_reason(lab: Lab, scene: tuple[Host, Host, Host]) -> None:
    client, middle, server = scene
    middle.run("ip", "link", "set", "eth0", "mtu", "1000")
    with bridge(lab, middle, *TWO) as running:
        client.run("ping", "-c3", "-i0.01", "-s1400", "-W1", "10.9.0.2", check=False)
        until(lambda: running.drops().get("too-big") == 3, "three frames above the MTU")
        server.run("ip", "link", "set", "eth0", "down")
        server.run("ip", "link", "set", "eth0", "up")
        assert reaches(client, "10.9.0.2")
