"""Builds vtl-freeze: its links, its state file and its stage, beside an interface or on another link."""

import time
from collections.abc import Callable
from pathlib import Path

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.interface_sides import NetworkSide, VMSide
from vtl_tools.common.device.ring import Ring
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.host.guard import MARK
from vtl_tools.common.runtime.control import path_for
from vtl_tools.common.runtime.snapshot import Snapshot
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.qmp import Monitor
from vtl_tools.services.freeze.stage import Freeze
from vtl_tools.services.freeze.state import OCTETS_MAX, dump


def is_overlay(iface: str) -> bool:
    """Return whether a link is no interface: it leads to a network on which the service answers by itself."""
    return ":" in iface


def make_links(iface: str, uplink: str | None) -> list[Device]:
    """Return the links of the stage, not open yet: both sides of an interface, or the one link, or two."""
    if is_overlay(iface):
        return [open_device(spec, mark=MARK) for spec in (iface, uplink) if spec is not None]
    return [VMSide(iface, mark=MARK), NetworkSide(iface, mark=MARK)]


def listen_switch(links: list[Device]) -> Callable[[bool], None]:
    """Return a function that has both sides of an interface receive frames, or not."""

    def listen(wanted: bool) -> None:
        for link in links:
            if isinstance(link, VMSide | NetworkSide):
                link.listen(wanted)

    return listen


def make_stage(
    iface: str,
    uplink: str | None,
    vm: str,
    mac: bytes | None,
    qmp: str | None,
    state: Path | None,
    listen: Callable[[bool], None],
) -> Freeze:
    """Return a stage that goes on from its state file. Raises VTLError if that cannot be read or written.

    state: None: the file beside the control socket.
    """
    freezer = Freezer(any_mac=mac is None)
    ring = None if is_overlay(iface) else Ring(iface, freezer.overhear)
    path = state or path_for("vtl-freeze", iface).with_suffix(".state")
    if state is None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    snapshot = Snapshot(path, lambda now: dump(freezer, stage.vm, now), OCTETS_MAX)
    overlay, passes = is_overlay(iface) and uplink is None, uplink is not None
    stage = Freeze(freezer, vm, mac=mac, listen=listen, snapshot=snapshot, overlay=overlay, passes=passes)
    if (text := snapshot.read()) is not None:
        stage.import_state(text, str(path), time.monotonic())
    snapshot.save(time.monotonic())  # a file that cannot be written is an error before the VM is away
    if ring is not None:
        stage.listen_on(ring)
    if qmp is not None:
        stage.follow(Monitor(qmp, stage.qemu.on_event))
    return stage
