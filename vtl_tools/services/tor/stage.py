"""The stage of vtl-tor: relays TCP connections through a SOCKS proxy, and answers DNS queries."""

import os
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dns import Mode, Resolver
from vtl_tools.common.guest_net.guest_network import GuestNetwork
from vtl_tools.common.guest_net.lookups import Lookup
from vtl_tools.common.host.broker import UnixTarget
from vtl_tools.common.packet import address
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.connector import Connector, SocksConnector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.tor.isolation import Isolation, IsolationMode
from vtl_tools.services.tor.name_server import NameServer
from vtl_tools.services.tor.name_store import NameStore
from vtl_tools.services.tor.process import TorProcess


class Tor(Stage):
    """One port, the guest. Terminates every TCP connection of the guest, and has Tor resolve its names.

    proxy: (host, port) or a unix socket's path. onions: assume that the proxy is Tor. process: the tor that
    the service started, if any. store: the file of the name map, if there is one. on_drop: gets each frame
    that is dropped, borrowed.
    """

    def __init__(
        self,
        proxy: tuple[str, int] | str,
        *,
        pipelined: bool = False,
        onions: bool = True,
        isolate: str = "guest",
        dns: str = "map",
        dhcp: bool = False,
        subnet: IPv4Network | None = None,
        limits: RelayLimits = DEFAULT_LIMITS,
        process: TorProcess | None = None,
        store: NameStore | None = None,
        on_drop: Callable[[memoryview, float], object] | None = None,
    ) -> None:
        super().__init__(ports=1)
        self.proxy, self.process, self._pipelined, self._store = proxy, process, pipelined, store
        self._target: tuple[str, int] | str | UnixTarget = proxy
        if process is not None:
            self._target = process.door
        elif isinstance(proxy, str):
            self._target = UnixTarget(proxy)
        self.isolation = Isolation(IsolationMode(isolate))
        if store is None:
            self.resolver = Resolver(Mode(dns), onions=onions, key=os.urandom(32))
        else:
            self.resolver = Resolver(Mode(dns), onions=onions, key=store.secret, keep=store.put)
            self.resolver.names.restore(store.names, time.monotonic())
        poller = Poller()
        self.names = NameServer(self.resolver, poller, self._connect_for_lookup, self._send_frame)
        self.relay = Relay(
            self._connect,
            os.urandom(32),
            limits=limits,
            send=partial(self.send, 0),
            drops=self.drops,
            on_drop=on_drop,
            on_non_tcp=self._on_non_tcp,
            on_end=self._on_end,
            poller=poller,
            has_more=lambda: self.names.has_more,
        )
        self.guest_network = GuestNetwork(
            GuestAddresses.of_subnet(subnet),
            dhcp=dhcp,
            on_dns=self.names.on_datagram,
            send=self._send_frame,
            drop=self.relay.drop_frame,
        )
        self.sources = [self.relay] if process is None else [self.relay, process]

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that the link carries, and tell the guest its MTU."""
        self.relay.on_mtu(port, octets)
        self.guest_network.on_mtu(octets)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames."""
        self.relay.on_batch(port, batch, now)

    def _on_non_tcp(self, frame: memoryview, now: float) -> None:
        self.guest_network.on_frame(frame, now)

    def _send_frame(self, frame: bytes | bytearray, now: float) -> None:
        self.send(0, [(bytes(frame),)], now)

    # --- connections

    def _connect(self, path: Path) -> Connector | Reason:
        """Return the connector for a path: by name, if the address stands for one."""
        if path.local_port == self.names.port:
            return self.names.connector(path.remote)
        names = self.resolver.names
        if address.is_internal(path.local) and not names.owns(path.local):
            return Reason.PROHIBITED  # Tor would refuse; another proxy might reach this host, or its network
        name = names.name_of(path.local)
        if name is None and names.owns(path.local):
            return Reason.HOST_UNREACHABLE  # the name map has forgotten the name; the guest should ask again
        credentials = self.isolation.credentials(path.remote_mac, path.local, path.local_port)
        connector = SocksConnector(
            self._target, name or path.local, path.local_port, credentials, pipelined=self._pipelined
        )
        names.pin(path.local)  # last: on_end unpins it only if a connector was returned
        return connector

    def _on_end(self, flow: RelayFlow, now: float) -> None:
        path = flow.endpoint.path
        if path.local_port != self.names.port:
            self.resolver.names.unpin(path.local, now)

    def _connect_for_lookup(self, lookup: Lookup) -> SocksConnector:
        credentials = self.isolation.credentials(b"dns", str(lookup.target).encode(), self.names.port)
        return SocksConnector(
            self._target, lookup.target, 0, credentials, lookup.command, pipelined=self._pipelined
        )

    def new_identity(self) -> int:
        """Use other circuits for connections from now on; return how often this was asked for."""
        self.resolver.forget()
        return self.isolation.renew()

    # --- time

    def settle(self, now: float) -> None:
        """Carry what can be carried."""
        self.relay.settle(now)
        if self.names.settle(now):
            self.relay.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = self.relay.deadline(), self.names.deadline(), self.guest_network.deadline()
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self.relay.wake(now)
        self.names.wake(now)
        self.guest_network.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset the guest's connections, and close the file of the name map."""
        self.relay.on_stop(now)
        if self._store is not None:
            self._store.close()

    # --- what --json prints

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each flow, with the name that the guest connected to, if any."""
        listed = self.relay.list_flows(now)
        for flow in listed:
            flow["name"] = self.resolver.name_of(address.ip(str(flow["to"])))
        return listed

    def status(self, now: float) -> dict[str, object]:
        """Return the proxy, the connections, the counters, and the names."""
        host = self.proxy if isinstance(self.proxy, str) else f"{self.proxy[0]}:{self.proxy[1]}"
        tor: dict[str, object] = {
            "socks": host,
            "isolate": str(self.isolation.mode),
            "identity": self.isolation.identity,
        }
        if self.process is not None:
            tor |= {"bootstrapped": self.process.percent, "restarts": self.process.restarts}
        names = {"queries": self.names.queries, "names": len(self.resolver.names)}
        carried = self.relay.status(now)
        return {"tor": tor, "connections": carried.pop("connections"), "carried": carried, "dns": names}
