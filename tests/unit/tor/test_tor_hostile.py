"""A hostile guest: whatever it sends, vtl-tor goes on, and what it costs has a bound."""

import errno
import gc
import os
import selectors
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from lab.wait import until
from tests.descriptors import descriptors
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.capture import quiet_scapy
from vtl_tools.common.device.recording import CaptureLimits, Recording
from vtl_tools.common.guest_net import guest_network as surroundings
from vtl_tools.common.host import scribe
from vtl_tools.common.packet import build
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.timers import STALE_MAX
from vtl_tools.services.tor import stage as tor
from vtl_tools.services.tor.selftest.proxy import RecordingProxy

FRAMES = 200_000
LIMITS = RelayLimits(connections=300, half_open=100, open_s=5.0, idle_s=20.0, memory=1 << 20)
GUEST_MAC, GATEWAY_MAC = bytes.fromhex("525400000001"), bytes.fromhex("0276746c0001")
GUEST, OUTSIDE = ip("10.0.2.15"), ip("203.0.113.80")
FIXED = 64
"""Descriptors, and entries of tables, that are there anyway."""


class Bench:
    """A stage with nothing around it but a proxy that says yes. sent: what the guest would have got."""

    def __init__(self, tmp_path, **options):
        self.selector = selectors.DefaultSelector()
        self.proxy = RecordingProxy(tmp_path / "socks", self.selector)
        self.stage = tor.Tor(str(self.proxy.path), limits=LIMITS, pipelined=True, **options)
        self.sent: list[bytes] = []
        self.stage.out_pieces[0] = self._take
        self.now = 1000.0

    def _take(self, frames):
        self.sent += [b"".join(pieces) for pieces in frames]

    def push(self, frames):
        """Frames without a vnet header come in at once."""
        batch = Batch(SLOTS)
        for frame in frames:
            batch.append(NONE + bytes(frame))
        self.stage.on_batch(0, batch, self.now)
        self.turn()

    def turn(self, seconds=0.0):
        self.now += seconds
        due = self.stage.deadline()
        if due is not None and due <= self.now:
            self.stage.wake(self.now)
        for source in self.stage.sources:
            source.poll(self.now)
        self.stage.settle(self.now)

    def answers(self):
        """What came by UDP since the last time."""
        found = [bytes(pkt.udp.payload) for pkt in map(Packet.at, map(bytearray, self.sent)) if pkt.udp]
        self.sent.clear()
        return found

    def serve(self):
        for key, _ in self.selector.select(0):
            key.data()
        self.proxy.asked.clear()

    def close(self):
        for source in self.stage.sources:
            source.close()
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


def made(tmp_path, dns) -> Iterator[Bench]:
    bench = Bench(tmp_path, dns=dns, dhcp=True, isolate="conn")
    yield bench
    bench.close()


@pytest.fixture
def bench(tmp_path):
    yield from made(tmp_path, "map")


@pytest.fixture(params=["map", "resolve"])
def either(request, tmp_path):
    yield from made(tmp_path, request.param)


def syn(sport: int, dst: bytes = OUTSIDE, dport: int = 80, src: bytes = GUEST) -> bytes:
    return bytes(
        build.tcp(
            src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC, src=src, dst=dst, sport=sport, dport=dport, seq=1,
            flags=SYN,
        )[VNET:]
    )  # fmt: skip


def query(name: str, number: int = 7, sport: int = 4000) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    message = number.to_bytes(2, "big") + bytes.fromhex("01000001000000000000") + labels + b"\0\0\1\0\1"
    return bytes(
        build.udp(
            src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC, src=GUEST, dst=ip("10.0.2.2"), sport=sport, dport=53,
            payload=message,
        )[VNET:]
    )  # fmt: skip


def corpus() -> list[bytes]:
    """What the leak test sends, and some more of what is answered."""
    with quiet_scapy():
        from vtl_tools.common.selftest import host, traffic
    frames = [bytes(frame) for kind in traffic.KINDS for frame in kind.frames(host.MAC)]
    frames += [syn(port, dport=dport) for port in range(50) for dport in (53, 80, 443)]
    frames += [query(f"name{number}.example.com", number) for number in range(50)]
    return frames


def damaged(rng: Random, octets: bytes) -> bytes:
    octets = bytearray(octets)
    for _ in range(rng.randrange(1, 6)):
        octets[rng.randrange(len(octets))] = rng.choice((0, 1, 6, 17, 255, rng.randrange(256)))
    if rng.random() < 0.1:
        del octets[rng.randrange(14, len(octets) + 1) :]
    return bytes(octets)


