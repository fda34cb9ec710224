"""Names that a hostile guest asks for in floods: each turn has its part, and the rest waits or is lost."""

import pytest

from tests.unit.tor.test_tor_hostile import GATEWAY_MAC, GUEST, GUEST_MAC, Bench, query, syn
from vtl_tools.common.packet import build
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, PSH
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.services.tor import name_server as names

RESOLVER = ip("10.0.2.2")
BURST = 64


@pytest.fixture
def bench(tmp_path):
    bench = Bench(tmp_path, dns="map")
    yield bench
    bench.close()


def message(name, number=7, questions=1):
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
    head = number.to_bytes(2, "big") + b"\1\0" + questions.to_bytes(2, "big") + bytes(6)
    return head + b"".join(labels + b"\0\1\0\1" for _ in range(questions))


def framed(*messages):
    return b"".join(len(each).to_bytes(2, "big") + each for each in messages)


class Caller:
    """A guest's connection to the name server."""

    def __init__(self, bench, sport):
        self.bench, self.sport, self.seq, self.ack = bench, sport, 2, 0
        bench.sent.clear()
        bench.push([syn(sport, RESOLVER, 53)])
        (answer,) = (pkt.tcp for pkt in map(Packet.at, map(bytearray, bench.sent)) if pkt.tcp)
        self.iss = answer.seq
        self.ack = 1
        bench.sent.clear()

    def frame(self, data=b"", flags=ACK | PSH, window=65535):
        octets = build.tcp(
            src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC, src=GUEST, dst=RESOLVER, sport=self.sport, dport=53,
            seq=self.seq, ack=(self.iss + self.ack) % 2**32, flags=flags, window=window, payload=data,
        )[VNET:]  # fmt: skip
        self.seq += len(data)
        return bytes(octets)

    def heard(self):
        """The octets that came since the last time, in order."""
        octets = b""
        for pkt in map(Packet.at, map(bytearray, self.bench.sent)):
            if pkt.tcp is not None and pkt.tcp.dport == self.sport:
                at = (pkt.tcp.seq - self.iss - self.ack) % 2**32
                if at == len(octets):
                    octets += bytes(pkt.tcp.payload)
        self.bench.sent.clear()
        self.ack += len(octets)
        return octets


def numbers(octets):
    """The identifiers of answers in a stream."""
    found = []
    while octets:
        size = int.from_bytes(octets[:2], "big")
        found.append(int.from_bytes(octets[2:4], "big"))
        octets = octets[2 + size :]
    return found


@pytest.fixture
def asked(bench, monkeypatch):
    """How many questions were looked at, for each time that the stage settled."""
    turns, ask, settle = [0], bench.stage.resolver.ask, bench.stage.settle

    def count(octets, *rest, **more):
        turns[-1] += 1 if octets[4:6] == b"\0\1" else int.from_bytes(octets[4:6], "big")
        return ask(octets, *rest, **more)

    def begin(now):
        turns.append(0)
        settle(now)

    monkeypatch.setattr(bench.stage.resolver, "ask", count)
    monkeypatch.setattr(bench.stage, "settle", begin)
    return turns


def test_the_loop_by_a_burst_of_queries_over_tcp(bench, asked):
    caller = Caller(bench, 4000)
    sent = 0
    for _ in range(8):
        burst = [message("www.example.com", sent + i) for i in range(30)]
        bench.push([caller.frame(framed(*burst))])
        sent += len(burst)
    got = []
    for _ in range(2000):
        bench.turn()
        got += numbers(caller.heard())
        bench.push([caller.frame(flags=ACK)])
        if len(got) == sent:
            break
    assert got == list(range(sent)), "all are answered, in order"
    assert max(asked) <= 16
    assert bench.stage.deadline() is None or bench.stage.deadline() > bench.now


def test_the_loop_by_queries_with_many_questions_each(bench, asked):
    caller = Caller(bench, 4000)
    bench.push([caller.frame(framed(*(message("a.example.com", i, 16) for i in range(4))))])
    got = []
    for _ in range(100):
        bench.turn()
        got += numbers(caller.heard())
        bench.push([caller.frame(flags=ACK)])
    assert got == [0, 1, 2, 3]
    assert max(asked) <= 24


