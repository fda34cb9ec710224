"""A real guest behind vtl-bridge: on a tap, and on QEMU's socket, over restarts and with VLANs."""

import hashlib
import secrets
import sys

import pytest

from lab.wait import until
from tests.running import bridge

pytestmark = pytest.mark.vm


def serve(guest, content: bytes) -> None:
    """Let a guest serve some octets as /page."""
    guest.put("/tmp/page", content)
    guest.sh("httpd -p 80 -h /tmp", check=True)


@pytest.fixture
def host(lab):
    """A host with a link to a server, 10.9.0.2, that serves some octets."""
    host, server = lab.host("host"), lab.host("server")
    lab.veth(host, "eth0", server, "eth0")
    server.addr("eth0", "10.9.0.2/24", "fd09::2/64")
    host.content = secrets.token_bytes(3_000_000)
    lab.http(server, 80, {"page": host.content})
    host.server = server
    return host


def reaches(guest) -> bool:
    return guest.sh("ping -c1 -W1 10.9.0.2").status == 0


def digest(guest, url: str) -> str:
    return guest.sh(f"wget -qO- {url} | sha256sum", timeout=60).out.split()[0]


def test_a_guest_on_a_tap_downloads_and_uploads_octet_for_octet(lab, host):
    host.tap("vmnet1")
    with bridge(lab, host, "--iface", "vmnet1", "--iface", "eth0") as running:
        guest = lab.guest("vm", on=host, tap="vmnet1", address="10.9.0.1/24 fd09::1/64")
        expected = hashlib.sha256(host.content).hexdigest()
        assert digest(guest, "http://10.9.0.2/page") == expected
        assert digest(guest, "http://[fd09::2]/page") == expected
        serve(guest, host.content)
        code = "import sys,urllib.request as u; print(u.urlopen(sys.argv[1], timeout=20).read().hex())"
        fetched = host.server.run(sys.executable, "-c", code, "http://10.9.0.1/page").stdout
        assert bytes.fromhex(fetched) == host.content
        assert running.drops() == {}


def test_a_guests_own_vlan_passes(lab, host):
    """The guest tags; the host's kernel takes the tag out before AF_PACKET, and we put it back."""
    host.tap("vmnet1")
    host.tap("vmnet2")
    with bridge(lab, host, "--iface", "vmnet1", "--iface", "vmnet2") as running:
        one = lab.guest("one", on=host, tap="vmnet1", mac="52:54:00:00:00:01", modules=["8021q"], wait=False)
        two = lab.guest("two", on=host, tap="vmnet2", mac="52:54:00:00:00:02", modules=["8021q"], wait=False)
        for octet, guest in enumerate((one, two), 1):
            guest.ready()
            guest.sh(
                "ip link set eth0 up && ip link add link eth0 name v7 type vlan id 7 &&"
                f"ip addr add 10.7.0.{octet}/24 dev v7 && ip link set v7 up",
                check=True,
            )
        until(lambda: one.sh("ping -c1 -W1 10.7.0.2").status == 0, "the tagged ping")
        serve(two, host.content)
        assert digest(one, "http://10.7.0.2/page") == hashlib.sha256(host.content).hexdigest()
        assert running.drops() == {}


def test_qemu_restarts_and_the_service_goes_on(lab, host):
    with bridge(lab, host, "--iface", f"qemu:unix:{lab.dir}/vm,server", "--iface", "eth0") as running:
        guest = lab.guest("vm", on=host, qemu_socket=f"unix:{lab.dir}/vm", address="10.9.0.1/24")
        until(lambda: reaches(guest), "the guest to reach the server")
        guest.restart()
        until(lambda: reaches(guest), "the restarted guest to reach the server")
        assert digest(guest, "http://10.9.0.2/page") == hashlib.sha256(host.content).hexdigest()
        assert running.status()["links"][0]["losses"] == 1


def test_we_reconnect_to_a_qemu_that_listens(lab, host):
    with bridge(lab, host, "--iface", f"qemu:unix:{lab.dir}/vm", "--iface", "eth0") as running:
        guest = lab.guest("vm", on=host, qemu_socket=f"unix:{lab.dir}/vm,server", address="10.9.0.1/24")
        until(lambda: reaches(guest), "the guest to reach the server")
        guest.restart()
        until(lambda: reaches(guest), "the restarted guest to reach the server")
        assert running.status()["links"][0]["losses"] == 1


def test_many_guests_share_a_switch(lab, host):
    links = ["--iface", "eth0"]
    for n in range(2):
        links += ["--iface", f"qemu:unix:{lab.dir}/vm{n},server"]
    with bridge(lab, host, *links) as running:
        guests = [
            lab.guest(
                f"vm{n}",
                on=host,
                qemu_socket=f"unix:{lab.dir}/vm{n}",
                address=f"10.9.0.1{n}/24",
                mac=f"52:54:00:00:00:1{n}",
                wait=False,
            )
            for n in range(2)
        ]
        for guest in guests:
            guest.ready()
            until(lambda guest=guest: reaches(guest), f"{guest.name} to reach the server")
        until(lambda: guests[0].sh("ping -c1 -W1 10.9.0.11").status == 0, "one guest to reach the other")
        stations = running.status()["stations"]
        assert stations["52:54:00:00:00:10"]["link"].endswith("vm0,server")
        assert stations["52:54:00:00:00:11"]["link"].endswith("vm1,server")
