"""Networks of three hosts that many tests begin with."""

from typing import NamedTuple

from lab.netns import Host, Lab


class Line(NamedTuple):
    """client 10.9.0.1, fd09::1 - vmnet1 [middle] eth0 - server 10.9.0.2, fd09::2. Nothing is forwarded."""

    client: Host
    middle: Host
    server: Host


def line_of_three(lab: Lab, *, ipv6: bool = False) -> Line:
    """Make a line, in whose middle a service runs. ipv6: of the middle's own stack."""
    hosts = Line(lab.host("client"), lab.host("middle", ipv6=ipv6), lab.host("server"))
    lab.veth(hosts.client, "eth0", hosts.middle, "vmnet1")
    lab.veth(hosts.server, "eth0", hosts.middle, "eth0")
    hosts.client.addr("eth0", "10.9.0.1/24", "fd09::1/64")
    hosts.server.addr("eth0", "10.9.0.2/24", "fd09::2/64")
    return hosts


class Routed(NamedTuple):
    """guest 10.1.0.2, fd01::2 - vmnet1 [host 10.1.0.1, fd01::1 and 10.2.0.1] eth0 - server 10.2.0.2."""

    guest: Host
    host: Host
    server: Host


def routed_guest(lab: Lab) -> Routed:
    """Make a guest on a host-only interface of a host that forwards to a network with a server."""
    hosts = Routed(lab.host("guest"), lab.host("host"), lab.host("server"))
    lab.veth(hosts.guest, "eth0", hosts.host, "vmnet1")
    lab.veth(hosts.host, "eth0", hosts.server, "eth0")
    hosts.guest.addr("eth0", "10.1.0.2/24", "fd01::2/64")
    hosts.host.addr("vmnet1", "10.1.0.1/24", "fd01::1/64")
    hosts.host.addr("eth0", "10.2.0.1/24")
    hosts.server.addr("eth0", "10.2.0.2/24")
    hosts.guest.route("default", "10.1.0.1")
    hosts.server.route("default", "10.2.0.1")
    hosts.host.sysctl("net.ipv4.ip_forward", 1)
    return hosts


class Sites(NamedTuple):
    """client 10.1.0.5 - vmnet1 [near 198.51.100.1] wan - wan [far 198.51.100.2] vmnet2 - server 10.2.0.5.

    The ends have IPv6, too: fd01::5 and fd02::5. Their routers are 10.1.0.1 and so on, which nobody is.
    """

    client: Host
    near: Host
    far: Host
    server: Host


def two_sites(lab: Lab) -> Sites:
    """Make two sites with a guest each, whose hosts reach each other."""
    sites = Sites(*(lab.host(name) for name in Sites._fields))
    lab.veth(sites.client, "eth0", sites.near, "vmnet1")
    lab.veth(sites.near, "wan", sites.far, "wan")
    lab.veth(sites.server, "eth0", sites.far, "vmnet2")
    for n, (guest, host) in enumerate(((sites.client, sites.near), (sites.server, sites.far)), 1):
        guest.addr("eth0", f"10.{n}.0.5/24", f"fd0{n}::5/64")
        guest.route("default", f"10.{n}.0.1")
        guest.run("ip", "-6", "route", "add", "default", "via", f"fd0{n}::1")
        host.addr("wan", f"198.51.100.{n}/24")
    return sites
