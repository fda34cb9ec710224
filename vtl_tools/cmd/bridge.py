"""vtl-bridge: join links, as a cable (two) or as a switch that learns (more). Paper section 2.3, Figure 1."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from vtl_tools.common.cli import tool as cli
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.stage import Stage

if TYPE_CHECKING:
    from vtl_tools.common.device.base import Device
    from vtl_tools.common.runtime.runner import Options

AGE_S: Final = 300.0
"""How long a station is remembered that is not heard of (IEEE 802.1Q-2022 table 8-6)."""
STATIONS_MAX: Final = 8192
"""A guest that sends from ever new addresses costs no more memory than this, and takes room from its port."""
SHARED_PER_S: Final = 1000.0
"""Stations of which a worker tells the others; frames for a station that is not known there are flooded."""

_DST = slice(VNET, VNET + 6)
_SRC = slice(VNET + 6, VNET + 12)
_ETHERNET_END: Final = VNET + 14


class Bridge(Stage):
    """Two ports, nothing changed: the paper's Figure 1, both ways or one."""

    def __init__(self, *, half_duplex: bool = False) -> None:
        super().__init__()
        self.half_duplex = half_duplex

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Pass a batch on as it is: no Python per frame."""
        if port and self.half_duplex:
            self.drops["other-direction"] += batch.count
            return
        self.out[1 - port](batch, now)


class Switch(Stage):
    """More ports: learns behind which port a station is, and never floods what is known."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self.names = names
        self.stations: dict[bytes, tuple[int, float]] = {}
        self._behind: list[dict[bytes, None]] = [{} for _ in names]  # in the order of last sight
        self._shared = TokenBucket(SHARED_PER_S)
        self._due = 0.0
        self._picked = Batch()

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Learn from each frame, and send runs of frames that go the same way together."""
        ways: dict[int, list[int]] = {}
        for i, frame in enumerate(batch):
            ways.setdefault(self._way(port, bytes(frame[:_ETHERNET_END]), now), []).append(i)
        for way, indices in ways.items():
            if way == port:
                self.drops["local"] += len(indices)
                continue
            part = batch if len(indices) == batch.count else self._picked.pick(batch, indices)
            if way >= 0:
                self.out[way](part, now)
            elif way == _FLOOD:
                for other in range(len(self.out)):
                    if other != port:
                        self.out[other](part, now)
            else:
                self.drops["malformed"] += len(indices)

    def _way(self, port: int, ethernet: bytes, now: float) -> int:
        if len(ethernet) < _ETHERNET_END:
            return _NOWHERE
        source = ethernet[_SRC]
        if not source[0] & 1:  # a group address sends nothing
            known = self.stations.get(source)
            if known is None or known[0] != port or now - known[1] > 1.0:
                self._learn(source, port, now)
                if self._shared.take(now):
                    self.broadcast(bytes([port]) + source)
        if ethernet[VNET] & 1:
            return _FLOOD
        known = self.stations.get(ethernet[_DST])
        return _FLOOD if known is None or now - known[1] > AGE_S else known[0]

    def _learn(self, station: bytes, port: int, now: float) -> None:
        self._forget(station)
        if len(self.stations) >= STATIONS_MAX:
            fullest = max(self._behind, key=len)
            self._forget(next(iter(fullest)))
        self.stations[station] = (port, now)
        self._behind[port][station] = None

    def _forget(self, station: bytes) -> None:
        if (known := self.stations.pop(station, None)) is not None:
            del self._behind[known[0]][station]

    def on_message(self, message: bytes, now: float) -> None:
        """Learn what another worker learnt."""
        if len(message) == 7 and message[0] < len(self.out):
            self._learn(message[1:], message[0], now)

    def on_link(self, port: int, up: bool, now: float) -> None:
        """Forget who was behind a link that went away."""
        if not up:
            for station in list(self._behind[port]):
                self._forget(station)

    def deadline(self) -> float | None:
        """Ageing is looked at where there is something to age."""
        return self._due if self.stations else None

    def wake(self, now: float) -> None:
        """Forget stations that were not heard of for AGE_S."""
        if now < self._due:
            return
        self._due = now + AGE_S / 4
        for station in [mac for mac, (_, seen) in self.stations.items() if now - seen > AGE_S]:
            self._forget(station)

    def status(self, now: float) -> dict[str, object]:
        """Return the table of stations."""
        return {
            "stations": {
                mac.hex(":"): {"link": self.names[port], "age_s": round(now - seen, 1)}
                for mac, (port, seen) in self.stations.items()
            }
        }


_FLOOD: Final = -1
_NOWHERE: Final = -2


@click.group("vtl-bridge", cls=cli.Tool)
@cli.iface_option(multiple=True)
@click.option("--uplink", "-u", metavar="LINK", help="A link to a network that the host uses, too.")
@click.option("--half-duplex", is_flag=True, help="Carry frames from the first link to the second only.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Spread the flows of interfaces over N processes.",
)
@cli.guard_option
@cli.common_options
def main(
    iface: tuple[str, ...],
    uplink: str | None,
    half_duplex: bool,
    workers: int,
    guard: str,
    options: "Options",
) -> None:
    """Join links: two as by a cable, more as by a switch that learns.

    \b
    vtl-bridge --iface vmnet1 --uplink eth0
    vtl-bridge --iface qemu:unix:/run/vm1.sock,server --iface vxlan:192.0.2.7/42
    """
    links = iface if uplink is None else (*iface, uplink)
    if len(links) < 2 or not iface:
        raise click.UsageError("give --iface at least twice, or --uplink: a bridge joins two links or more")
    cli.check_links(links)
    if half_duplex and len(links) != 2:
        raise click.UsageError("--half-duplex goes from one link to one other: give two")
    make_stage = partial(Bridge, half_duplex=half_duplex) if len(links) == 2 else partial(Switch, links)
    make_links = partial(_links, links, half_duplex, workers)
    cli.run(make_stage, make_links, options, guard=guard, vm_sides=len(iface), workers=workers)


def _links(specs: Sequence[str], half_duplex: bool, workers: int, fanout: int) -> "list[Device]":
    from vtl_tools.common.device.afpacket import PacketDevice
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK

    links = [
        open_device(spec, receive=not (half_duplex and port == 1), mark=MARK, fanout=fanout and fanout + port)
        for port, spec in enumerate(specs)
    ]
    links[0].unwritten = half_duplex
    if workers > 1:
        for link in links:
            if not isinstance(link, PacketDevice):
                raise SpecError(f"{link.spec}: cannot be spread over workers; use --workers with interfaces")
    return links


cli.status_verb(main)
