"""Bindings of the VM's IPv6 addresses: first come, first served (FCFS SAVI, RFC 6620).

An address is *tentative* once the VM claims it. The service then solicits it on the network itself, as the VM
could send its own solicitation to nobody. The address becomes *valid*, and the VM's, if no station has
answered for TENT_LT_S. If the network claims a valid address later, the service solicits it from the VM,
which loses it only if it does not answer (TESTING_VP). So one frame of a stranger takes no address from the
VM, and a guest takes none from a present station.

Reads no clock; `now` is in seconds.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network
from typing import Final

from vtl_tools.common.packet import address, build, nd

CLAIMS_MAX: Final = 64
"""Maximum addresses of the VM, which creates new ones each day (RFC 8981); the oldest is evicted."""
OTHERS_MAX: Final = 1024
OTHERS_S: Final = 10.0
"""Seconds that an address used on the network is refused without a solicitation."""
PREFIXES_MAX: Final = 16
PREFIX_BITS_MIN: Final = 32
"""Minimum length of an on-link prefix: most of a shorter one must be elsewhere."""
TENT_LT_S: Final = 0.9
"""Seconds to wait for an owner. RFC 6620 has 0.5, too short for a busy host; VMs wait 1 (RFC 4862 5.4)."""
TENTATIVE_MAX: Final = 16
TEST_S: Final = 1.5
TESTED_S: Final = 5.0
"""Minimum seconds between two tests of a valid address."""
_ASKED_TENTATIVE, _ASKED_TESTING = 3, 3

VM_PORT, NETWORK_PORT = 0, 1
_PREFIX_FLAGS: Final = 0xC0  # L and A (RFC 4861 section 4.6.2)
_EUI64: Final = b"\xff\xfe"  # in the middle of an interface identifier

Sent = tuple[int, bytes]
"""A port, and a frame for it."""


@dataclass(slots=True)
class _Trial:
    """A series of solicitations: `left` more, each `pause_s`. It ends when none is left at `due`."""

    sent: list[Sent]
    pause_s: float
    left: int
    due: float


class Bindings:
    """The IPv6 addresses of one VM. own: the VM's addresses, to which the valid ones are added."""

    def __init__(self, own: set[bytes]) -> None:
        self.valid: OrderedDict[bytes, float] = OrderedDict()
        """Valid addresses, with the time of their last test."""
        self.prefixes: dict[IPv6Network, float] = {}
        """Prefixes of the link, with the end of their validity."""
        self._own = own
        self._tentative: dict[bytes, _Trial] = {}
        self._testing: dict[bytes, _Trial] = {}
        self.others: OrderedDict[bytes, float] = OrderedDict()
        """Addresses of the network, with the time of their last use."""
        self.may_ask: Callable[[bytes], bool] = lambda frame: True
        """Whether the rules let the VM send this solicitation; if not, nothing is sent, and nothing bound."""
        self._outbox: list[Sent] = []

    # --- messages of the VM

    def claim(self, octets: bytes, mac: bytes, tags: tuple[int, ...], now: float, *, leased: bool) -> bool:
        """Start to test whether an address may become the VM's. Return whether a test is in progress.

        mac: the VM's. tags: the VLAN tags of the claim: solicitations are sent there, and without tags.
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
        """Record that the VM announced an address of its own by neighbour discovery."""
        self._testing.pop(octets, None)

    def _is_of_link(self, octets: bytes, now: float) -> bool:
        if address.is_link_local(octets):
            return True
        asked = IPv6Address(octets)
        return any(until > now and asked in prefix for prefix, until in self.prefixes.items())

    def leave(self, octets: bytes, now: float) -> None:
        """Remove an address whose lease has ended, unless the VM may have it without a lease."""
        self._tentative.pop(octets, None)
        if octets in self.valid and not self._is_of_link(octets, now):
            self._give_up(octets)

    def forget(self) -> None:
        """Forget the VM's addresses, also those that are being tested."""
        for octets in list(self.valid):
            self._give_up(octets)
        self._tentative.clear()
        self._outbox.clear()

    def is_tentative(self, octets: bytes) -> bool:
        """Return whether an address is being tested, and may become the VM's."""
        return octets in self._tentative

    def _give_up(self, octets: bytes) -> None:
        del self.valid[octets]
        self._testing.pop(octets, None)
        self._own.discard(octets)

    # --- messages of the network

    def observe(self, octets: bytes, src_mac: bytes, now: float) -> None:
        """Record that the network uses or claims an address. src_mac: source of the frame."""
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
        """Learn prefixes that are on-link, or that hosts may use for SLAAC (RFC 4861 section 6.3.4)."""
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
        """Send further solicitations, and bind or remove addresses whose tests ended.

        An early call is harmless.
        """
        for octets in [octets for octets, trial in self._tentative.items() if self._is_over(trial, now)]:
            del self._tentative[octets]
            self.bind(octets)
        for octets in [octets for octets, trial in self._testing.items() if self._is_over(trial, now)]:
            self._give_up(octets)
            self.others[octets] = now

    def transmit(self) -> list[Sent]:
        """Remove and return the frames to send."""
        sent, self._outbox = self._outbox, []
        return sent

    def bind(self, octets: bytes) -> None:
        """Add an address as the VM's."""
        if len(self.valid) >= CLAIMS_MAX and octets not in self.valid:
            self._give_up(next(iter(self.valid)))
        self.valid[octets] = float("-inf")
        self._own.add(octets)

    def _is_over(self, trial: _Trial, now: float) -> bool:
        if now < trial.due:
            return False
        if trial.left:
            self._ask(trial, now)  # starting now, so that a late answer still counts
            return False
        return True

    def _ask(self, trial: _Trial, now: float) -> None:
        self._outbox += trial.sent
        trial.left -= 1
        trial.due = now + trial.pause_s


def _solicitation(target: bytes, src_mac: bytes, tags: tuple[int, ...] | None) -> bytes:
    """Return a neighbour solicitation as of duplicate address detection (RFC 4862 section 5.4.2)."""
    group = address.solicited_node(target)
    return bytes(
        build.neighbor_solicit(
            src_mac=src_mac, dst_mac=address.multicast_mac(group), src=bytes(16), dst=group, target=target,
            vlan=tags,
        )
    )  # fmt: skip


def _is_of_another(octets: bytes, mac: bytes) -> bool:
    """Return whether an address is derived from another's Ethernet address (RFC 4291 appendix A).

    Such addresses are predictable, and could be taken before their owner is there to defend them.
    """
    return octets[11:13] == _EUI64 and octets[8:] != address.link_local(mac)[8:]
