"""What options of services take that click does not know: a proxy, a network for guests."""

from ipaddress import IPv4Network
from typing import Any, Final

import click

NOT_FOR_GUESTS: Final = {
    "0.0.0.0/8": "addresses that are no host's",
    "127.0.0.0/8": "loopback addresses",
    "169.254.0.0/16": "addresses that are nobody's to lease",
    "198.18.0.0/15": "the addresses that stand for names",
    "224.0.0.0/3": "multicast and reserved addresses",
}
"""What a subnet may not overlap, and why."""


class Proxy(click.ParamType[Any]):
    """HOST:PORT, or unix:PATH."""

    name = "proxy"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int] | str:
        """Take it apart."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if value.startswith("unix:") and len(value) > len("unix:"):
            return value.removeprefix("unix:")
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            self.fail(f"{value!r}: write HOST:PORT or unix:PATH, such as 127.0.0.1:9050", param, ctx)
        return host.strip("[]"), int(port)


class Subnet(click.ParamType[Any]):
    """An IPv4 network whose addresses can be leased."""

    name = "subnet"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Network:
        """Read it."""
        try:
            network = IPv4Network(value)
        except ValueError as e:
            self.fail(f"{e}; write a network such as 10.0.2.0/24", param, ctx)
        if not 8 <= network.prefixlen <= 29:
            self.fail(f"{value}: write a network of 8 to 29 bits", param, ctx)
        for taken, what in NOT_FOR_GUESTS.items():
            if network.overlaps(IPv4Network(taken)):
                self.fail(f"{value}: in it are {what}; write another, such as 10.0.2.0/24", param, ctx)
        return network
