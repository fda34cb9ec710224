"""Silences the host's own stack for wormholed ports: its RST, port unreachable and echo reply.

The nftables table is owned by this process and vanishes with it, also after kill -9.
"""

import os
from collections.abc import Iterable
from typing import Final

from vtl_tools.common.errors import PermissionNeededError, VTLError
from vtl_tools.common.host.nft import NFT
from vtl_tools.services.vortex.limits import Network
from vtl_tools.services.vortex.ports import NAMES, Port, Range

_QUOTED4: Final = "@th,136,8 17 @th,240,16"
"""In a port unreachable: protocol and UDP port of the quoted packet (RFC 792), without IPv4 options."""
_QUOTED6: Final = "@th,112,8 17 @th,400,16"

_TABLE: Final = """
add table inet {table} {{ flags owner; }}
delete table inet {table}
add table inet {table} {{ flags owner; }}
add set inet {table} used_tcp {{ type inet_service; }}
add set inet {table} near4 {{ type ipv4_addr; flags interval; auto-merge; }}
add set inet {table} near6 {{ type ipv6_addr; flags interval; auto-merge; }}
add chain inet {table} answers {{ type filter hook output priority -400; policy accept; }}
add rule inet {table} answers meta l4proto tcp tcp flags & rst == 0 accept
add rule inet {table} answers meta l4proto udp accept
add rule inet {table} answers oif != {index} accept
add rule inet {table} answers ip daddr @near4 accept
add rule inet {table} answers ip6 daddr @near6 accept
add rule inet {table} answers tcp flags & rst == rst tcp sport {{ {ports} }} tcp sport != @used_tcp drop
add rule inet {table} answers icmp type destination-unreachable icmp code port-unreachable {quoted4} {{ {ports} }} drop
add rule inet {table} answers icmpv6 type destination-unreachable icmpv6 code port-unreachable {quoted6} {{ {ports} }} drop
"""  # noqa: E501 - a rule is a line
_ECHO: Final = """
add rule inet {table} answers icmp type echo-reply drop
add rule inet {table} answers icmpv6 type echo-reply drop
"""


class Silence:
    """The table. index: of the interface; scope: the ports that may be wormholed."""

    def __init__(self, index: int, scope: Iterable[Range], *, echo: bool) -> None:
        self._table = f"vtl_vortex_pid{os.getpid()}"
        self._index, self._echo = index, echo
        self._ports = ", ".join(f"{low}-{high}" if low < high else str(low) for low, high in scope)
        self._is_up = False
        try:
            self._nft = NFT()
        except PermissionError:
            raise PermissionNeededError(
                "vortex-client: not permitted to silence the host's stack; run as root or with CAP_NET_ADMIN"
            ) from None

    def apply(self, used: Iterable[Port], excluded: Iterable[Network]) -> None:
        """Raise the table, or replace it, in one transaction. Raises VTLError."""
        rules = _TABLE + (_ECHO if self._echo else "")
        rules = rules.format(
            table=self._table, index=self._index, ports=self._ports, quoted4=_QUOTED4, quoted6=_QUOTED6
        )
        networks = list(excluded)
        for version in 4, 6:
            if near := ", ".join(str(one) for one in networks if one.version == version):
                rules += f"add element inet {self._table} near{version} {{ {near} }}\n"
        if own := ", ".join(str(port) for protocol, port in used if NAMES.get(protocol) == "tcp"):
            rules += f"add element inet {self._table} used_tcp {{ {own} }}\n"
        try:
            self._nft.run(rules)
        except OSError as e:
            raise VTLError(f"nftables: {e}; needs Linux 5.12 and nft 0.9.9") from None
        self._is_up = True

    def give_back(self, ports: Iterable[Port]) -> None:
        """Let RSTs of these ports pass. A used port of UDP causes no port unreachable."""
        self._change("add", ports)

    def take(self, ports: Iterable[Port]) -> None:
        """Drop RSTs of these ports again. To replace the table would take ten times as long."""
        self._change("delete", ports)

    def _change(self, verb: str, ports: Iterable[Port]) -> None:
        numbers = ", ".join(str(number) for protocol, number in ports if NAMES[protocol] == "tcp")
        if self._is_up and numbers:
            try:
                self._nft.run(f"{verb} element inet {self._table} used_tcp {{ {numbers} }}")
            except OSError as e:
                raise VTLError(f"nftables: {e}; find the program that removes our table") from None

    def restore(self) -> None:
        """Remove the table."""
        if self._is_up:
            self._nft.run(f"delete table inet {self._table}")
            self._is_up = False

    def close(self) -> None:
        """Close the netlink socket; the table goes. Idempotent."""
        self._nft.close()
        self._is_up = False
