"""Services that adaptation puts under a pair of stations: vtl-udt at both daemons, or vtl-split at this one.

    asker                                          other daemon
    offer: pair, port          ->                  starts its service, adds its rule
                               <-  accept: port    (or refuse: the asker starts vtl-split, alone)
    starts its service, adds its rule
    go, once both are reached  ->                  both take the connections that begin from now on
    drain                      ->                  both take none any more; those that are there go on
    end                        ->                  both remove rule and service

A service takes connections that begin only while it is told to, and passes all others (--on-demand). So
those that were there before go on as they are, and it goes only when it carries none.
"""

import hmac
import json
import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address
from typing import Any, Final, Protocol

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.session.items import CARRY
from vtl_tools.common.session.peer_link import PeerLink
from vtl_tools.services.vnet.adapt import AGAIN_S, TRIAL_S
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.long_paths import LongPath, LongPaths, Pair, Trial
from vtl_tools.services.vnet.switch import LinkKind, VnetSwitch

log = logging.getLogger(__name__)

CARRIED_MAX: Final = 4
"""Pairs with a service at a time. A vtl-udt is three processes."""
PORT: Final = 7710
PORTS: Final = 2
"""Ports of each vtl-udt, from PORT on: SRT has its own."""
START_S: Final = 30.0
"""Seconds that the other daemon may take to answer, and a service to start, and to be reached."""
LOST_S: Final = 60.0
"""Seconds without the other daemon after which the one that did not ask ends the service."""
_PORT_MAX: Final = 65534
_BUSY: Final = "has a service for them already"


class CarryState(StrEnum):
    """The state of a service for a pair; the values are what --json prints."""

    ASKED = "asked"
    """The other daemon was asked."""
    STARTING = "starting"
    READY = "ready"
    """The rule is there; nothing is taken until both services reach each other."""
    CARRYING = "carrying"
    DRAINING = "draining"
    """No connection is taken any more; those that are there go on."""


class ServiceLinks(Protocol):
    """The links of the overlay, as services need them."""

    def add_link(self, name: str, spec: str, secret: bytes = b"") -> None:
        """Add a link; secret: what a service's --key-file has. Raises VTLError."""
        ...

    def remove_link(self, name: str) -> None:
        """Remove a link. Raises VTLError."""
        ...

    def add_rule(self, text: str, position: int | None = None) -> object:
        """Add a rule. Raises SpecError."""
        ...

    def remove_rule(self, text: str) -> object:
        """Remove a rule. Raises SpecError."""
        ...

    def service_state(self, name: str) -> tuple[bool, int]:
        """Return whether a service's links are up, and how often it was started."""
        ...


