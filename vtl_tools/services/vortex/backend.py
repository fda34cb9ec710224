"""vortex-backend: the far end of the wormholes of many clients, in front of real honeypots.

A client sends what is for its host to the address that every backend has. Here this address becomes one that
stands for that client alone, and the ports stay. So a honeypot, which takes connections to all addresses of
the clients' network, sees the attacker's true address and port, and by its own address who lent the port.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import derive, nd, offload, tcp, vnet
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.stage import Stage
from vtl_tools.services.vortex.backend_link import GATEWAY_MAC, BackendLink
from vtl_tools.services.vortex.translate import flow_key, quoted, to_backend, to_outside
from vtl_tools.services.vortex.wormhole_client import WormholeClient, is_of_clients

HONEYPOTS: Final = 0
BACKEND_MAC: Final = bytes.fromhex("02766f727462")
"""The Ethernet address that every client knows the backend by."""
_LOOK_EVERY_S: Final = 1.0
_IN, _OUT = 0, 1


class Wormholes(Protocol):
    """The connections of the clients. refused: those that ended before they proved a key."""

    refused: int

    def serve(self, clients: Iterable[WormholeClient]) -> None:
        """Take connections of these clients, and end those of all others."""
        ...

    def send(self, client: WormholeClient, frames: Sequence[memoryview]) -> int:
        """Send frames to a client. Return for how many there was room."""
        ...

    def deadline(self) -> float:
        """Return when wake() is due."""
        ...

    def wake(self, now: float) -> None:
        """Do the work that is due. An early call is harmless."""
        ...


class VortexBackend(Stage):
    """Port 0 leads to the honeypots. here: the backend's addresses as clients know it, by their size."""

    inline = False

    def __init__(
        self,
        link: BackendLink,
        here: dict[int, bytes],
        clients: Iterable[WormholeClient],
        wormholes: Wormholes,
    ) -> None:
        super().__init__(ports=1)
        self.link, self.here, self.wormholes = link, here, wormholes
        self.clients: dict[str, WormholeClient] = {}
        self._by_address: dict[bytes, WormholeClient] = {}
        self._picked = Batch()
        self._due = 0.0
        self.read_keys: Callable[[], object] = lambda: None
        """Begins to read the clients' keys again, of which serve() is told."""
        self.serve(clients)

    def serve(self, clients: Iterable[WormholeClient]) -> None:
        """Serve these clients from now on. One that was there with its number and key stays connected."""
        before, self.clients = self.clients, {}
        for client in clients:
            old = before.get(client.name)
            self.clients[client.name] = old if old is not None and old.is_same(client) else client
        self._by_address = {
            octets: client for client in self.clients.values() for octets in client.addresses.values()
        }
        self.wormholes.serve(self.clients.values())

    # --- from clients

    def on_connected(self, client: WormholeClient, remote: str, why: str) -> None:
        """Note that a client is connected from an address; "": it is not any more."""
        client.remote = remote
        self.event(
            "client",
            name=client.name,
            up=bool(remote),
            remote=remote,
            why=why,
            cause=(client.name, bool(remote)),
        )

    def on_frames(self, client: WormholeClient, batch: Batch, now: float) -> None:
        """Send frames of a client to the honeypots."""
        if self.record is not None:
            self.record(client.name, batch, INBOUND)
        kept = []
        for i, frame in enumerate(batch):
            try:
                if not offload.is_plain(frame):
                    offload.bind(frame)
                reason = self._inward(client, Packet.at(frame), now)
            except Malformed:
                reason = "malformed"
            if not reason:
                kept.append(i)
            elif reason != "done":
                client.drops[reason] += 1
        if kept:
            self.out[HONEYPOTS](self._picked.pick(batch, kept), now)

    def _inward(self, client: WormholeClient, pkt: Packet, now: float) -> str:
        """Rewrite a frame for the honeypots. Return why it is not sent; "" if it is."""
        if pkt.ethertype != pkt.eth.type:
            return "other"
        if (answer := self._answer(pkt)) is not None:
            self._send(client, [memoryview(answer)])
            return "done"
        net = pkt.ip
        if net is None or pkt.nd is not None or net.is_routed:
            return "other"
        if net.dst != self.here[len(net.dst)]:
            return "not-for-backend"
        if not is_single_host(net.src) or self._is_own(net.src):
            return "source"
        octets = len(pkt.buf) - vnet.VNET
        if not client.allowances[_IN].take(octets, now):
            return "rate"
        if not net.is_later_fragment and (reason := self._note(client, pkt, octets, now)):
            return reason
        client.frames_in += 1
        client.octets_in += octets
        to_backend(pkt, client.addresses[len(net.dst)])
        pkt.eth.src = GATEWAY_MAC
        if self.link.mac:
            pkt.eth.dst = self.link.mac
            return ""
        return "done" if self.link.wait(bytes(pkt.buf)) else "honeypot-unknown"

    def _note(self, client: WormholeClient, pkt: Packet, octets: int, now: float) -> str:
        """Account a packet to its flow. Return why there is none."""
        key, net = flow_key(pkt, from_outside=True), pkt.ip
        if key is None or net is None:
            return "other"
        flow = client.flows.get(key)
        if flow is None:
            if quoted(pkt) is not None:
                return "no-flow"
            flow = client.flows.open(key, client.addresses[len(net.dst)], b"", b"", now)
            if flow is None:
                return "flows-of-source"
            told = flow.told(now)
            self.event(
                "attack", client=client.name, protocol=told["protocol"], source=told["from"],
                port=told["to_port"], cause=(client.name, net.src),
            )  # fmt: skip
        client.flows.touch(flow, now)
        flow.frames_in += 1
        flow.octets_in += octets
        return ""

    def _is_own(self, octets: bytes) -> bool:
        """Return whether an address is the honeypot's, or stands for a client: no attacker has it."""
        return octets in (self.link.addresses[len(octets)], self.here[len(octets)]) or is_of_clients(octets)

    def _answer(self, pkt: Packet) -> bytearray | None:
        """Return the answer to a client's question for the backend's Ethernet address."""
        if (asked := pkt.arp) is not None:
            return derive.arp_reply(pkt, BACKEND_MAC) if asked.tpa == self.here[4] else None
        solicited = pkt.nd
        if isinstance(solicited, nd.NeighborSolicit) and solicited.target == self.here[16]:
            return derive.nd_reply(pkt, BACKEND_MAC)
        return None

    # --- from honeypots

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Send answers of the honeypots to the clients whose addresses they have."""
        ready: dict[str, list[memoryview]] = defaultdict(list)
        for frame in batch:
            try:
                if not offload.is_plain(frame):
                    offload.bind(frame)
                found = self._outward(Packet.at(frame), now)
            except Malformed:
                found = "malformed"
            if isinstance(found, WormholeClient):
                ready[found.name].append(frame)
            elif found != "done":
                self.drops[found] += 1
        for name, frames in ready.items():
            client = self.clients[name]
            if lost := len(frames) - self._send(client, frames):
                client.drops["queue-full" if client.remote else "not-connected"] += lost

    def on_hang_up(self, now: float) -> None:
        """Begin to read the clients' keys again."""
        self.read_keys()

    def _send(self, client: WormholeClient, frames: Sequence[memoryview]) -> int:
        if self.record is not None:
            self.record(client.name, frames, OUTBOUND)
        return self.wormholes.send(client, frames)

    def _outward(self, pkt: Packet, now: float) -> WormholeClient | str:
        """Rewrite an answer of a honeypot. Return the client to send it by, or why it is not sent."""
        if pkt.ethertype != pkt.eth.type:
            return "other"
        if (mac := self.link.speaker(pkt)) and (waiting := self.link.learn(mac)):
            self.send(HONEYPOTS, waiting, now)
        if (answer := self.link.answer(pkt)) is not None:
            self.send(HONEYPOTS, [(bytes(answer),)], now)
            return "done"
        net = pkt.ip
        if net is None or pkt.nd is not None or net.is_routed:
            return "other"
        client = self._by_address.get(net.src)
        if client is None:
            return "not-an-answer"
        octets = len(pkt.buf) - vnet.VNET
        if net.is_later_fragment:
            if not client.flows.has_source(net.dst):
                return "no-flow"
        elif reason := self._may_answer(client, pkt, octets):
            return reason
        if not client.allowances[_OUT].take(octets, now):
            return "rate"
        client.frames_out += 1
        client.octets_out += octets
        to_outside(pkt, self.here[len(net.src)])
        pkt.eth.src, pkt.eth.dst = BACKEND_MAC, GATEWAY_MAC
        return client

    def _may_answer(self, client: WormholeClient, pkt: Packet, octets: int) -> str:
        """Account an answer to its flow. Return why it is none."""
        key, segment = flow_key(pkt, from_outside=False), pkt.tcp
        if key is None:
            return "not-an-answer"
        if segment is not None and segment.flags & (tcp.SYN | tcp.ACK) == tcp.SYN:
            return "opens-flow"
        flow = client.flows.get(key)
        if flow is None:
            return "no-flow"
        flow.frames_out += 1
        flow.octets_out += octets
        return ""

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        return min(self._due, self.wormholes.deadline())

    def wake(self, now: float) -> None:
        """Look for the honeypot, end old flows, and keep the clients' connections alive."""
        self.wormholes.wake(now)
        if now < self._due:
            return
        self._due = now + _LOOK_EVERY_S
        for client in self.clients.values():
            client.flows.expire(now)
        if asks := self.link.questions(now):
            self.send(HONEYPOTS, asks, now)

    def status(self, now: float) -> dict[str, object]:
        """Return the honeypot and the clients."""
        return {
            "wormholes": {
                "honeypot": self.link.mac.hex(":"),
                "connected": sum(bool(client.remote) for client in self.clients.values()),
                "refused": self.wormholes.refused,
                "clients": {name: client.status() for name, client in self.clients.items()},
            }
        }

    def told(self, now: float) -> Iterator[dict[str, object]]:
        """Yield the flows of all clients, for the verb `log`."""
        for client in self.clients.values():
            for flow in client.flows.told(now):
                del flow["proven"]
                yield {"client": client.name, **flow}
