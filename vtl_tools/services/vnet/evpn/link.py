"""evpn: links of vtl-vnet: a VXLAN tunnel end point (VTEP) with many peers, which BGP EVPN names."""

import logging
import socket
import time
from ipaddress import ip_address
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.datagram import NAME_SIZE, Inbox, Outbox, drop_frames
from vtl_tools.common.device.peer import translated_errors
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.device.vxlan import FLAG_I, HEADER, path_mtu, sockaddr, tunnel_socket
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.services.vnet.evpn.client import GobgpClient
from vtl_tools.services.vnet.evpn.spec import EvpnSpec
from vtl_tools.services.vnet.evpn.table import EvpnTable

log = logging.getLogger(__name__)

_TICK_S: Final = 0.25
_HOST_AT: Final = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Where a host is in a struct sockaddr, and its octets."""
_AT: Final = VNET - HEADER.size
"""The VXLAN header is received into the octets that become the virtio_net_hdr, at their end."""


class EvpnLink(Device):
    """A VTEP. table: the stations; the owner of the link tells it of own ones.

    The link is up while stations are known: from the first connection to gobgpd until it was silent for
    hold_s. Frames for a station of which nothing is known go to all VTEPs, as do those for all.
    """

    def __init__(self, spec: EvpnSpec) -> None:
        super().__init__(spec.text)
        self._spec = spec
        self._own = ip_address(spec.network.vtep).packed
        self.table = EvpnTable(spec.network)
        self._client = GobgpClient(spec.text, spec.gobgp, spec.network, self.table, self.handle)
        self._sock: socket.socket | None = None
        self._batch, self._scratch = Batch(), Batch()
        self._inbox = Inbox(self._batch, _AT, HEADER.size + ETHERNET, named=True)
        self._names: dict[bytes, bytes] = {}
        self._mtus: dict[bytes, int] = {}
        self._outbox = Outbox(VNET, HEADER.pack(FLAG_I, spec.network.vni << 8), self._name(self._own))
        self._plain = Plain(self)
        self._was_connected = False
        self._sweep_at = 0.0
        self._reach: tuple[bytes, ...] = ()

    def connect(self) -> None:
        """Bind the port, and begin to connect to gobgpd. Raises DeviceError, PermissionNeededError."""
        with translated_errors(self.spec):
            self._sock = tunnel_socket(self._spec.family, self._spec.dev)
            self._sock.bind((self._spec.network.vtep, self._spec.port))
        self._measure()
        self.handle.watch(self._sock.fileno())
        self._client.advance(time.monotonic())
        self.handle.alarm(_TICK_S)

    # --- frames

    def read(self) -> Batch:
        """Receive up to a batch of frames of known VTEPs; do a part of the control plane's work."""
        assert self._sock is not None
        if self.handle.alarm_expired():
            self.handle.alarm(_TICK_S)
        self._control(time.monotonic())
        batch = self._batch
        try:
            bad = self._inbox.receive(self._sock.fileno())
        except OSError as e:
            log.debug("%s: %s", self.spec, e.strerror)
            return batch
        if batch:
            self._sort_out(bad)
        return self.received(batch)

    def _sort_out(self, bad: dict[int, Drop]) -> None:
        """Keep the frames of this network and of known VTEPs."""
        batch, names, vni = self._batch, self._inbox.names, self._spec.network.vni
        start, octets = _HOST_AT[self._spec.family]
        for i, frame in enumerate(batch):
            if i in bad:
                continue
            flags, told = HEADER.unpack_from(frame, _AT)
            host = NAME_SIZE * i + start
            vtep = bytes(names[host : host + octets])
            if not flags & FLAG_I or told >> 8 != vni or not self.table.knows(vtep):
                bad[i] = Drop.FOREIGN
        batch.make_plain()
        drop_frames(self, batch, bad)

    def write(self, batch: Batch) -> int:
        """Send a batch as plain frames in VXLAN, each to the VTEP of its destination."""
        return sum(self._send(plain) for plain in self._plain(batch))

    def _send(self, batch: Batch) -> int:
        if self._sock is None or not self.up:
            return self.refused(batch, Drop.LINK_DOWN)
        find = self.table.find
        groups: dict[bytes | None, list[int]] = {}
        for i, frame in enumerate(batch):
            groups.setdefault(find(bytes(frame[VNET : VNET + 6])), []).append(i)
        for vtep, indices in groups.items():
            part = batch if len(indices) == batch.count else self._scratch.pick(batch, indices)
            for each in self.table.flood if vtep is None else (vtep,):
                self._outbox.aim(self._name(each))
                self._outbox.send(self, self._sock.fileno(), part)
        return batch.count

    def _name(self, vtep: bytes) -> bytes:
        name = self._names.get(vtep)
        if name is None:
            name = self._names[vtep] = sockaddr(self._spec.family, self._spec.place_of(vtep))
        return name

    def went_down(self, why: object) -> None:
        """A VTEP that there is no route to is no reason for the link to go down: nothing is done."""

    # --- the control plane

    def _control(self, now: float) -> None:
        client = self._client
        client.advance(now)
        if client.is_up != self._was_connected:
            self._was_connected = client.is_up
            self._sweep_at = now + self._spec.hold_s
            if not client.is_up:
                log.warning("%s: its stations are kept for %g s", self.spec, self._spec.hold_s)
            elif not self.up:
                self.went_up()
                self.handle.alarm(_TICK_S)
        if self._sweep_at and now >= self._sweep_at:
            self._sweep_at = 0.0
            self.table.sweep(everything=not client.is_up)
            if not client.is_up:
                self._lose()
        if self.table.flood != self._reach:
            self._measure()

    def _lose(self) -> None:
        if self.up:
            self.up = False
            self.losses += 1
            log.warning("%s: down: gobgpd %s; no station is known any more", self.spec, self._client.why)

    def _measure(self) -> None:
        """Derive the MTU from the routes to the VTEPs: the least one holds for all."""
        self._reach = self.table.flood
        known = self._mtus
        self._mtus = {vtep: known.get(vtep) or self._mtu_to(vtep) for vtep in self._reach}
        self.mtu = min(self._mtus.values(), default=self._mtu_to(self._own))
        self._names.clear()

    def _mtu_to(self, vtep: bytes) -> int:
        return path_mtu(self._spec.family, self._spec.place_of(vtep))

    @property
    def is_controlled(self) -> bool:
        """Whether gobgpd tells its routes now."""
        return self._client.is_up

    def vtep_of(self, mac: bytes) -> str:
        """Return the address of the VTEP of a MAC; "": not known."""
        vtep = self.table.find(mac)
        return "" if vtep is None else str(ip_address(vtep))

    def status(self) -> dict[str, object]:
        """Return the link's part of --json."""
        why = self._client.why
        if why and self.up:
            left_s = max(0.0, self._sweep_at - time.monotonic())
            why = f"gobgpd {why}; its stations are kept for {left_s:.0f} s"
        elif why:
            why = f"gobgpd {why}"
        evpn = {"connected": self.is_controlled, "malformed": self._client.malformed, **self.table.counts()}
        return {**super().status(), "why": why, "evpn": evpn}

    def close(self) -> None:
        """Withdraw own stations, and close the sockets. Idempotent."""
        self._client.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        super().close()
