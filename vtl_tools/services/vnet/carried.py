"""A service for a pair of stations, as this daemon knows it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vtl_tools.services.vnet.long_paths import Pair, Trial


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


@dataclass
class Carried:
    """A service for a pair. name: of its link. link: the path. is_asker: whether this daemon decides.

    peer_port: of the other daemon's vtl-udt, 0 before it is told. heard_at: when the asker has told of it.
    is_asked: whether the service owes an answer.
    """

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
    peer_port: int = 0
    heard_at: float = 0.0
    is_asked: bool = False

    @property
    def rule(self) -> str:
        """Return the rule that leads the pair's frames to the service.

        It names the Ethernet addresses as well: a daemon that offers a service for addresses that are not its
        stations' gets none of their frames.
        """
        pair = self.pair
        macs = f"from-mac {pair.our_mac.hex(':')} to-mac {pair.their_mac.hex(':')}"
        return f"{macs} from {pair.ours} to {pair.theirs} protocol tcp via {self.name}"

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
