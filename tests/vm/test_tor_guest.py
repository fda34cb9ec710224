"""A real guest with no setting but DHCP reaches a private Tor network through vtl-tor, and nothing else."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab.tor import RELAYS, SITES, TorNetwork
from lab.wait import PATIENCE_S, until
from vtl_tools.common.runtime import control

pytestmark = [pytest.mark.vm, pytest.mark.tor]

TOOL = Path(sys.executable).with_name("vtl-tor")
V4 = {v4 for v4, _ in RELAYS.values()}
EXITS = {address for pair in RELAYS.values() for address in pair}
CONTENT = b"what the site has"


@pytest.fixture
def net(lab):
    return TorNetwork(lab, lab.host("world"), names={"www.example": SITES}, relays=4)


@pytest.fixture
def web(lab, net):
    return lab.http(net.site, 80, {"index.html": CONTENT})


@pytest.fixture
def host(lab):
    """A host with a tap and an address on it, that forwards: what keeps the guest in is no lack of a way."""
    host = lab.host("host")
    host.tap("vmnet1")
    host.addr("vmnet1", "10.0.2.254/24")
    host.sysctl("net.ipv4.ip_forward", 1)
    return host


@pytest.fixture
def guest(lab, host, net):
    net.join(host)
    return lab.guest("vm", on=host, tap="vmnet1")


@pytest.fixture
def service(lab, host, net):
    """vtl-tor with a tor of its own, ready; .socket is its control socket."""
    torrc = lab.dir / "torrc"
    torrc.write_text(net.torrc_client())
    socket = lab.dir / "tor.sock"
    arguments = ("--iface", "vmnet1", "--start-tor", "--torrc", torrc, "--dhcp", "--control", socket)
    process = host.popen(TOOL, *arguments, "--json", stdout=subprocess.PIPE, text=True)
    process.socket = socket
    process.events = [json.loads(process.stdout.readline())]
    while process.events[-1].get("percent") != 100:
        process.events.append(json.loads(process.stdout.readline()))
    yield process
    process.terminate()  # its tor's directory is not the lab's to remove
    process.wait(PATIENCE_S)


def fetch(guest, url):
    return guest.sh(f"timeout 60 wget -qO- {url}", timeout=70).stdout


def sources(web):
    return {line.split()[0] for line in web.requests()}


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_guest_with_no_setting_reaches_names_addresses_and_onions_by_tor_only(
    lab, net, web, host, guest, service
):
    assert [event["event"] for event in service.events[:2]] == ["ready", "bootstrap"]
    with net.site.enter(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind((SITES[0], 69))
        datagrams.setblocking(False)
        onion = net.onion()
        wire = lab.dir / "wire.pcap"
        recording = host.popen("tcpdump", "-qUni", "tor0", "-w", wire, stderr=subprocess.DEVNULL)
        until(wire.exists, "tcpdump")

        lease = guest.lease()
        assert {k: lease[k] for k in ("mask", "router", "dns", "mtu", "serverid")} == {
            "mask": "24", "router": "10.0.2.2", "dns": "10.0.2.2", "mtu": "1500", "serverid": "10.0.2.2",
        }  # fmt: skip
        assert lease["ip"].startswith("10.0.2.")

        assert fetch(guest, "http://www.example/") == CONTENT
        assert fetch(guest, f"http://{SITES[0]}/") == CONTENT
        assert fetch(guest, f"http://[{SITES[1]}]/") == CONTENT
        assert sources(web) <= EXITS
        assert len(web.requests()) == 3
        asked = list(net.names.asked)
        assert fetch(guest, f"http://{onion}/") == CONTENT
        assert net.names.asked == asked  # no exit heard of it
        assert {name for _, name in asked} == {"www.example"}

        assert guest.sh(f"ping -c1 -W1 {SITES[0]}").status == 1
        assert guest.sh(f"timeout 3 tftp -g -r page {SITES[0]}").status
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)
    status = control.ask(service.socket, "status")
    assert status["drops"]["icmp"] >= 1  # the ping, and the multicast reports of the guest's IPv6
    assert status["drops"]["udp"] >= 1
    assert set(status["drops"]) == {"icmp", "udp"}

    recording.terminate()
    recording.wait()
    seen = host.run("tcpdump", "-qnr", wire, "ip").stdout.splitlines()
    assert len(seen) > 50
    strangers = [line for line in seen if not V4 & set(re.findall(r"\d+\.\d+\.\d+\.\d+", line))]
    assert strangers == []
    assert all(" tcp " in line for line in seen)


def test_a_guest_whose_service_was_killed_is_cut_off_and_its_tor_is_gone(net, host, guest, service):
    directory = f"http://{RELAYS['ichi'][0]}:9030/tor/status-vote/current/consensus"
    net.world.route("10.0.2.0/24", "10.99.1.2")  # so that an answer would find its way
    guest.lease()
    (tor,) = (tor for keeper in children(service.pid) for tor in children(keeper))
    assert Path(f"/proc/{tor}/comm").read_text() == "tor\n"
    service.kill()
    service.wait()
    assert guest.sh("ping -c1 -W1 10.0.2.254").status == 1
    assert guest.sh(f"timeout 3 wget -qO- {directory}").status != 0
    until(lambda: not Path(f"/proc/{tor}").exists(), "tor to end")
    host.run(TOOL.with_name("vtl-guard"), "clear", "vmnet1")
    assert guest.sh("ping -c1 -W1 10.0.2.254").status == 0
    assert guest.sh(f"ip route replace default via 10.0.2.254; timeout 9 wget -qO- {directory}").status == 0
