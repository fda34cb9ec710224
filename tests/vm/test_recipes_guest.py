"""Recipes of docs/recipes.md that boot a guest, or that need its own driver, with real guests."""

import pytest

from lab.netns import Lab
from tests.recipes import SITE, Operator, at_home, in_guest

pytestmark = [pytest.mark.vm]

DNSMASQ = """
interface=virbr0
except-interface=lo
bind-dynamic
dhcp-range=192.168.122.2,192.168.122.254
dhcp-no-override
dhcp-authoritative
dhcp-host=52:54:00:00:00:01,192.168.122.50
"""
NAT = """
table ip libvirt_network {
  chain postrouting {
    type nat hook postrouting priority srcnat
    ip saddr 192.168.122.0/24 ip daddr != 192.168.122.0/24 masquerade
  }
}
"""


@pytest.mark.parametrize("title", ["A sandbox VM without root", "A VM that is recreated each day"])
def test_a_sandbox_without_root(lab: Lab, title: str) -> None:
    operator = at_home(lab)
    image = operator.user.home / "vm1.img"
    image.touch()
    image.chmod(0o666)
    operator.follow(title)


def libvirt_network(operator: Operator) -> None:
    """Make what libvirt makes of its network "default", and connect the tap vnet0 to it."""
    lab, host = operator.lab, operator.host
    host.tap("vnet0")
    lab.bridge(host, "virbr0", ["vnet0"])
    # One that is not fixed changes with the ports: the guest would ask the former one for seconds.
    host.run(
        "ip", "link", "set", "virbr0", "address", "52:54:00:12:34:56", "type", "bridge", "stp_state", "1"
    )
    host.addr("virbr0", "192.168.122.1/24")
    host.sysctl("net.ipv4.ip_forward", 1)
    host.run("nft", "-f", "-", input=NAT)
    conf = lab.dir / "default.conf"
    conf.write_text(DNSMASQ)
    files = f"--dhcp-leasefile={lab.dir}/default.leases", f"--pid-file={lab.dir}/default.pid"
    host.run("dnsmasq", f"--conf-file={conf}", *files)


def test_a_vm_on_libvirts_default_network(lab: Lab) -> None:
    operator = at_home(lab)
    libvirt_network(operator)
    guest = lab.guest("vm", on=operator.host, tap="vnet0")
    assert guest.lease()["ip"] == "192.168.122.50"
    fetch = f"wget -qO- http://{SITE}:8080/"
    assert guest.sh(fetch).out == "hello\n"
    operator.follow("A VM on libvirt's default network", {"vm# ": in_guest(guest)})
    assert guest.sh(fetch).out == "hello\n"
