"""A real guest behind vtl-udt: it downloads from a server at another site, and serves one there."""

import hashlib
import secrets

import pytest

from lab.netns import Lab
from lab.wait import PATIENCE_S
from tests.running import BIN, bridge

pytestmark = pytest.mark.vm

NEAR, FAR = "198.51.100.1:7700", "198.51.100.2:7700"


def test_a_guest_downloads_and_serves_across_both_modules_and_nobody_sees_but_tcp(lab: Lab) -> None:
    near, far, server = (lab.host(name) for name in ("near", "far", "server"))
    near.tap("vmnet1")
    guest = lab.guest("vm", on=near, tap="vmnet1", address="10.1.0.5/24", gateway="10.1.0.1", wait=False)
    lab.veth(near, "wan", far, "wan")
    lab.veth(server, "eth0", far, "vmnet2")
    for number, host in enumerate((near, far), 1):
        host.addr("wan", f"198.51.100.{number}/24")
    server.addr("eth0", "10.2.0.5/24")
    server.route("default", "10.2.0.1")
    content = secrets.token_bytes(8 << 20)
    web = lab.http(server, 80, {"page": content})
    key = lab.dir / "udt.key"
    near.run(BIN / "vtl-udt", "keygen", key)
    here = ("--iface", "vmnet1", "--listen", NEAR, "--peer", f"10.2.0.0/16={FAR}", "--key-file", key)
    there = ("--iface", "vmnet2", "--listen", FAR, "--peer", f"10.1.0.0/16={NEAR}", "--key-file", key)
    with (
        bridge(lab, near, *here, service="vtl-udt", name="near") as one,
        bridge(lab, far, *there, service="vtl-udt", name="far") as other,
    ):
        one.wait_for("peer-up")
        guest.ready()
        got = guest.sh("wget -qO- http://10.2.0.5/page | sha256sum", timeout=PATIENCE_S)
        assert got.out.split()[0] == hashlib.sha256(content).hexdigest()
        assert [line.split()[0] for line in web.requests()] == ["10.1.0.5"]
        assert "refused" in guest.sh("wget -qO- http://10.2.0.5:81/ 2>&1").out

        guest.sh("dd if=/dev/urandom of=/tmp/page bs=64k count=64 2>/dev/null", check=True)
        expected = guest.sh("sha256sum /tmp/page").out.split()[0]
        guest.sh("httpd -p 80 -h /tmp", check=True)
        saved = lab.dir / "saved"
        server.run("curl", "-s", "-o", saved, "http://10.1.0.5/page")
        assert hashlib.sha256(saved.read_bytes()).hexdigest() == expected
        assert other.status()["near"]["octets_down"] > 4 << 20
        assert one.status()["near"]["octets_down"] > 8 << 20
