"""The attack frames of `vtl-fw selftest`, as root in a real guest sends them: behind a virtio_net_hdr."""

from collections.abc import Iterable
from dataclasses import dataclass

from scapy.layers.inet import IP

from vtl_tools.common.selftest import traffic
from vtl_tools.common.selftest.host import MAC as HOST_MAC
from vtl_tools.common.selftest.packets import IP4
from vtl_tools.services.fw.selftest import offload
from vtl_tools.services.fw.selftest.attacks import ALWAYS, BY_RULES, NOT_ONLY_DENIED
from vtl_tools.services.fw.selftest.marked import Frame, ether, mark, open_datagram
from vtl_tools.services.fw.selftest.packets import ROUTER4

NO_OFFLOAD = bytes(10)
SHORTEST = 60
"""Octets of a frame. The guest's kernel pads shorter ones."""


@dataclass(frozen=True)
class Attack:
    """Frames of one attack. always: no rule lets them pass, since they are broken or made to deceive."""

    name: str
    frames: tuple[bytes, ...]
    always: bool

    def shows_in(self, frame: bytes) -> bool:
        return mark(self.name) in frame


def plain(frames: Iterable[Frame]) -> tuple[bytes, ...]:
    """Frames that ask for no offload."""
    return tuple(NO_OFFLOAD + bytes(frame).ljust(SHORTEST, b"\0") for frame in frames)


def honest(name: str) -> bytes:
    """A datagram that the rules allow."""
    return plain([ether() / IP(src=IP4, dst=ROUTER4) / open_datagram(name)])[0]


def marked() -> list[Attack]:
    """Every attack with a mark."""
    found = [
        Attack(name, plain(frames), always)
        for families, always in ((BY_RULES, False), (ALWAYS, True))
        for family in families.values()
        for name, frames in family()
    ]
    for family, always in ((offload.ports, False), (offload.sum_in_fragment, True)):
        found += [Attack(name, tuple(map(bytes, frames)), always) for name, frames in family()]
    assert len({attack.name for attack in found}) == len(found)
    lost = [a.name for a in found if not any(a.shows_in(frame) for frame in a.frames)]
    assert not lost, lost
    return found


def unmarked() -> list[bytes]:
    """The frames of every kind of traffic that vtl-fw's rules for the self-test deny."""
    denied = [kind for kind in traffic.KINDS if kind.name not in NOT_ONLY_DENIED]
    return [frame for kind in denied for frame in plain(kind.frames(HOST_MAC))]
