"""From a command's options to a service that runs: links, guards, and one process or several."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vtl_tools.common.errors import DeviceError, SpecError

if TYPE_CHECKING:
    from vtl_tools.common.device.base import Device
    from vtl_tools.common.device.recording import Recording
    from vtl_tools.common.host.interfaces import Interfaces
    from vtl_tools.common.runtime import control
    from vtl_tools.common.runtime.runner import Options


def check_links(specs: Sequence[str]) -> None:
    """Raise SpecError if a link is named twice."""
    for spec in specs:
        if specs.count(spec) > 1:
            raise SpecError(f"{spec}: given twice; a service needs different links")


def links_of(*specs: str) -> "Callable[[int], list[Device]]":
    """Return a function that makes links, for run_service(). Raises SpecError if a link is named twice."""
    check_links(specs)

    def make_links(_: int) -> "list[Device]":
        from vtl_tools.common.device.spec import open_device
        from vtl_tools.common.host.guard import MARK

        return [open_device(spec, mark=MARK) for spec in specs]

    return make_links


def interfaces_of(links: "Sequence[Device]", form: str, service: str, vm_sides: int | None) -> "Interfaces":
    """Return the links that are interfaces of this host, to be locked and guarded.

    vm_sides: number of links, from the first, that lead to a VM; None: all. The others are uplinks.
    """
    from vtl_tools.common.host.interfaces import Interfaces, Side
    from vtl_tools.common.host.lock import BOTH, FROM, TO

    forms: dict[str, Any] = {"off": None, "process": "process", "keep": "kept"}
    sides = []
    for port, link in enumerate(links):
        is_vm = vm_sides is None or port < vm_sides
        directions = (TO,) if link.silent else (FROM,) if link.unwritten else BOTH
        if link.interface:
            sides.append(Side(link.interface, directions if is_vm else None))
    attended = any(os.isatty(fd) for fd in (0, 1, 2))
    sure = links[0].interface if links else ""
    return Interfaces(service, forms[form], sides, sure, attended=attended)


def run_service(
    make_stage: Callable[[], Any],
    make_links: "Callable[[int], list[Device]]",
    options: "Options",
    *,
    guard: str,
    vm_sides: int | None = None,
    watches: bool = False,
    workers: int = 1,
    shares_uplinks: bool = True,
    vm_mac: bytes | None = None,
    verbs: "Callable[[Any], dict[str, control.Verb]] | None" = None,
) -> None:
    """Run a service until it ends, and exit.

    make_stage: called when the guards are in force; it may wait and raise VTLError. make_links: returns links
    that are not open yet, for a fanout number (0: one process receives all flows). vm_sides: see
    interfaces_of(). watches: the service is a watcher and not inline, so it takes no lock. shares_uplinks:
    leave frames for an uplink's own Ethernet address to the host, unless it is vm_mac, the VM's. verbs:
    returns the verbs of the stage beside `status`, by name.
    """
    from vtl_tools.common.host import privilege
    from vtl_tools.common.runtime.runner import Runner

    privilege.account(options.user)  # a user that does not exist is an error before anything is changed
    if options.watch:
        from vtl_tools.common.runtime.watch import require_terminal

        require_terminal(sys.stderr, f"leave it out, and use '{options.service} status --watch'")
    producers = 1 if workers == 1 else 1 + workers
    _log_as_service(options, producers)

    def make_own_links(fanout: int) -> "list[Device]":
        links = make_links(fanout)
        for link in links[len(links) if vm_sides is None else vm_sides :]:
            link.shared, link.vm_mac = shares_uplinks, vm_mac or b""
        return links

    links = make_own_links(0)
    with interfaces_of(() if watches else links, guard, options.service, vm_sides) as interfaces:
        recording = _recording(links, options, producers)
        if workers == 1:
            stage = make_stage()
            own_verbs = {} if verbs is None else verbs(stage)
            runner = Runner(stage, links, options, interfaces, own_verbs, recording=recording)
            sys.exit(runner.run())
        from vtl_tools.common.runtime.workers import Workers

        def make(number: int) -> Runner:
            own = options._replace(watch=False, json=False, metrics=None)
            return Runner(make_stage(), make_own_links(group.fanout), own, recording=recording)

        group = Workers(workers, make, options, interfaces, links[0].spec)
        sys.exit(group.run())


def _log_as_service(options: "Options", producers: int) -> None:
    from vtl_tools.common.host import log_lines

    try:
        log_lines.serve(producers, log_file=options.log, prints_events=options.json)
    except OSError as e:
        raise DeviceError(f"--log: {options.log}: {e.strerror}; name a file that can be written") from None


def _recording(links: "Sequence[Device]", options: "Options", producers: int) -> "Recording | None":
    """Return what records the frames of the links, if --pcap is given. Raises DeviceError."""
    if options.pcap is None:
        return None
    from vtl_tools.common.device.recording import Recording

    return Recording("--pcap", options.pcap, [link.spec for link in links], options.captures, producers)
