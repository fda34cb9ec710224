"""The needs of each executable, by use."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Use:
    """A use of an executable and the names of the findings that it needs. main: most users want it."""

    name: str
    needs: tuple[str, ...]
    main: bool = False


_INTERFACE: Final = ("CAP_NET_RAW", "CAP_NET_ADMIN", "packet sockets", "guard")
_OF_ALL: Final = (
    Use("start", ("Python", "Linux", "click"), main=True),
    Use("pcap:", ("scapy",)),
    Use("tap:", ("CAP_NET_ADMIN", "tap")),
    Use("libpcap:", ("CAP_NET_RAW", "scapy", "libpcap")),
    Use("--metrics", ("prometheus_client",)),
    Use("without root's rights, when root starts it", ("user", "system call filter", "Landlock")),
)
_SELFTEST: Final = Use("selftest", ("root", "network namespaces", "ip", "scapy"))

NEEDS: Final[Mapping[str, tuple[Use, ...]]] = {
    "vtl-bridge": (
        *_OF_ALL,
        Use("an interface by name", _INTERFACE, main=True),
        Use("--workers", ("CAP_NET_RAW", "packet fanout")),
    ),
    "vtl-freeze": (
        *_OF_ALL,
        Use("an interface by name", ("CAP_NET_RAW", "packet sockets", "CAP_BPF", "eBPF"), main=True),
    ),
    "vtl-fw": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True), _SELFTEST),
    "vtl-guard": (
        Use("list, raise, clear", ("Python", "Linux", "click", "CAP_NET_ADMIN", "guard"), main=True),
    ),
    "vtl-split": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vtl-subnet": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vtl-udt": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vtl-ack": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vortex-backend": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vortex-client": (
        *_OF_ALL,
        Use("an interface by name", _INTERFACE, main=True),
        Use("ports in use, at once", ("CAP_BPF", "eBPF")),
    ),
    "vtl-vnet": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vtl-wan": (*_OF_ALL, Use("an interface by name", _INTERFACE, main=True)),
    "vtl-tor": (
        *_OF_ALL,
        Use("an interface by name", (*_INTERFACE, "dnspython"), main=True),
        Use("--start-tor", ("tor",)),
        Use("check", ("PySocks",)),
        _SELFTEST,
    ),
}
"""By executable. A service with links of QEMU, datagrams, VXLAN or channels only needs `start` alone."""


def lacking(use: Use, states: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the state of a use, "ok", "missing" or "unknown", and the names of what it lacks."""
    lacks = [name for name in use.needs if states[name] != "ok"]
    if not lacks:
        return "ok", []
    return "missing" if any(states[name] == "missing" for name in lacks) else "unknown", lacks