def test_memory_by_queries_that_come_faster_than_they_are_answered(bench):
    """What is not looked at yet is the guest's to keep: it is not acknowledged."""
    caller = Caller(bench, 4000)
    burst = framed(*(message("www.example.com", i) for i in range(30)))
    (flow,) = bench.stage.relay.flows.values()
    for _ in range(3000):
        bench.stage.on_batch(0, batch(caller.frame(burst)), bench.now)
        bench.stage.relay.settle(bench.now)
    assert flow.endpoint.rcv.received <= flow.endpoint.config.receive_buffer + names._TAKEN_MAX
    assert sum(map(len, flow.stream.queries)) <= names._TAKEN_MAX
    assert bench.stage.relay.budget.buffered <= bench.stage.relay.limits.most


def batch(*frames):
    from vtl_tools.common.device.batch import Batch

    return Batch.of([NONE + frame for frame in frames])


def test_the_loop_by_a_flood_of_queries_over_udp(bench, asked):
    for start in range(0, 2048, BURST):
        bench.stage.on_batch(
            0, batch(*(query("www.example.com", start + i) for i in range(BURST))), bench.now
        )
    assert bench.stage.drops["dns"] == 2048 - names._DATAGRAMS_MAX
    for _ in range(names._DATAGRAMS_MAX):
        bench.turn()
    assert len(bench.answers()) == names._DATAGRAMS_MAX
    assert max(asked) <= 16


def test_the_turn_of_others_by_one_connection_that_floods(bench):
    flood, other = Caller(bench, 4000), Caller(bench, 4001)
    bench.stage.on_batch(
        0, batch(flood.frame(framed(*(message("www.example.com", i) for i in range(40))))), bench.now
    )
    bench.stage.on_batch(0, batch(other.frame(framed(message("www.example.org", 99)))), bench.now)
    bench.stage.on_batch(0, batch(query("www.example.net", 98)), bench.now)
    bench.turn()
    bench.turn()
    sent = list(bench.sent)
    assert numbers(other.heard()) == [99]
    assert any(
        pkt.udp.payload[:2] == bytes((0, 98)) for pkt in map(Packet.at, map(bytearray, sent)) if pkt.udp
    )


def test_memory_by_answers_that_nobody_takes(bench):
    for port in range(4000, 4010):
        caller = Caller(bench, port)
        for start in range(0, 8000, 40):
            burst = framed(*(message("www.example.com", start + i) for i in range(40)))
            bench.push([caller.frame(burst, window=1)])
            bench.turn()
        kept = 0
        for flow in bench.stage.relay.flows.values():
            queue = flow.endpoint.snd.queue
            kept += len(flow.stream._answers) + sum(map(len, flow.stream.queries))
            kept += flow.endpoint.readable + queue.tail - queue.head
        assert kept <= bench.stage.relay.budget.buffered <= bench.stage.relay.limits.most


def test_an_end_that_never_comes_by_queries_that_get_no_answer(bench):
    """An answer, and a query that is the same as one that waits, get none."""
    caller = Caller(bench, 4000)
    no_query = bytearray(message("www.example.com"))
    no_query[2] |= 0x80
    bench.push([caller.frame(framed(bytes(no_query), message("www.example.com", 5)))])
    bench.push([caller.frame(flags=ACK | FIN)])
    for _ in range(40):  # an end is put off for 32 turns at most
        bench.turn(0.05)
    ends = [
        pkt
        for pkt in map(Packet.at, map(bytearray, bench.sent))
        if pkt.tcp is not None and pkt.tcp.flags & FIN
    ]
    assert ends
    assert numbers(caller.heard()) == [5]


def test_the_loop_by_look_ups_that_all_end_at_once(tmp_path):
    bench = Bench(tmp_path, dns="resolve")
    for start in range(0, 128, BURST):
        bench.push([query(f"name{start + i}.example.com", start + i) for i in range(BURST)])
        for _ in range(60):
            bench.turn()
    assert len(bench.stage.names._lookups) == 128
    assert not bench.answers()
    bench.now += 30
    bench.turn()
    assert 0 < len(bench.answers()) <= 8
    for _ in range(200):
        bench.turn()
    assert len(bench.stage.names._lookups) == 0
    assert not bench.stage.names.has_more
    bench.close()
