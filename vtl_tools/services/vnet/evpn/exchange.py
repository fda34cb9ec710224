"""Carries stations between the switch of vtl-vnet and BGP EVPN."""

from collections.abc import Iterator
from typing import Final

from vtl_tools.common.device.base import Device
from vtl_tools.services.vnet.evpn.link import EvpnLink
from vtl_tools.services.vnet.switch import VnetSwitch

_AT_ONCE: Final = 512
"""Changes that are passed on in a turn; the rest follows in the next."""


class EvpnExchange:
    """Tells the switch of stations that are remote, and the link of stations at any other link."""

    def __init__(self, name: str, link: Device, switch: VnetSwitch) -> None:
        assert isinstance(link, EvpnLink)
        self.name, self._link, self._switch = name, link, switch
        self._stations = switch.stations
        self._was_connected = self._was_up = False

    def run(self, now: float) -> Iterator[tuple[bytes, str]]:
        """Exchange. Yield each station that another VTEP has now, and the link that it was at before."""
        table = self._link.table
        if self._was_up and not self._link.up:
            self._switch.forget_stations(self.name)
        self._was_up = self._link.up
        news = self._stations.take_news() + table.freed(now)
        for mac in news:
            if self._is_here(mac):
                table.own(mac, now)
            else:
                table.disown(mac)
        for mac, is_remote in table.take_changes(_AT_ONCE):
            before = self._switch.tell(mac, self.name if is_remote else "", now)
            if before and is_remote:
                yield mac, before
        if news or table.has_changes:  # gobgpd is told at once
            self._link.handle.wake()

    def news_of_control(self) -> bool | None:
        """Return whether gobgpd is connected, if that has changed; else None."""
        if self._was_connected == self._link.is_controlled:
            return None
        self._was_connected = self._link.is_controlled
        return self._was_connected

    def vtep_of(self, mac: bytes) -> str:
        """Return the address of the VTEP of a MAC; "": not known."""
        return self._link.vtep_of(mac)

    def _is_here(self, mac: bytes) -> bool:
        return self._stations.link_of(mac) not in ("", self.name)
