"""Whatever frames a guest sends, vtl-split goes on; what the guest gets is sound, and tables are bounded."""

import socket
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.capture import quiet_scapy
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC, GuestAddresses
from vtl_tools.common.packet import build, vnet
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.socks import Reason
from vtl_tools.services.split import mappings
from vtl_tools.services.split.destinations import Destinations, SocketAddress
from vtl_tools.services.split.stage import SplitBySockets
from vtl_tools.services.split.tuning import Tuning

FRAMES = 8000
MACS = {"src_mac": bytes.fromhex("525400000001"), "dst_mac": GATEWAY_MAC}


class Own(set[bytes]):
    version = 0


class ToThisTest:
    """Leads every open destination to a socket of this test, and nothing anywhere else."""

    def __init__(self, port: int) -> None:
        self.inner = Destinations(GuestAddresses(), Own(), lambda _: ("127.0.0.1", 53))
        self.port = port

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def find(self, octets: bytes, port: int) -> SocketAddress | Reason:
        found = self.inner.find(octets, port)
        return found if isinstance(found, Reason) else ("127.0.0.1", self.port)

    def is_still(self, octets: bytes, port: int, address: SocketAddress) -> bool:
        return self.find(octets, port) == address


class Bench:
    def __init__(self) -> None:
        self.echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.echo.bind(("127.0.0.1", 0))
        destinations: Any = ToThisTest(self.echo.getsockname()[1])
        limits = RelayLimits(connections=50, half_open=20, open_s=5.0, idle_s=20.0, memory=1 << 20)
        tuning = Tuning(None, 1e9, 1 << 20)
        self.stage = SplitBySockets(
            destinations, tuning, network=GuestAddresses(), limits=limits, mappings=40
        )
        self.stage.out_pieces[0] = self._take
        self.sent: list[bytes] = []
        self.now = 1000.0

    def _take(self, frames) -> None:
        self.sent += [b"".join(pieces) for pieces in frames]

    def push(self, frames) -> None:
        batch = Batch(SLOTS)
        for frame in frames:
            batch.append(frame)
        self.stage.on_batch(0, batch, self.now)
        self.turn()
        for frame in batch:
            frame[:] = b"\xee" * len(frame)  # borrowed

    def turn(self, seconds: float = 0.0) -> None:
        self.now += seconds
        due = self.stage.deadline()
        if due is not None and due <= self.now:
            self.stage.wake(self.now)
        try:
            for _ in range(50):
                self.echo.sendto(*self.echo.recvfrom(70_000))
        except OSError:
            pass
        for source in self.stage.sources:
            source.poll(self.now)
        self.stage.settle(self.now)

    def close(self) -> None:
        self.stage.datagrams.table.close_all()
        for source in self.stage.sources:
            source.close()
        self.echo.close()


@pytest.fixture
def bench(monkeypatch) -> Iterator[Bench]:
    monkeypatch.setattr(mappings, "PEERS_MAX", 100)
    made = Bench()
    yield made
    made.close()


def corpus() -> list[bytes]:
    with quiet_scapy():
        from vtl_tools.common.selftest import host, traffic
    frames = [NONE + bytes(frame) for kind in traffic.KINDS for frame in kind.frames(host.MAC)]
    for version in 4, 6:
        src = ip("10.0.2.15" if version == 4 else "fd76:746c:0:1::15")
        dst = ip("198.51.100.7" if version == 4 else "2001:db8::7")
        ends = {**MACS, "src": src, "dst": dst}
        for number in range(60):
            ports = {"sport": 1000 + number, "dport": (53, 443, 9)[number % 3]}
            frames.append(bytes(build.udp(**ends, **ports, payload=bytes(number * 20))))
            frames.append(bytes(build.icmp_echo(**ends, identifier=number, sequence=1, payload=bytes(64))))
        large = build.udp(**ends, sport=7, dport=9, payload=bytes(5000), partial=True, gso_size=1000)
        frames += [bytes(large)] * 9
        tiny = build.udp(**ends, sport=9, dport=9, payload=bytes(60_000), partial=True, gso_size=1)
        frames.append(bytes(tiny))
        whole = build.udp(**ends, sport=8, dport=9, payload=bytes(3000), partial=True, gso_size=1400)
        whole[1] = vnet.GSO_UDP
        frames += [bytes(piece) for piece in segment(whole)]
    return frames


def damaged(rng: Random, frame: bytes) -> bytes:
    octets = bytearray(frame)
    for _ in range(rng.randrange(1, 5)):
        octets[rng.randrange(len(octets))] = rng.choice((0, 1, 6, 17, 255, rng.randrange(256)))
    if rng.random() < 0.1:
        del octets[rng.randrange(VNET + 14, len(octets) + 1) :]
    if rng.random() < 0.7:
        try:
            pkt = Packet.at(octets)
            pkt.compute_ip_checksum()
            pkt.compute_transport_checksum()
        except ValueError:
            pass
    return bytes(octets)


def test_any_frames_at_all(bench):
    rng, frames = Random(5), corpus()
    table = bench.stage.datagrams.table
    seen = 0
    for _ in range(0, FRAMES, SLOTS):
        burst = [
            rng.randbytes(rng.randrange(24, 200)) if rng.random() < 0.05
            else damaged(rng, rng.choice(frames)) if rng.random() < 0.6
            else rng.choice(frames)
            for _ in range(SLOTS)
        ]  # fmt: skip
        bench.push(burst)
        bench.turn(rng.choice((0.0, 0.01, 1.0, 30.0)))
        for frame in bench.sent:
            for piece in segment(bytearray(frame)):
                pkt = Packet.at(bytearray(piece))
                assert pkt.verify()
                assert pkt.end - pkt.l3_off <= 1500
        seen += len(bench.sent)
        bench.sent.clear()
        assert len(table) <= 40
        assert len(table._peers) <= 100
        peers = sum(len(mapping.keys) for each in (table._brief, table._lasting) for mapping in each.values())
        assert peers == len(table._peers)
    counts = bench.stage.datagrams.status()
    assert seen > 1000
    assert min(counts["datagrams_up"], counts["datagrams_down"], counts["errors"]) > 100
    assert bench.stage.relay.budget.opened > 150
    bench.turn(400.0)
    bench.turn(400.0)
    assert len(table) == 0
