"""Services that adaptation puts under a pair of stations: vtl-udt at both daemons, or vtl-split at this one.

    asker                                          other daemon
    offer: pair, port          ->                  starts its service, adds its rule
                               <-  accept: port    (or refuse: the asker starts vtl-split, alone)
    starts its service, adds its rule
    go, once both are reached  ->                  both take the connections that begin from now on
    drain                      ->                  both take none any more; those that are there go on
    end                        ->                  both remove rule and service

The asker repeats each second where it is, with `wait` between accept and go: a message may be lost, and
either daemon may start again. The other daemon ends a service of which it has heard nothing for a minute.

A service takes connections that begin only while it is told to, and passes all others (--on-demand). So
those that were there before go on as they are, and it goes only when it carries none.
"""

import hmac
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.rate_limit import KeyedBuckets, RateLimit
from vtl_tools.common.session.items import CARRY
from vtl_tools.common.session.peer_link import PeerLink
from vtl_tools.services.vnet.adapt import AGAIN_S, TRIAL_S
from vtl_tools.services.vnet.carried import Carried, CarryState
from vtl_tools.services.vnet.carry_message import CarryMessage
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.long_paths import LongPath, LongPaths, Pair, Trial
from vtl_tools.services.vnet.switch import LinkKind, VnetSwitch

CARRIED_MAX: Final = 4
"""Pairs with a service at a time. A vtl-udt is three processes."""
PORT: Final = 7710
PORTS: Final = 2
"""Ports of each vtl-udt, from PORT on: SRT has its own."""
START_S: Final = 30.0
"""Seconds that the other daemon may take to answer, and a service to start, and to be reached."""
LOST_S: Final = 60.0
"""Seconds without a message of the asker after which the other daemon ends the service."""
_OFFERS: Final = RateLimit(CARRIED_MAX / LOST_S, CARRIED_MAX)
"""Of services that a daemon may have started here."""
_OFFERERS_MAX: Final = 256
_BUSY: Final = "has a service for them already"
_REPEATED: Final = {
    CarryState.ASKED: "offer", CarryState.STARTING: "wait", CarryState.READY: "wait",
    CarryState.CARRYING: "go", CarryState.DRAINING: "drain",
}  # fmt: skip
"""The messages of the asker, by its state."""
_ANSWER: Final = {"taking": bool, "up": bool, "flows": int, "octets": int}
"""Fields of the answer of a service, which has read foreign octets."""


class ServiceLinks(Protocol):
    """The links of the overlay, as services need them."""

    def add_link(self, name: str, spec: str, secret: bytes = b"") -> None:
        """Add a link; secret: what a service's --key-file has. Raises VTLError."""
        ...

    def remove_link(self, name: str) -> None:
        """Remove a link. Raises VTLError."""
        ...

    def add_rule(self, text: str) -> object:
        """Add a rule, and call Carrying.order_rules(). Raises SpecError."""
        ...

    def remove_rule(self, text: str) -> object:
        """Remove a rule. Raises SpecError."""
        ...

    def service_state(self, name: str) -> tuple[bool, int]:
        """Return whether a service's links are up, and how often it was started."""
        ...


