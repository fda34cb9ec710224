"""A real guest whose whole network is the vtl-split of an ordinary user: no root, no tap, no setting."""

import hashlib
import re
from random import Random

import pytest

from lab.dns import Names
from lab.netns import Lab
from lab.wait import until
from tests.running import bridge

pytestmark = pytest.mark.vm

USER = 60002
SERVER, SERVER6, RESOLVER = "203.0.113.2", "2001:db8::2", "203.0.113.53"
CONTENT = Random(3).randbytes(5_000_000)


def test_a_guest_of_an_ordinary_user_gets_addresses_names_downloads_and_pings(lab: Lab) -> None:
    host, server = lab.host("host"), lab.host("server")
    lab.veth(host, "eth0", server, "eth0")
    host.addr("eth0", "203.0.113.1/24", "2001:db8::1/64")
    server.addr("eth0", f"{SERVER}/24", f"{RESOLVER}/24", f"{SERVER6}/64")
    host.sysctl("net.ipv4.ping_group_range", "0 2147483647")
    names = Names(server, RESOLVER, {"www.example": (SERVER,), "six.example": (SERVER6,)})
    lab.defer(names.close)
    lab.http(server, 80, {"file": CONTENT})
    path = f"unix:{lab.dir}/run-{USER}/vm"
    options = ("--iface", f"qemu:{path},server", "--dns", RESOLVER)
    with bridge(lab, host, *options, user=USER, service="vtl-split") as running:
        guest = lab.guest("vm", on=host, qemu_socket=path)
        assert guest.lease()["dns"] == "10.0.2.2"
        until(lambda: "fd76:746c:0:1:" in guest.sh("ip -6 addr show dev eth0").out, "an address of IPv6")
        for name in "www.example", "six.example":
            told = guest.sh(f"wget -qO- http://{name}/file | sha256sum", timeout=120, check=True).out
            assert told.split()[0] == hashlib.sha256(CONTENT).hexdigest()
        for target in SERVER, SERVER6:
            assert re.search(r" 0% packet loss", guest.sh(f"ping -c2 -s3000 {target}").out)
        assert guest.sh("wget -qO- http://203.0.113.1/", timeout=120).status
        status = running.status()
        assert status["split"]["ping"] is True
        assert status["carried"]["octets_down"] > 2 * len(CONTENT)
        assert status["carried"]["failed"] == 1
