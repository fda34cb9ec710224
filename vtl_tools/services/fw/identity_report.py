"""Tells an operator why frames of the VM are refused, and what to do: in warnings, events and answers.

A line names what was refused by its cause, not by what the guest chose. So a guest causes one line and one
event a minute and cause, whatever it sends.
"""

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from vtl_tools.common.host import log_lines
from vtl_tools.common.packet import address
from vtl_tools.common.repeats import Repeats, more
from vtl_tools.services.fw.identity import Identity

log = logging.getLogger(__name__)

CAUSES: Final = frozenset(
    (
        "spoofed-mac", "spoofed-address", "spoofed-arp", "spoofed-nd", "spoofed-dhcp", "rogue-router",
        "rogue-dhcp", "dhcp-rate",
    )
)  # fmt: skip
"""Why an identity refuses frames that are not malformed."""
LISTED_MAX: Final = 8
"""Addresses of the VM in one line."""


class IdentityReport:
    """Counts the frames that were refused as not the VM's, and tells of them.

    link: the VM's link, for people. event: as Stage.event.
    """

    def __init__(self, identity: Identity, link: str) -> None:
        self.identity, self.link = identity, link
        self.event: Callable[..., object] = lambda name, **fields: None
        self.counts: Counter[str] = Counter()
        self._repeats: Repeats[str] = Repeats()
        self._last: dict[str, tuple[bytes, float]] = {}
        """The address that each cause refused last, and when; the latest cause is the last."""

    def refused(self, cause: str, now: float, *, quietly: bool = False) -> None:
        """Count a frame that the identity refused just now. quietly: tell nobody."""
        if cause not in CAUSES:
            return
        self.counts[cause] += 1
        self._last.pop(cause, None)
        self._last[cause] = self.identity.refused, now
        if quietly or not self._repeats.admit(cause, now):
            return
        if cause != "spoofed-mac" or not self.identity.is_changing():
            self._tell(cause, self.identity.refused)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return self._repeats.deadline()

    def wake(self, now: float) -> None:
        """Tell how often the causes of a minute came again."""
        for cause, count in self._repeats.due(now):
            if cause in self._last:
                self._tell(cause, self._last[cause][0], count)
            else:
                again = more(count, self._repeats.period_s)
                self._warn("a VM took the place of another: %s", again)
                self.event("identity", reason=cause, repeats=count, period_s=self._repeats.period_s)

    def replaced(self, former: bytes, mac: bytes, ended: int, now: float) -> None:
        """Tell that another VM took the place of one; ended: connections that ended by it."""
        names = address.format_mac(former), address.format_mac(mac)
        if not self._repeats.admit("replaced", now):
            return
        self._warn(
            "a VM with the Ethernet address %s took the place of %s; what was learned is forgotten",
            names[1], names[0],
        )  # fmt: skip
        self.event("identity", reason="replaced", former=names[0], mac=names[1], ended=ended)

    def _tell(self, cause: str, refused: bytes, repeats: int = 0) -> None:
        mac = self.identity.mac or self.identity.former
        told: dict[str, Any] = {
            "reason": cause,
            "refused": format_any(refused),
            "mac": "" if mac is None else address.format_mac(mac),
            "addresses": list(self.identity.origins()),
            "text": problem(self.identity, cause, refused),
            "remedy": remedy(self.identity, cause, refused, self.link),
        }
        if repeats:
            self._warn("%s: %s", cause, more(repeats, self._repeats.period_s))
            told |= {"repeats": repeats, "period_s": self._repeats.period_s}
        else:
            self._warn("%s: %s; %s", cause, told["text"], told["remedy"])
        self.event("identity", **told)

    def _warn(self, text: str, *arguments: object) -> None:
        log.warning(f"%s: {text}", self.link, *arguments, extra=log_lines.ALWAYS)

    def status(self, now: float) -> dict[str, object]:
        """Return what was refused: how often, and the last."""
        if not self._last:
            return {"refused": 0}
        cause, (octets, when) = list(self._last.items())[-1]
        return {
            "refused": sum(self.counts.values()),
            "refused_by_cause": dict(self.counts),
            "last_cause": cause,
            "last_refused": format_any(octets),
            "last_ago_s": round(now - when, 1),
            "last_text": problem(self.identity, cause, octets),
        }


def format_any(octets: bytes) -> str:
    """Return an Ethernet or IP address as text; "" for none."""
    if len(octets) == 6:
        return address.format_mac(octets)
    return address.format_ip(octets) if octets else ""


def known(identity: Identity) -> str:
    """Return the VM's IP addresses, each with what gave it, as the end of a sentence."""
    found = [f"{of} by {how}" for of, how in identity.origins().items()]
    rest = f" and {len(found) - LISTED_MAX} more" if len(found) > LISTED_MAX else ""
    return f"it has {', '.join(found[:LISTED_MAX])}{rest}" if found else "it has none yet"


def problem(identity: Identity, cause: str, refused: bytes) -> str:
    """Return in words why a frame is not the VM's to send. refused: as Identity.refused."""
    mac, what = identity.mac or identity.former, format_any(refused)
    if len(refused) == 6:
        if address.is_multicast_mac(refused) or not any(refused):
            return f"{what} is the Ethernet address of no VM"
        own = "not known yet" if mac is None else address.format_mac(mac)
        by = "given by --mac" if identity.given_mac else "the first that it sent from"
        return f"{what} is not the Ethernet address of the VM ({own}, {by})"
    if cause in ("rogue-router", "rogue-dhcp"):
        return "the VM acts as a router" if cause == "rogue-router" else "the VM acts as a DHCP server"
    if cause == "dhcp-rate":
        return "the VM sends more to DHCP servers than a client would"
    if cause == "spoofed-dhcp":
        return "the VM asks a DHCP server as another client, for another's lease, or from elsewhere"
    if identity.bindings.is_tentative(refused):
        return f"{what} is not an address of the VM yet: the network is asked whose it is ({known(identity)})"
    return f"{what or 'that'} is not an address of the VM ({known(identity)})"


def remedy(identity: Identity, cause: str, refused: bytes, link: str) -> str:
    """Return what an operator may do if the VM is to send such frames. link: the VM's."""
    forget = f"'vtl-fw forget --link {link}'"
    if cause in ("rogue-router", "rogue-dhcp"):
        return "if it is to be one, start with --spoofing"
    if cause == "dhcp-rate":
        return "look at its DHCP client"
    if cause == "spoofed-dhcp":
        return f"if the VM was reinstalled or replaced, run {forget}"
    if len(refused) == 6:
        if address.is_multicast_mac(refused) or not any(refused):
            return "look at what the VM runs"
        if identity.given_mac:
            return "if another VM took its place, start with its --mac"
        follow = "" if identity.follows else ", or start with --vm reappearing"
        by_another = f"if another VM took its place, run {forget}{follow}"
        if identity.is_moved:
            return f"its link is in other hands than before: {by_another}"
        return by_another
    if len(refused) == 4:
        return "let the VM ask DHCP again, or give its fixed address by --address"
    if len(refused) == 16 and address.is_link_local(refused):
        return "the VM has to claim it by duplicate address detection (RFC 4862), or give it by --address"
    return "the VM has to claim it, in a prefix that a router announces, or give it by --address"