@dataclass
class Carried:
    """A service for a pair. name: of its link. link: the path. is_asker: whether this daemon decides."""

    name: str
    kind: str
    link: str
    daemon: str
    pair: Pair
    why: str
    port: int
    is_asker: bool
    trial: Trial
    since: float
    state: CarryState = CarryState.STARTING
    answer: dict[str, Any] = field(default_factory=dict)
    began_at: float = 0.0

    @property
    def rule(self) -> str:
        """Return the rule that leads the pair's frames to the service."""
        return f"from {self.pair.ours} to {self.pair.theirs} protocol tcp via {self.name}"

    def status(self, now: float) -> dict[str, object]:
        """Return its part of --json."""
        trial = self.trial
        return {
            "kind": self.kind, "state": str(self.state), "pair": str(self.pair), "path": self.link,
            "daemon": self.daemon, "asked_here": self.is_asker, "why": self.why, "flows": trial.flows,
            "before_mbit": round(trial.before_mbit, 3),
            "after_mbit": None if trial.after_mbit is None else round(trial.after_mbit, 3),
            "age_s": round(max(0.0, now - self.began_at), 1),
        }  # fmt: skip


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
            self._say(one, "offer", port=one.port, why=path.why)

    def _new(self, kind: str, path: LongPath, daemon: str, now: float, *, is_asker: bool) -> Carried:
        while (name := f"{kind}-{self._number}") in self.switch.links or name in self.carried:
            self._number += 1
        taken = {one.port for one in self.carried.values()}
        port = next(port for n in range(CARRIED_MAX) if (port := self.port + PORTS * n) not in taken)
        one = self.carried[name] = Carried(
            name, kind, path.link, daemon, path.pair, path.why, port, is_asker,
            Trial(path.mbit, self.idle_s, now), now, began_at=now,
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
        peer = self._peers.get(one.link)
        if peer is None or not peer.where:
            self._end(one, "the other daemon is gone", now)
            return False
        assert self.key is not None
        own = _shown(_own_address(peer.where))
        pair = one.pair
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
        """Take an item of a daemon. is_on: whether this daemon starts services."""
        told = json.loads(item)
        pair = _pair_of(told)
        one = self._find(pair)
        said = told["say"]
        if said == "offer":
            if refusal := self._refusal(one, link, pair, told["port"], is_on=is_on):
                self._answer(link, pair, "refuse", why=refusal)
                return
            if one is not None:  # both have asked
                del self.carried[one.name]
            path = LongPath(link, pair, 0.0, str(told["why"])[:200])
            remote = self._peers[link].remote
            made = self._new("udt", path, "" if remote is None else remote.name, now, is_asker=False)
            if not self._start_udt(made, told["port"], now):
                self._answer(link, pair, "refuse", why="its vtl-udt does not start")
        elif one is not None and one.link == link:
            self._take_answer(one, said, told, now)

    def _refusal(self, one: Carried | None, link: str, pair: Pair, port: object, *, is_on: bool) -> str:
        remote = self._peers[link].remote
        if not is_on or self.key is None:
            return "has no --adapt on"
        if not _is_port(port):
            return "no port"
        ours = self.switch.stations.find(0, pair.our_mac)
        theirs = self.switch.stations.find(0, pair.their_mac)
        role = None if ours is None else self.switch.links.get(ours.link)
        if role is None or role.kind is not LinkKind.LOCAL or theirs is None:
            return f"{pair.ours} is not there"
        if one is not None and (
            one.state is not CarryState.ASKED or remote is None or self.name < remote.name
        ):
            return _BUSY
        return "" if len(self.carried) < CARRIED_MAX + (one is not None) else "has too many services"

    def _take_answer(self, one: Carried, said: str, told: dict[str, Any], now: float) -> None:
        if said == "accept" and one.is_asker and one.state is CarryState.ASKED:
            port = told["port"]
            if not _is_port(port) or not self._start_udt(one, port, now):
                self._say(one, "end")
        elif said == "refuse" and one.is_asker and one.state is CarryState.ASKED:
            if told["why"] == _BUSY:
                del self.carried[one.name]
                self.paths.put_off(one.pair, now + TRIAL_S)
                return
            self._split(one, f"{one.daemon} {str(told['why'])[:100]}", now)
        elif not one.is_asker and said == "go" and one.state is CarryState.READY:
            self._set(one, CarryState.CARRYING, now)
        elif not one.is_asker and said == "drain" and one.state is CarryState.CARRYING:
            one.why = str(told["why"])[:200]
            self._set(one, CarryState.DRAINING, now)
        elif not one.is_asker and said == "end":
            self._end(one, str(told.get("why", ""))[:200], now, say=False)

    # --- time

    def tick(self, peers: Mapping[str, PeerLink], now: float) -> None:
        """Go on with each service."""
        self._peers = peers
        for one in list(self.carried.values()):
            if one.state is CarryState.ASKED:
                if now >= one.since + START_S:
                    self._say(one, "end")
                    self._split(one, f"{one.daemon} does not answer", now)
                continue
            self._go_on(one, now)

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
        if one.answer:
            self._judge(one, now)
        if one.name in self.carried:
            self._ask(one)

    def _put_under(self, one: Carried, now: float) -> None:
        """Lead the pair's frames to the service, which passes all of them at first."""
        rules = self.switch.rules
        first = next(
            (
                n
                for n, rule in enumerate(rules, 1)
                if self.switch.links[rule.via].kind is not LinkKind.SERVICE
            ),
            None,
        )
        try:
            self.links.add_rule(one.rule, first)
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

    def _go(self, one: Carried, now: float) -> None:
        """Take the connections that begin from now on."""
        self._say(one, "go")
        one.trial = Trial(one.trial.before_mbit, self.idle_s, now)
        self._set(one, CarryState.CARRYING, now)

    def _set(self, one: Carried, state: CarryState, now: float) -> None:
        one.state, one.since, one.answer = state, now, {}
        self._ask(one, take=state is CarryState.CARRYING)

    def _ask(self, one: Carried, *, take: bool | None = None) -> None:
        assert self.keeper is not None
        with suppress(VTLError):
            self.keeper.ask(one.name, take=take)

    def _judge(self, one: Carried, now: float) -> None:
        trial, answer = one.trial, one.answer
        one.answer = {}
        did_pay = trial.pays
        trial.take(flows=answer["flows"], octets=answer["octets"], up=answer["up"], now=now)
        if not one.is_asker:
            self._judge_other(one, answer, now)
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
            self.tell_event("undo", one.name, f"{one.pair}: {why}")
            one.why = why
            self._say(one, "drain", why=why)
            self._set(one, CarryState.DRAINING, now)
        elif trial.pays and not did_pay:
            self.tell_event("keep", one.name, f"{one.pair}: {trial.compared()}")

    def _judge_other(self, one: Carried, answer: dict[str, Any], now: float) -> None:
        """End a service whose asker is gone."""
        peer = self._peers.get(one.link)
        if peer is not None and peer.up:
            one.since = now
        elif now >= one.since + LOST_S and not answer["flows"]:
            self._end(one, "the other daemon is gone", now)

    def on_answer(self, name: str, answer: dict[str, Any]) -> None:
        """Take the answer of a service."""
        if name in self.carried:
            self.carried[name].answer = answer

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

    def _say(self, one: Carried, said: str, **more: object) -> None:
        if one.kind == "udt":
            self._answer(one.link, one.pair, said, **more)

    def _answer(self, link: str, pair: Pair, said: str, **more: object) -> None:
        peer = self._peers.get(link)
        if peer is None:
            return
        told = {
            "ours": str(pair.ours), "theirs": str(pair.theirs), "our_mac": pair.our_mac.hex(),
            "their_mac": pair.their_mac.hex(), "say": said, **more,
        }  # fmt: skip
        peer.tell(CARRY, json.dumps(told).encode())

    def status(self, now: float) -> dict[str, object]:
        """Return the services for pairs, by link."""
        return {name: one.status(now) for name, one in self.carried.items()}


def _pair_of(told: dict[str, Any]) -> Pair:
    """Return the pair of an item, from the side of this daemon. Raises ValueError, KeyError, TypeError."""
    pair = Pair(
        ip_address(str(told["theirs"])), ip_address(str(told["ours"])),
        bytes.fromhex(told["their_mac"]), bytes.fromhex(told["our_mac"]),
    )  # fmt: skip
    is_sane = pair.ours.version == pair.theirs.version
    is_sane &= all(is_single_host(each.packed) for each in pair[:2])
    if not is_sane or any(len(mac) != 6 or mac[0] & 1 for mac in pair[2:]):
        raise ValueError("no pair of stations")
    return pair


def _is_port(told: object) -> bool:
    return type(told) is int and 0 < told <= _PORT_MAX


def _own_address(where: str) -> str:
    """Return the address of this host that a daemon there can reach, as far as the routes tell."""
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((where, 9))
        except OSError:
            return "::" if ":" in where else "0.0.0.0"  # noqa: S104 - sessions need the key
        return str(sock.getsockname()[0])


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
