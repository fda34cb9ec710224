"""vtl-tor: carry a guest's TCP connections and names through Tor, and nothing else. Paper section 3.1."""

import logging
import os
import resource
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.output import echo, print_json, print_table
from vtl_tools.common.cli.parameters import ProxyParam, SubnetParam
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_status, ask_each
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet import address
from vtl_tools.common.stage import Stage
from vtl_tools.common.text import printable

if TYPE_CHECKING:
    from ipaddress import IPv4Network

    from vtl_tools.common.guest_net.lookups import Lookup
    from vtl_tools.common.relay.connector import Connector, SocksConnector
    from vtl_tools.common.relay.flow import RelayFlow
    from vtl_tools.common.relay.relay import RelayLimits
    from vtl_tools.common.runtime.runner import Options
    from vtl_tools.common.socks import Reason
    from vtl_tools.common.tcp.wire import Path as TCPPath
    from vtl_tools.services.tor.name_store import NameStore
    from vtl_tools.services.tor.process import TorProcess

log = logging.getLogger(__name__)

DEFAULT_SOCKS: Final = "127.0.0.1:9050"
_OTHERS: Final = 2048
"""Descriptors for what is not a connection, above all look-ups, of which there may be 1024 at once."""


class Tor(Stage):
    """One port, the guest. Whoever it calls by TCP, we are; whatever it asks DNS, Tor resolves.

    proxy: (host, port) or a unix socket's path. onions: it is Tor, as far as is known. process: the tor that
    we started, if any. store: where what addresses stand for is kept, if anywhere.
    """

    def __init__(
        self,
        proxy: "tuple[str, int] | str",
        *,
        pipelined: bool = False,
        onions: bool = True,
        isolate: str = "guest",
        dns: str = "map",
        dhcp: bool = False,
        subnet: "IPv4Network | None" = None,
        limits: "RelayLimits | None" = None,
        process: "TorProcess | None" = None,
        store: "NameStore | None" = None,
    ) -> None:
        from vtl_tools.common.guest_net.addresses import GuestAddresses
        from vtl_tools.common.guest_net.dns import Mode, Resolver
        from vtl_tools.common.guest_net.guest_network import GuestNetwork
        from vtl_tools.common.host.broker import UnixTarget
        from vtl_tools.common.relay.relay import Relay, RelayLimits
        from vtl_tools.services.tor.isolation import Isolation, IsolationMode
        from vtl_tools.services.tor.name_server import NameServer

        super().__init__(ports=1)
        self.proxy, self.process, self._pipelined = proxy, process, pipelined
        self._way = UnixTarget(proxy) if isinstance(proxy, str) and process is None else proxy
        if process is not None:
            self._way = process.door
        self.isolation = Isolation(IsolationMode(isolate))
        network = GuestAddresses()
        if subnet is not None:
            first = subnet[1].packed
            network = GuestAddresses(subnet=subnet, gateway=first, dns=first)
        self.relay = Relay(self._call, os.urandom(32), limits=limits or RelayLimits())
        self.relay.drops = self.drops
        self.relay.on_end = self._on_end
        self.relay.out, self.relay.out_pieces = self.out, self.out_pieces
        self.sources = [*self.relay.sources, *([] if process is None else [process])]
        self._store = store
        if store is None:
            self.resolver = Resolver(Mode(dns), onions=onions, key=os.urandom(32))
        else:
            self.resolver = Resolver(Mode(dns), onions=onions, key=store.secret, keep=store.put)
            self.resolver.names.restore(store.names, time.monotonic())
        self.names = NameServer(self.resolver, self.relay.poller, self._ask, self._say)
        self.relay.has_more = lambda: self.names.has_more
        self.surroundings = GuestNetwork(network, self.names, dhcp=dhcp, say=self._say, lose=self.relay.lose)
        self.relay.other = self.surroundings.on_frame

    def on_mtu(self, port: int, octets: int) -> None:
        """Speak in packets that the link carries, and tell the guest so."""
        from vtl_tools.common.guest_net.addresses import MTU_MIN

        self.relay.config = replace(self.relay.config, mtu=max(octets, MTU_MIN))
        self.surroundings.on_mtu(octets)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames: TCP is the relay's, which hands on what is not."""
        self.relay.on_batch(port, batch, now)

    def _say(self, frame: bytes | bytearray, now: float) -> None:
        self.send(0, [(bytes(frame),)], now)

    # --- connections

    def _call(self, path: "TCPPath") -> "Connector | Reason":
        """Return how to reach whom the guest calls: by name where the address stands for one."""
        from vtl_tools.common.relay.connector import SocksConnector
        from vtl_tools.common.socks import Reason

        if path.local_port == self.names.port:
            return self.names.call(path.remote)
        if address.is_internal(path.local) and not self.resolver.names.owns(path.local):
            return Reason.PROHIBITED  # Tor would say no; another proxy might reach this host, or its network
        name = self.resolver.names.name_of(path.local)
        if name is None and self.resolver.names.owns(path.local):
            return Reason.HOST_UNREACHABLE  # it stood for a name once, and the guest should ask again
        credentials = self.isolation.credentials(path.remote_mac, path.local, path.local_port)
        call = SocksConnector(
            self._way, name or path.local, path.local_port, credentials, pipelined=self._pipelined
        )
        self.resolver.names.pin(path.local)  # last, since what is not made does not end
        return call

    def _on_end(self, flow: "RelayFlow", now: float) -> None:
        path = flow.endpoint.path
        if path.local_port != self.names.port:
            self.resolver.names.unpin(path.local, now)

    def _ask(self, lookup: "Lookup") -> "SocksConnector":
        from vtl_tools.common.relay.connector import SocksConnector

        credentials = self.isolation.credentials(b"dns", str(lookup.target).encode(), self.names.port)
        return SocksConnector(
            self._way, lookup.target, 0, credentials, lookup.command, pipelined=self._pipelined
        )

    def new_identity(self) -> int:
        """Have what is opened from now on use other circuits than before; return how often that was asked."""
        self.resolver.forget()
        return self.isolation.renew()

    # --- time

    def settle(self, now: float) -> None:
        """Move what can be moved."""
        self.relay.settle(now)
        if self.names.settle(now):
            self.relay.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = self.relay.deadline(), self.names.deadline(), self.surroundings.deadline()
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self.relay.wake(now)
        self.names.wake(now)
        self.surroundings.wake(now)

    def on_stop(self, now: float) -> None:
        """Give the file of names back."""
        if self._store is not None:
            self._store.close()

    def flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each connection, with the name that was called, if it was one."""
        listed = self.relay.list_flows(now)
        for flow in listed:
            flow["name"] = self.resolver.name_of(address.ip(str(flow["to"])))
        return listed

    def status(self, now: float) -> dict[str, object]:
        """Return what is carried, and by whom."""
        host = self.proxy if isinstance(self.proxy, str) else f"{self.proxy[0]}:{self.proxy[1]}"
        tor: dict[str, object] = {
            "socks": host,
            "isolate": str(self.isolation.apart),
            "identity": self.isolation.identity,
        }
        if self.process is not None:
            tor |= {"bootstrapped": self.process.percent, "restarts": self.process.restarts}
        names = {"queries": self.names.queries, "names": len(self.resolver.names)}
        carried = self.relay.status(now)
        return {"tor": tor, "connections": carried.pop("connections"), "carried": carried, "dns": names}


socks_option = click.option(
    "--socks",
    type=ProxyParam(),
    metavar="HOST:PORT",
    default=DEFAULT_SOCKS,
    show_default=True,
    help="Tor's SOCKS port, or unix:PATH.",
)


@click.group("vtl-tor", cls=Tool)
@opts.iface_option()
@socks_option
@click.option("--start-tor", is_flag=True, help="Start a tor of our own, in the place of --socks.")
@click.option(
    "--torrc",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="Further configuration for --start-tor.",
)
@click.option(
    "--isolate",
    type=click.Choice(["none", "guest", "dest", "port", "conn"]),
    default="guest",
    show_default=True,
    help="What may not share a circuit: nothing, guests, destinations, ports, or connections.",
)
@click.option(
    "--dns",
    type=click.Choice(["map", "resolve"]),
    default="map",
    show_default=True,
    help="Answer with an address that stands for the name, or with what Tor resolves it to.",
)
@click.option("--dhcp", is_flag=True, help="Hand out addresses, so that a guest needs no setting.")
@click.option("--subnet", type=SubnetParam(), metavar="NETWORK", help="For --dhcp.  [default: 10.0.2.0/24]")
@click.option(
    "--connections",
    type=click.IntRange(1, 1 << 20),
    default=65536,
    show_default=True,
    metavar="N",
    help="Connections of the guest at once.",
)
@click.option(
    "--memory",
    type=click.IntRange(1, 1 << 20),
    default=256,
    show_default=True,
    metavar="MIB",
    help="Memory for what waits for the slower side, of all connections together.",
)
@click.option(
    "--idle",
    type=click.IntRange(1),
    default=7440,
    show_default=True,
    metavar="SECONDS",
    help="Reset a connection that was silent for so long.",
)
@click.option(
    "--pcap-dropped",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keep the frames that are dropped (pcapng).",
)
@click.option(
    "--state",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where to keep what addresses stand for.  [default: beside the control socket]",
)
@click.option("--check/--no-check", default=True, help="See first that the proxy answers (default).")
@click.option("--url", metavar="URL", help="Ask a web service, too, what address it sees; see 'check'.")
@click.option(
    "--pipeline/--no-pipeline",
    default=None,
    help="Ask the proxy without waiting for its greeting.  [default: if it is found to be Tor]",
)
@opts.guard_option("keep")
@opts.common_options
def main(
    iface: str,
    socks: tuple[str, int] | str,
    start_tor: bool,
    torrc: Path | None,
    connections: int,
    memory: int,
    idle: int,
    pcap_dropped: Path | None,
    state: Path | None,
    check: bool,
    url: str | None,
    pipeline: bool | None,
    guard: str,
    options: "Options",
    **settings: Any,
) -> None:
    """Carry a guest's TCP connections and its names through Tor, and drop everything else.

    \b
    vtl-tor --iface vmnet1
    vtl-tor --iface tap:vtl0 --start-tor --dhcp
    """
    if not iface:
        raise click.UsageError("give --iface: the interface that the guest is behind")
    if torrc is not None and not start_tor:
        raise click.UsageError("--torrc configures the tor of --start-tor: give both")
    if start_tor and _is_given("socks"):
        raise click.UsageError("--start-tor takes the place of --socks: give one of them")
    if settings["subnet"] is not None and not settings["dhcp"]:
        raise click.UsageError("--subnet is what --dhcp leases from: give both")
    user = None if settings["isolate"] == "none" else "vtl-check"
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK

    connections = min(connections, _descriptors())

    def ask_proxy() -> tuple[tuple[str, int] | str, bool]:
        """Return the proxy, by address, and whether it is Tor."""
        from vtl_tools.services.tor.proxy_check import described, exit_address, probe, resolved

        proxy, is_tor = resolved(socks), False
        if check:
            is_tor = probe(proxy, user).is_tor
            if not is_tor:
                log.warning("%s: answers, and is not Tor: it sees where the guest goes", described(proxy))
        if url is not None:
            _show_exit(exit_address(proxy, url, user), json=options.json)
        return proxy, is_tor

    def make_stage() -> Tor:
        from vtl_tools.common.device.capped_capture import CappedCapture
        from vtl_tools.common.relay.relay import RelayLimits
        from vtl_tools.services.tor.process import TorProcess

        process = (
            TorProcess("" if torrc is None else torrc.read_text(errors="replace")) if start_tor else None
        )
        proxy, is_tor = ask_proxy() if process is None else (process.socks, True)
        store = None
        if settings["dns"] == "map":
            store = _name_store(state, options, iface)
        limits = RelayLimits(connections=connections, memory=memory << 19, idle_s=idle)  # at most twice that
        stage = Tor(
            proxy,
            limits=limits,
            process=process,
            store=store,
            pipelined=is_tor if pipeline is None else pipeline,
            onions=is_tor or not check,
            **settings,
        )
        if process is not None:
            process.on_progress = partial(_show_progress, stage, options, url)
        if pcap_dropped is not None:
            stage.relay.on_loss = CappedCapture("--pcap-dropped", pcap_dropped, iface)
        return stage

    run_service(
        make_stage,
        lambda _: [open_device(iface, mark=MARK)],
        options,
        guard=guard,
        verbs=lambda stage: {
            "newnym": lambda _: {"identity": stage.new_identity()},
            "flows": lambda _: {"flows": stage.flows(time.monotonic())},
        },
    )


def _name_store(state: Path | None, options: "Options", iface: str) -> "NameStore | None":
    """Return where to keep what addresses stand for: beside the control socket, if not told."""
    from vtl_tools.common.runtime.control import path_for
    from vtl_tools.services.tor.name_store import BusyError, NameStore

    path = state or (options.control or path_for("vtl-tor", iface)).with_suffix(".names")
    if state is None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(BusyError):  # whoever has it has the link, or the control socket, which is told of then
            return NameStore(path, "--control")
        return None
    return NameStore(path)


def _descriptors() -> int:
    """Raise the limit for descriptors as far as may be; return how many connections that allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return 1 << 20
    return max(most - _OTHERS, most // 2)


def _show_exit(seen: dict[str, object], *, json: bool) -> None:
    """Tell what address the world sees."""
    if json:
        print_json([{"event": "exit", "seen": seen}])
    else:
        echo(f"vtl-tor: the world sees {seen.get('IP', seen)}", err=True)


def _ask_for_exit(proxy: tuple[str, int] | str, url: str, *, json: bool) -> None:
    """Find out what address the world sees, beside the frames, since it takes a while."""
    from vtl_tools.services.tor.proxy_check import exit_address

    try:
        _show_exit(exit_address(proxy, url, "vtl-check"), json=json)
    except VTLError as e:
        log.warning("%s", e)


def _show_progress(stage: Tor, options: "Options", url: str | None, percent: int, what: str) -> None:
    """Tell how far tor is, and when it is ready, what the world sees."""
    if percent == 100 and url is not None:
        from threading import Thread

        proxy = stage.proxy if stage.process is None else stage.process.door
        ask = partial(_ask_for_exit, proxy, url, json=options.json)
        Thread(target=ask, daemon=True).start()
    stage.event("bootstrap", percent=percent, what=what)
    if log.isEnabledFor(logging.INFO):  # a line for each step, among the other lines
        log.info("tor: %d %%: %s", percent, what)
    elif sys.stderr.isatty() and not options.watch:  # whose table tells as well
        end = "\n" if percent == 100 else "\r"
        print(f"\x1b[Ktor: {percent:3d} % {printable(what, 60)}", end=end, file=sys.stderr, flush=True)


def _is_given(parameter: str) -> bool:
    source = click.get_current_context().get_parameter_source(parameter)
    return source is click.core.ParameterSource.COMMANDLINE


@main.command()
@opts.link_option
@opts.verbose_option
def newnym(link: str | None) -> None:
    """Carry connections that are opened from now on over other circuits."""
    for told in ask_each(main, "newnym", link):
        echo(f"identity {told['identity']}", err=True)


@main.command()
@opts.link_option
@opts.json_option
@opts.verbose_option
def flows(link: str | None, json: bool) -> None:
    """List the connections that are carried: from where to where, how far, and how much."""
    found = [flow for told in ask_each(main, "flows", link) for flow in told["flows"]]
    if json:
        print_json(found)
        return
    counts = ("age", "up", "down", "waiting")
    rows = (
        (
            f"{flow['from']} {flow['from_port']}", f"{flow['name'] or flow['to']} {flow['to_port']}",
            flow["stage"], flow["state"],
            f"{flow['age_s']:.0f} s", *(f"{flow[key]:,}" for key in ("octets_up", "octets_down", "held")),
        )
        for flow in found
    )  # fmt: skip
    print_table(("from", "to", "stage", "state", *counts), rows, right=counts)


@main.command()
@socks_option
@click.option("--url", metavar="URL", help="A web service that answers with the address it sees.")
@opts.json_option
@opts.verbose_option
def check(socks: tuple[str, int] | str, url: str | None, json: bool) -> None:
    """See whether the proxy answers, whether it is Tor, and what address the world sees."""
    from vtl_tools.services.tor.proxy_check import CHECK_URL, described, exit_address, probe, resolved

    socks = resolved(socks)
    report = probe(socks)
    result: dict[str, object] = {"socks": described(socks), "is_tor": report.is_tor}
    if not json:
        click.echo(f"{described(socks)}: {'is Tor' if report.is_tor else 'answers, and is not Tor'}")
    seen = exit_address(socks, url or CHECK_URL)
    if json:
        print_json([{**result, "seen": seen}])
    else:
        echo(f"the world sees {seen.get('IP', seen)}")
    if not report.is_tor:
        raise VTLError(f"{described(socks)}: not Tor: it sees where a guest goes; name Tor's SOCKS port")


@main.command()
@click.argument("options", nargs=-1, metavar="[-- OPTION...]")
@opts.json_option
@opts.verbose_option
def selftest(options: tuple[str, ...], json: bool) -> None:
    """Try every known way by which a guest gets out, in networks of its own, and tell what leaked.

    \b
    vtl-tor selftest
    vtl-tor selftest -- --dns resolve --isolate conn

    A service of the OPTIONs stands between a guest and a host that forwards everything, which are made for
    it and reach nobody. Needs root. The exit status is 1 if anything leaked.
    """
    if "--start-tor" in options:
        raise click.UsageError("selftest has a proxy of its own: leave --start-tor out")
    from vtl_tools.common.device.capture import quiet_scapy

    with quiet_scapy():
        from vtl_tools.common.selftest import report
        from vtl_tools.services.tor.selftest import run
    service = [
        sys.executable,
        "-P",
        "-c",
        "from vtl_tools.cmd.tor import main; main(prog_name='vtl-tor')",
        *options,
    ]
    results = run.run(service)
    held = report.print_json(results) if json else report.print_table(results)
    if not held:
        raise VTLError("selftest: not all was held back; what leaked is listed above")


add_status(main)