def summed(octets: bytes) -> bytes:
    """The same with sums that are right, so that it is looked into."""
    frame = bytearray(NONE + octets)
    try:
        pkt = Packet.at(frame)
        pkt.compute_ip_checksum()
        pkt.compute_transport_checksum()
    except ValueError:
        return octets
    return bytes(frame[VNET:])


def answered(rng: Random, frame: bytes) -> bytes:
    """What a guest might send to what it got: mostly the acknowledgement, with data or an end."""
    mine = bytearray(frame)
    try:
        pkt = Packet.at(mine)
        segment = pkt.tcp
        if segment is None:
            return frame[VNET:]
        pkt.swap()
        seq, ack, length = segment.seq, segment.ack, pkt.seg_len
        segment.seq, segment.ack = ack, (seq + length) % (1 << 32)
        segment.flags = rng.choice((ACK, ACK, ACK | 8, ACK | 1, RST))
        segment.window = rng.choice((0, 1, 1000, 65535))
        pkt.compute_transport_checksum()
    except ValueError:
        return frame[VNET:]
    return bytes(mine[VNET:])


@pytest.mark.slow
def test_any_frames_at_all_leave_no_trace(either):
    bench = either
    rng, frames, before = Random(7), corpus(), descriptors()
    stage = bench.stage
    for start in range(0, FRAMES // 2, SLOTS):
        burst = []
        for _ in range(SLOTS):
            chance = rng.random()
            if chance < 0.1:
                burst.append(rng.randbytes(rng.randrange(14, 200)))
            elif chance < 0.25 and bench.sent:
                burst.append(answered(rng, rng.choice(bench.sent)))
            else:
                mutant = damaged(rng, rng.choice(frames)) if chance < 0.85 else rng.choice(frames)
                burst.append(summed(mutant) if rng.random() < 0.7 else mutant)
        bench.sent = bench.sent[-500:]
        bench.push(burst)
        if start % 256 == 0:
            bench.serve()
        bench.turn(rng.choice((0.0, 0.001, 0.02, 0.5)))
        relay = stage.relay
        assert len(relay.flows) <= LIMITS.connections
        assert relay.budget.half_open <= LIMITS.half_open
        assert len(relay.timers) <= 2 * LIMITS.connections + STALE_MAX + 1
        assert relay.budget.buffered <= LIMITS.memory + 65536 * 4
    assert len(stage.drops) < FIXED
    assert len(stage.resolver.names) < 65_536
    assert len(stage.names._lookups) <= 1024
    assert stage.relay.budget.established > 0
    assert stage.names.queries > 0
    for _ in range(60):
        bench.turn(1.0)
        bench.serve()
    assert stage.relay.flows == {}
    assert stage.relay.budget.half_open == stage.relay.budget.buffered == 0
    assert len(stage.names._lookups) == 0
    bench.sent.clear()
    gc.collect()
    assert sum(isinstance(thing, RelayFlow) for thing in gc.get_objects()) <= FIXED
    assert descriptors() - before <= FIXED
    pins = [entry.pins for entry in stage.resolver.names._by_name.values()]
    assert sum(pins) == 0


@pytest.mark.slow
def test_flows_that_ended_are_not_kept_until_they_would_have_timed_out(bench):
    for number in range(4000):
        bench.push([syn(1 + number)])
        bench.serve()
        reset = bytearray(NONE + syn(1 + number))
        segment = Packet.at(reset).tcp
        segment.flags, segment.seq = RST, 2
        bench.push([reset[VNET:]])
        bench.turn(0.001)
    assert bench.stage.relay.budget.opened == 4000
    assert bench.stage.relay.flows == {}
    gc.collect()
    assert (
        sum(isinstance(thing, RelayFlow) for thing in gc.get_objects()) <= 2 * LIMITS.connections + STALE_MAX
    )


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOBUFS])
@pytest.mark.parametrize("either", ["resolve"], indirect=True)
def test_no_descriptor_left_is_an_answer_and_not_the_end(either, monkeypatch, code):
    bench = either

    def refuse(*_args, **_options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(socket, "socket", refuse)
    bench.push([syn(1), query("www.example.com")])
    assert bench.stage.drops["no-descriptor"] == 1
    (servfail,) = (pkt for pkt in map(Packet.at, map(bytearray, bench.sent)) if pkt.udp)
    assert servfail.udp.payload[3] & 15 == 2
    monkeypatch.undo()
    bench.now += 10
    bench.push([syn(2), query("www.example.com", 8)])
    for _ in range(5):
        bench.serve()
        bench.turn(0.01)
    assert len(bench.sent) > 1


def test_a_call_that_fails_for_want_of_a_descriptor_does_not_keep_its_name(bench, monkeypatch):
    bench.push([query("www.example.com")])
    address = bench.answers()[0][-4:]
    monkeypatch.setattr(socket, "socket", lambda *_: (_ for _ in ()).throw(OSError(errno.EMFILE, "")))
    bench.push([syn(1, address)])
    monkeypatch.undo()
    (entry,) = bench.stage.resolver.names._by_name.values()
    assert entry.pins == 0


def test_a_call_to_dns_at_a_names_address_does_not_free_the_name(bench):
    bench.push([query("www.example.com")])
    address = bench.answers()[0][-4:]
    bench.push([syn(1, address), syn(2, address, 53)])
    reset = bytearray(NONE + syn(2, address, 53))
    segment = Packet.at(reset).tcp
    segment.flags, segment.seq = RST, 2
    bench.push([reset[VNET:]])
    assert len(bench.stage.relay.flows) == 1
    (entry,) = bench.stage.resolver.names._by_name.values()
    assert entry.pins == 1


def test_reasons_for_drops_are_few_whatever_the_port(bench):
    ports = [bytes(build.udp(src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC, src=GUEST, dst=OUTSIDE, sport=1,
                             dport=port, payload=b"x")[VNET:]) for port in range(1, 65536, 97)]  # fmt: skip
    for start in range(0, len(ports), SLOTS):
        bench.push(ports[start : start + SLOTS])
    assert len(bench.stage.drops) <= len(surroundings.KINDS) + 2
    assert isinstance(bench.stage.drops, Counter)


def test_a_number_at_a_names_end_is_not_asked_for(either):
    """inet_aton(3) takes 127.0x1 for 127.0.0.1, and a proxy that is not Tor may ask it."""
    for name in "127.0x1", "1.2.3.4", "www.0x7f", "0x7f000001", "www.0x":
        either.sent.clear()
        either.push([query(name)])
        (answer,) = (pkt.udp for pkt in map(Packet.at, map(bytearray, either.sent)) if pkt.udp)
        assert answer.payload[3] & 15 == 3, name


def test_a_full_disk_ends_the_record_of_drops_and_nothing_else(tmp_path):
    kept = Recording("--pcap-dropped", Path("/dev/full"), ["vmnet1"], CaptureLimits())
    (writer,) = scribe.live()
    bench = Bench(tmp_path, on_drop=kept.keep)
    for _ in range(200):
        bench.push([bytes(1400)] * 8)
    told = until(writer.poll, "the writer")
    assert [(one["what"], one["why"]) for one in told] == [("stopped", "No space left on device")]
    assert kept.status()["recording"] is False
    assert sum(bench.stage.drops.values()) == 1600
    kept.close()
    bench.close()


def test_a_call_along_a_route_of_the_guests_choice_is_dropped(bench):
    frame = bytearray(syn(4000))
    frame[34:34] = bytes((1, 131, 7, 8)) + GUEST  # behind the IP header
    frame[14] += 2
    frame[17] += 8
    bench.push([frame])
    assert bench.stage.drops == {"source-route": 1}
    assert not bench.stage.relay.flows


def large(kind: str) -> bytearray:
    """A frame of 60 kB with as many parts as fit it."""
    where = {"src_mac": GUEST_MAC, "dst_mac": GATEWAY_MAC}
    if kind == "dhcp":
        head = bytes.fromhex("01010600") + bytes(24) + GUEST_MAC + bytes(202) + b"\x63\x82\x53\x63"
        payload = head + b"\x35\x01\x01" + b"\x0c\x01a" * 19_000
        return build.udp(**where, src=GUEST, dst=ip("10.0.2.2"), sport=68, dport=67, payload=payload)
    body = {135: bytes(4) + ip("fe80::2"), 133: bytes(4)}[int(kind)]
    return build.nd_message(
        **where, src=ip("fe80::1"), dst=ip("fe80::2"), kind=int(kind), body=body,
        options=(b"\x63\x01" + bytes(6)) * 7_500,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["dhcp", "133", "135"])
def test_the_loop_by_messages_of_64_kib_of_tiny_options(bench, kind):
    bench.push([large(kind)[VNET:]])
    assert bench.stage.drops["malformed"] == 1