@dataclass
class Carrying:
    """The services of this daemon for pairs. tell_event: of (action, link, why). name: of this daemon.

    paths: finds the pairs. port: the first of those to listen on. idle_s: see Trial.
    """

    name: str
    key: bytes | None
    switch: VnetSwitch
    links: ServiceLinks
    keeper: ServiceKeeper | None
    tell_event: Callable[[str, str, str], object]
    paths: LongPaths
    port: int = PORT
    idle_s: float = 60.0
    carried: dict[str, Carried] = field(default_factory=dict)
    _peers: Mapping[str, PeerLink] = field(default_factory=dict)
    _offers: KeyedBuckets[str] = field(default_factory=lambda: KeyedBuckets(_OFFERERS_MAX))
    _number: int = 0

    def __post_init__(self) -> None:
        if self.keeper is not None:
            self.keeper.on_answer = self.on_answer

    # --- what begins

    def begin(self, path: LongPath, now: float) -> None:
        """Ask for vtl-udt for a pair, or start vtl-split if there can be none."""
        if len(self.carried) >= CARRIED_MAX or self._find(path.pair) is not None:
            return
        peer = self._peers[path.link]
        daemon = peer.remote.name if peer.remote is not None else ""
        one = self._new("udt", path, daemon, now, is_asker=True)
        one.state = CarryState.ASKED
        if self.key is None or not daemon:
            self._split(one, "no key", now)
        else:
            self._repeat(one)

    def _new(self, kind: str, path: LongPath, daemon: str, now: float, *, is_asker: bool) -> Carried:
        while (name := f"{kind}-{self._number}") in self.switch.links or name in self.carried:
            self._number += 1
        taken = {one.port for one in self.carried.values()}
        port = next(port for n in range(CARRIED_MAX) if (port := self.port + PORTS * n) not in taken)
        one = self.carried[name] = Carried(
            name, kind, path.link, daemon, path.pair, path.why, port, is_asker,
            Trial(path.mbit, self.idle_s, now), now, began_at=now, heard_at=now,
        )  # fmt: skip
        return one

    def _find(self, pair: Pair) -> Carried | None:
        return next((one for one in self.carried.values() if str(one.pair) == str(pair)), None)

    def _split(self, one: Carried, refusal: str, now: float) -> None:
        """Start vtl-split here in place of a vtl-udt that the other daemon has no end of."""
        self._remove(one)
        path = LongPath(one.link, one.pair, one.trial.before_mbit, f"{one.why}; no vtl-udt: {refusal}")
        split = self._new("split", path, one.daemon, now, is_asker=True)
        split.began_at = one.began_at
        self._start(split, "service:split?uplink&on-demand", now)

    def _start_udt(self, one: Carried, peer_port: int, now: float) -> bool:
        """Start vtl-udt. Return whether that could be."""
        assert self.key is not None
        peer = self._peers[one.link]
        try:
            own = _shown(_own_address(peer.where))
        except OSError as e:
            self._end(one, f"no way to the other daemon: {e}", now)
            return False
        one.peer_port, pair = peer_port, one.pair
        spec = (
            f"service:udt?peer={_shown(peer.where)}:{peer_port}&listen={own}:{one.port}&on-demand"
            f"&from={pair.theirs}&to={pair.ours}"
            f"&station={pair.ours}={pair.our_mac.hex(':')}&station={pair.theirs}={pair.their_mac.hex(':')}"
        )
        return self._start(one, spec, now, hmac.digest(self.key, b"vtl-vnet udt", "sha256"))

    def _start(self, one: Carried, spec: str, now: float, secret: bytes = b"") -> bool:
        one.state, one.since = CarryState.STARTING, now
        try:
            self.links.add_link(one.name, spec, secret)
        except VTLError as e:
            self._end(one, str(e), now)
            return False
        self.tell_event("make", one.name, f"{one.pair}: {one.why}")
        return True

    # --- what the other daemon says

    def take(self, link: str, item: bytes, now: float, *, is_on: bool) -> None:
        """Take an item of a daemon. is_on: whether this daemon starts services. Raises Malformed."""
        told = CarryMessage.of(item)
        one = self._find(told.pair)
        if one is not None and one.link == link and not one.is_asker:
            if told.said != "offer" or (one.pair, one.peer_port) == (told.pair, told.port):
                self._obey(one, told, now)
                return
            self._end(one, "the other daemon begins anew", now, say=False)
            one = None
        if told.said == "offer":
            self._take_offer(one, link, told, now, is_on=is_on)
        elif one is not None and one.link == link and one.state is CarryState.ASKED:
            self._take_answer(one, told, now)

    def _take_offer(
        self, one: Carried | None, link: str, told: CarryMessage, now: float, *, is_on: bool
    ) -> None:
        remote = self._peers[link].remote
        daemon = "" if remote is None else remote.name
        if refusal := self._refusal(one, link, daemon, told, now, is_on=is_on):
            self._tell(link, CarryMessage("refuse", told.pair, why=refusal))
            return
        if one is not None:  # both have asked
            del self.carried[one.name]
        made = self._new("udt", LongPath(link, told.pair, 0.0, told.why), daemon, now, is_asker=False)
        if not self._start_udt(made, told.port, now):
            self._tell(link, CarryMessage("refuse", told.pair, why="its vtl-udt does not start"))

    def _refusal(
        self, one: Carried | None, link: str, daemon: str, told: CarryMessage, now: float, *, is_on: bool
    ) -> str:
        if not is_on or self.key is None:
            return "has no --adapt on"
        if not told.port:
            return "no port"
        if any(self.switch.stations.find(0, mac) is None for mac in told.pair[2:]):
            return "does not know both stations"
        if why := self._elsewhere(link, told.pair):
            return why
        if one is not None and (one.state is not CarryState.ASKED or self.name < daemon):
            return _BUSY
        if len(self.carried) >= CARRIED_MAX + (one is not None):
            return "has too many services"
        return "" if self._offers.take(link, _OFFERS, now) else "is asked too often"

    def _elsewhere(self, link: str, pair: Pair) -> str:
        """Return which of a pair is not at this daemon or behind the link, as far as is known; "": none."""
        switch = self.switch
        ours, theirs = (switch.stations.find(0, mac) for mac in pair[2:])
        role = None if ours is None else switch.links.get(ours.link)
        if role is not None and role.kind is not LinkKind.LOCAL:
            return f"has {pair.ours} elsewhere"
        if theirs is None or link in (theirs.link, *switch.shortcuts.get((0, pair.their_mac), ())):
            return ""
        return f"has {pair.theirs} elsewhere"

    def _take_answer(self, one: Carried, told: CarryMessage, now: float) -> None:
        if told.said == "accept" and told.port:
            if not self._start_udt(one, told.port, now):
                self._say(one, "end")
        elif told.said == "refuse" and told.why == _BUSY:
            del self.carried[one.name]
            self.paths.put_off(one.pair, now + TRIAL_S)
        elif told.said == "refuse":
            self._split(one, f"{one.daemon} {told.why}", now)

    def _obey(self, one: Carried, told: CarryMessage, now: float) -> None:
        """Do as the asker says."""
        one.heard_at = now
        if told.said == "offer" and one.state is not CarryState.STARTING:
            self._say(one, "accept", port=one.port)
        elif told.said == "go" and one.state in (CarryState.READY, CarryState.DRAINING):
            self._set(one, CarryState.CARRYING, now)
        elif told.said == "drain" and one.state is CarryState.CARRYING:
            one.why = told.why
            self._set(one, CarryState.DRAINING, now)
        elif told.said == "end":
            self._end(one, told.why, now, say=False)

    # --- time

    def tick(self, peers: Mapping[str, PeerLink], now: float) -> None:
        """Go on with each service."""
        self._peers = peers
        for one in list(self.carried.values()):
            if one.state is CarryState.ASKED:
                if now >= one.since + START_S:
                    self._say(one, "end")
                    self._split(one, f"{one.daemon} does not answer", now)
            else:
                self._go_on(one, now)
            if one.is_asker and one.name in self.carried:
                self._repeat(one)

    def _repeat(self, one: Carried) -> None:
        """Tell the other daemon where the asker is."""
        self._say(one, _REPEATED[one.state], port=one.port, why=one.why)

    def _go_on(self, one: Carried, now: float) -> None:
        is_up, starts = self.links.service_state(one.name)
        if one.state is CarryState.STARTING:
            if is_up:
                self._put_under(one, now)
            elif now >= one.since + START_S:
                self._end(one, "its service did not start", now)
            return
        if starts != 1:
            self._end(one, "its service ended", now)
            return
        is_taking = one.is_asker and one.state in (CarryState.READY, CarryState.CARRYING)
        if is_taking and one.kind == "udt" and (why := self._elsewhere(one.link, one.pair)):
            self._drain(one, f"this daemon {why}", now)
        elif one.answer:
            self._judge(one, now)
        if one.name in self.carried:
            self._ask(one)

    def _put_under(self, one: Carried, now: float) -> None:
        """Lead the pair's frames to the service, which passes all of them at first."""
        try:
            self.links.add_rule(one.rule)
        except SpecError as e:
            self._end(one, str(e), now)
            return
        one.state, one.since = CarryState.READY, now
        # The first seconds of a connection, by which the pair was found, may be quicker than the rest.
        if (rate := self.paths.rate(one.link, one.pair)) is not None:
            one.trial.before_mbit = rate
        if not one.is_asker:
            self._say(one, "accept", port=one.port)
        elif one.kind == "split":
            self._go(one, now)

    def order_rules(self) -> None:
        """Let the rules follow those of other services, which are to judge first."""
        self.switch.put_behind_services({one.rule for one in self.carried.values()})

    def _go(self, one: Carried, now: float) -> None:
        """Take the connections that begin from now on."""
        one.trial = Trial(one.trial.before_mbit, self.idle_s, now)
        self._set(one, CarryState.CARRYING, now)

    def _set(self, one: Carried, state: CarryState, now: float) -> None:
        one.state, one.since, one.answer = state, now, {}
        self._ask(one, take=state is CarryState.CARRYING)

    def _ask(self, one: Carried, *, take: bool | None = None) -> None:
        assert self.keeper is not None
        if one.is_asked and take is None:
            return  # of a service that hangs, not more and more
        with suppress(VTLError):
            self.keeper.ask(one.name, take=take)
            one.is_asked = True

    def _judge(self, one: Carried, now: float) -> None:
        trial, answer = one.trial, one.answer
        one.answer = {}
        did_pay = trial.pays
        trial.take(flows=answer["flows"], octets=answer["octets"], up=answer["up"], now=now)
        if not one.is_asker:
            if now >= one.heard_at + LOST_S and not answer["flows"]:
                self._end(one, "the other daemon is gone", now)
        elif one.state is CarryState.READY:
            if answer["up"]:
                self._go(one, now)
            elif now >= one.since + START_S:
                self._say(one, "end")
                self._split(one, f"{one.daemon} is not reached at its port", now)
        elif one.state is CarryState.DRAINING:
            if not answer["flows"] and not answer["taking"]:
                self._end(one, "", now)
        elif why := trial.verdict(now):
            if not why.startswith("idle"):
                self.paths.put_off(one.pair, now + AGAIN_S)
            self._drain(one, why, now)
        elif trial.pays and not did_pay:
            self.tell_event("keep", one.name, f"{one.pair}: {trial.compared()}")

    def _drain(self, one: Carried, why: str, now: float) -> None:
        """Take no connection any more."""
        self.tell_event("undo", one.name, f"{one.pair}: {why}")
        one.why = why
        self._set(one, CarryState.DRAINING, now)

    def on_answer(self, name: str, answer: dict[str, Any]) -> None:
        """Take the answer of a service."""
        if (one := self.carried.get(name)) is None:
            return
        one.is_asked = False
        if all(type(answer.get(key)) is kind for key, kind in _ANSWER.items()):
            one.answer = answer

    def _end(self, one: Carried, why: str, now: float, *, say: bool = True) -> None:
        """Remove a service, with its rule. why: what went wrong, if anything."""
        self._remove(one)
        if why and one.is_asker:
            self.paths.put_off(one.pair, now + AGAIN_S)
        if say:
            self._say(one, "end", why=why)
        self.tell_event("gone", one.name, f"{one.pair}: {why or 'it carries nothing any more'}")

    def _remove(self, one: Carried) -> None:
        """Remove a service with its rule, as far as they are there."""
        self.carried.pop(one.name, None)
        with suppress(VTLError):
            self.links.remove_rule(one.rule)
        with suppress(VTLError):
            self.links.remove_link(one.name)

    # --- messages

    def _say(self, one: Carried, said: str, *, port: int = 0, why: str = "") -> None:
        if one.kind == "udt":
            self._tell(one.link, CarryMessage(said, one.pair, port, why))

    def _tell(self, link: str, message: CarryMessage) -> None:
        if (peer := self._peers.get(link)) is not None:
            peer.tell(CARRY, message.to_octets())

    def status(self, now: float) -> dict[str, object]:
        """Return the services for pairs, by link."""
        return {name: one.status(now) for name, one in self.carried.items()}


def _own_address(where: str) -> str:
    """Return the address of this host that a daemon there can reach. Raises OSError."""
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((where, 9))
        return str(sock.getsockname()[0])


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
