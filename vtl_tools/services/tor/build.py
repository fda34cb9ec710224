"""Builds the stage of vtl-tor from its options: starts or checks the proxy, and opens the files."""

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

from vtl_tools.common.device.recording import Recording
from vtl_tools.common.host.open_files import raise_limit
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.runtime.control import path_for
from vtl_tools.common.runtime.runner import Options
from vtl_tools.services.tor.name_store import open_store
from vtl_tools.services.tor.process import TorProcess
from vtl_tools.services.tor.progress import BootstrapProgress
from vtl_tools.services.tor.proxy_check import (
    CHECK_USER,
    Proxy,
    exit_address,
    find_proxy,
    show_exit_address_later,
)
from vtl_tools.services.tor.stage import Tor


def make_stage(
    iface: str,
    options: Options,
    show_exit: Callable[[dict[str, object]], object],
    *,
    socks: Proxy,
    start_tor: bool,
    torrc: Path | None,
    isolate: str,
    dns: str,
    dhcp: bool,
    subnet: IPv4Network | None,
    connections: int,
    memory: int,
    idle: int,
    pcap_dropped: Path | None,
    state: Path | None,
    check: bool,
    url: str | None,
) -> Tor:
    """Return the stage; see vtl-tor(1) for the options. show_exit: gets the address that `url` sees.

    It may wait for the proxy. Raises VTLError.
    """
    process: TorProcess | None = None
    proxy: Proxy
    if start_tor:
        process = TorProcess("" if torrc is None else torrc.read_text(errors="replace"))
        proxy, is_tor = process.socks, True
    else:
        user = None if isolate == "none" else CHECK_USER
        proxy, is_tor = find_proxy(socks, user, check=check)
        if url is not None:
            show_exit(exit_address(proxy, url, user))
    store = None
    if dns == "map":
        store = open_store(state, options.control or path_for("vtl-tor", iface))
    dropped = None
    if pcap_dropped is not None:
        dropped = Recording("--pcap-dropped", pcap_dropped, [iface], options.captures.of_guest())
    stage = Tor(
        proxy,
        pipelined=is_tor,
        onions=is_tor or not check,
        isolate=isolate,
        dns=dns,
        dhcp=dhcp,
        subnet=subnet,
        limits=RelayLimits(
            connections=min(connections, raise_limit()),
            memory=memory << 19,  # RelayLimits.most is twice that
            idle_s=idle,
        ),
        process=process,
        store=store,
        on_drop=None if dropped is None else dropped.keep,
    )
    if process is not None:
        ask = None if url is None else partial(show_exit_address_later, process.door, url, show_exit)
        process.on_progress = BootstrapProgress(stage, quiet=options.watch, on_ready=ask)
    return stage
