"""The VM's IPv6 addresses: first come, first served, as FCFS SAVI has it (RFC 6620).

An address is *tentative* once the VM claims it. The network is then asked who has it, by solicitations
of this service's own, as a VM could send its own to nobody. It is *valid*, and the VM's, when nobody has
answered for TENT_LT_S. Where the network claims a valid address later, the VM is asked, and loses it only
if it does not answer (TESTING_VP). So one frame of a stranger takes nothing from the VM, and a guest takes
nothing from another that is there.

Reads no clock; `now` is in seconds.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from vtl_tools.common.packet import address, build, nd

CLAIMS_MAX: Final = 64
"""Addresses of the VM, of which it makes new ones each day (RFC 8981); the oldest goes first."""
OTHERS_MAX: Final = 1024
OTHERS_S: Final = 10.0
"""How long an address that the network was heard to use is not even asked for."""
PREFIXES_MAX: Final = 16
PREFIX_BITS_MIN: Final = 32
"""Of a shorter prefix, most is elsewhere, whoever says that it is here."""
TENT_LT_S: Final = 0.9
"""RFC 6620 has 0.5, which an owner on a busy host may miss; a VM itself waits for 1 (RFC 4862 5.4)."""
TENTATIVE_MAX: Final = 16
TEST_S: Final = 1.5
TESTED_S: Final = 5.0
"""Before a valid address is tested again."""
_ASKED_TENTATIVE, _ASKED_TESTING = 3, 3

VM_PORT, NETWORK_PORT = 0, 1
_PREFIX_FLAGS: Final = 0xC0  # L and A (RFC 4861 section 4.6.2)
_EUI64: Final = b"\xff\xfe"  # in the middle of an interface identifier

Sent = tuple[int, bytes]
"""A port, and a frame for it."""


@dataclass(slots=True)
class _Trial:
    """Solicitations that go out, `left` more every `pause_s`; the trial ends when none is left at `due`."""

    sent: list[Sent]
    pause_s: float
    left: int
    due: float


class Bindings:
    """The IPv6 addresses of one VM. own: the VM's addresses, which the valid ones are kept among."""

    def __init__(self, own: set[bytes]) -> None:
        self.valid: OrderedDict[bytes, float] = OrderedDict()
        """By when each was tested last."""
        self.prefixes: dict[IPv6Network, float] = {}
        """The link's, and until when."""
        self._own = own
        self._tentative: dict[bytes, _Trial] = {}
        self._testing: dict[bytes, _Trial] = {}
        self.others: OrderedDict[bytes, float] = OrderedDict()
        """Of the network, by when they were heard last."""
        self.may_ask: Callable[[bytes], bool] = lambda frame: True
        """Whether the rules let the VM itself ask the network so; else nothing is asked, nor bound."""
        self._outbox: list[Sent] = []

    # --- what the VM says

    def claim(self, octets: bytes, mac: bytes, tags: tuple[int, ...], now: float, *, leased: bool) -> bool:
        """Begin to find out whether an address may become the VM's; say whether that is under way.

        mac: the VM's. tags: the VLAN tags of the claim: the address is asked for there, and without any.
        leased: whether DHCPv6 gave it the address.
        """
        if octets in self._tentative:
            return True
        if len(self._tentative) >= TENTATIVE_MAX or not address.is_single_host(octets):
            return False
        heard = self.others.get(octets)
        if (heard is not None and now < heard + OTHERS_S) or _is_of_another(octets, mac):
            return False
        if not (leased or self._is_of_link(octets, now)):
            return False
        places = [None, tags] if tags else [None]
        asked: list[Sent] = [(NETWORK_PORT, _solicitation(octets, mac, place)) for place in places]
        if not all(self.may_ask(frame) for _, frame in asked):
            return False
        trial = _Trial(asked, TENT_LT_S / _ASKED_TENTATIVE, _ASKED_TENTATIVE, now)
        self._tentative[octets] = trial
        self._ask(trial, now)
        return True

    def used(self, octets: bytes) -> None:
        """Take note that the VM said by neighbour discovery that it has an address of its own."""
        self._testing.pop(octets, None)

    def _is_of_link(self, octets: bytes, now: float) -> bool:
        if address.is_link_local(octets):
            return True
        asked = IPv6Address(octets)
        return any(until > now and asked in prefix for prefix, until in self.prefixes.items())

    def leave(self, octets: bytes, now: float) -> None:
        """Give up an address that is no longer leased, unless the VM may have it without."""
        self._tentative.pop(octets, None)
        if octets in self.valid and not self._is_of_link(octets, now):
            self._give_up(octets)

    def _give_up(self, octets: bytes) -> None:
        del self.valid[octets]
        self._testing.pop(octets, None)
        self._own.discard(octets)

    # --- what the network says

    def observe(self, octets: bytes, src_mac: bytes, now: float) -> None:
        """Take note that the network uses or claims an address. src_mac: of the frame that says so."""
        self._tentative.pop(octets, None)
        tested = self.valid.get(octets)
        if tested is None:
            self.others[octets] = now
            self.others.move_to_end(octets)
            if len(self.others) > OTHERS_MAX:
                self.others.popitem(last=False)
        elif octets not in self._testing and now >= tested + TESTED_S:
            self.valid[octets] = now
            asked = [(VM_PORT, _solicitation(octets, src_mac, None))]
            self._testing[octets] = trial = _Trial(asked, TEST_S / _ASKED_TESTING, _ASKED_TESTING, now)
            self._ask(trial, now)

    def announced(self, message: nd.RouterAdvert, now: float) -> None:
        """Learn prefixes of the link, or that hosts may make addresses of (RFC 4861 section 6.3.4)."""
        for octets, length, flags, valid_s, _ in message.prefixes:
            if not flags & _PREFIX_FLAGS or not PREFIX_BITS_MIN <= length <= 128:
                continue
            prefix = IPv6Network((octets, length), strict=False)
            self.prefixes.pop(prefix, None)
            if valid_s:
                if len(self.prefixes) >= PREFIXES_MAX:
                    del self.prefixes[next(iter(self.prefixes))]
                self.prefixes[prefix] = now + valid_s

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        if not self._tentative and not self._testing:
            return None
        return min(trial.due for trials in (self._tentative, self._testing) for trial in trials.values())

    def wake(self, now: float) -> None:
        """Ask again, and take up or give up what was asked often enough. Early is harmless."""
        for octets in [octets for octets, trial in self._tentative.items() if self._is_over(trial, now)]:
            del self._tentative[octets]
            self.bind(octets)
        for octets in [octets for octets, trial in self._testing.items() if self._is_over(trial, now)]:
            self._give_up(octets)
            self.others[octets] = now

    def transmit(self) -> list[Sent]:
        """Return what is to be sent, once."""
        sent, self._outbox = self._outbox, []
        return sent

    def bind(self, octets: bytes) -> None:
        """Have an address as the VM's."""
        if len(self.valid) >= CLAIMS_MAX and octets not in self.valid:
            self._give_up(next(iter(self.valid)))
        self.valid[octets] = float("-inf")
        self._own.add(octets)

    def _is_over(self, trial: _Trial, now: float) -> bool:
        if now < trial.due:
            return False
        if trial.left:
            self._ask(trial, now)  # from now on, so that a late answer still counts
            return False
        return True

    def _ask(self, trial: _Trial, now: float) -> None:
        self._outbox += trial.sent
        trial.left -= 1
        trial.due = now + trial.pause_s


def _solicitation(target: bytes, src_mac: bytes, tags: tuple[int, ...] | None) -> bytes:
    """Return what asks who has an address, as duplicate address detection does (RFC 4862 section 5.4.2)."""
    group = address.solicited_node(target)
    return bytes(
        build.neighbor_solicit(
            src_mac=src_mac, dst_mac=address.multicast_mac(group), src=bytes(16), dst=group, target=target,
            vlan=tags,
        )
    )  # fmt: skip


def _is_of_another(octets: bytes, mac: bytes) -> bool:
    """Say whether an address is made of another's Ethernet address (RFC 4291 appendix A).

    Such addresses can be told beforehand, and taken before the other is there to defend them.
    """
    return octets[11:13] == _EUI64 and octets[8:] != address.link_local(mac)[8:]
