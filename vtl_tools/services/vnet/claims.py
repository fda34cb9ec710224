"""Addresses that stations say they have, behind services that have not yet passed a frame of theirs. Sans-IO.

A guest can write any source into a frame. Behind a service that judges it, such as vtl-fw, the address is a
claim until the service passes a frame with it; then it is a station (stations.py). A service with the side
of the VM only passes none: there, a claim is all that tells where answers of the service go.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.bounded import silent

CLAIMS_OF_LINK: Final = 256
"""Bound by link, so that a guest that invents addresses forgets only claims of its own link."""
CLAIM_S: Final = 300.0
"""Silence after which a claim is forgotten, as a station is."""


@dataclass(slots=True)
class Claim:
    """An address that entered a service. link: where from. passed: services that passed it before this."""

    link: str
    passed: frozenset[str]
    seen_at: float


class ServiceClaims:
    """A bounded table of claims, by service and Ethernet address: of two claims, the later one counts."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, bytes], Claim] = {}
        self._of_link: dict[str, dict[tuple[str, bytes], None]] = {}
        self._behind: dict[str, Counter[str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, key: tuple[str, bytes]) -> bool:
        return key in self._found

    def note(self, service: str, mac: bytes, link: str, passed: frozenset[str], now: float) -> None:
        """Note that a frame enters a service. passed: the services that it passed before."""
        key = service, mac
        self.take(service, mac)
        of_link = self._of_link.setdefault(link, {})
        if len(of_link) >= CLAIMS_OF_LINK:
            self.take(*next(iter(of_link)))
        self._found[key] = Claim(link, passed, now)
        of_link[key] = None
        self._behind.setdefault(service, Counter())[link] += 1

    def take(self, service: str, mac: bytes) -> Claim | None:
        """Remove a claim, and return it."""
        key = service, mac
        claim = self._found.pop(key, None)
        if claim is not None:
            del self._of_link[claim.link][key]
            links = self._behind[service]
            links[claim.link] -= 1
            if not links[claim.link]:
                del links[claim.link]
        return claim

    def link_of(self, service: str, mac: bytes) -> str:
        """Return the link that an address entered a service from; "": it did not, or is a station by now."""
        claim = self._found.get((service, mac))
        return "" if claim is None else claim.link

    def behind(self, service: str) -> set[str]:
        """Return the links that claims at a service came from."""
        return set(self._behind.get(service, ()))

    def expire(self, now: float) -> None:
        """Forget claims that were silent."""
        for key in silent(self._found, now - CLAIM_S):
            self.take(*key)

    def forget_link(self, link: str) -> None:
        """Forget the claims of a link that is gone."""
        for key in list(self._of_link.get(link, ())):
            self.take(*key)
        self._of_link.pop(link, None)

    def forget_service(self, service: str) -> None:
        """Forget the claims at a service that no rule names any more."""
        for key in [key for key in self._found if key[0] == service]:
            self.take(*key)
        self._behind.pop(service, None)
