"""Roles of a packet: what only a running firewall knows of it, and rules may ask for.

A rule of a file without a service matches no packet that has to have one.
"""

from typing import Final

from vtl_tools.common.rules.values import Ranges, ranges

RESOLVER: Final = 1
"""It goes to a resolver that DHCP or a router advertisement has named to the VM."""
DHCP_SERVER: Final = 2
"""It goes to a DHCP server that has answered the VM on its link."""
ASKED: Final = 4
"""It answers a recent DHCP request of the VM, also one to all servers, of which it is no reply by address."""

SETS: Final = {"@resolvers": RESOLVER, "@dhcp-servers": DHCP_SERVER}
"""Built-in sets of destinations."""
MEANINGS: Final = {
    RESOLVER: "the destination is no resolver that DHCP or a router advertisement has named to the VM",
    DHCP_SERVER: "the destination is no DHCP server that has answered the VM",
    ASKED: "the VM has not asked for it",
}
"""Why a packet does not have a role."""


def of_role(role: int) -> Ranges:
    """Return the values of Fields.roles that contain a role."""
    return ranges((value, value) for value in range((RESOLVER | DHCP_SERVER | ASKED) + 1) if value & role)
