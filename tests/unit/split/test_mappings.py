"""The table of mappings and peers: time-outs and bounds. Sockets are real, and nothing is sent."""

import pytest

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.socks import Reason
from vtl_tools.services.split import mappings
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.mapping import DatagramMapping, MappingPeer, UDPMapping
from vtl_tools.services.split.mappings import BRIEF_S, IDLE_S, MappingTable

MACS = bytes(range(12))


class Own(set[bytes]):
    version = 0


class Table:
    def __init__(self, most: int = 100) -> None:
        self.own, self.closed = Own(), []
        self.resolver = ("192.0.2.53", 53)
        destinations = Destinations(GuestAddresses(), self.own, lambda _: self.resolver)
        self.table = MappingTable(destinations, self._on_close, most)

    def _on_close(self, mapping: DatagramMapping) -> None:
        self.closed.append(mapping.port)
        mapping.sock.close()

    def find(self, sport: int, last: int, now: float, dport: int = 9) -> MappingPeer | Reason:
        parties = (
            bytes((10, 0, 2, 15, 198, 51, 100, last)) + sport.to_bytes(2, "big") + dport.to_bytes(2, "big")
        )
        if dport == 53:
            parties = parties[:4] + bytes((10, 0, 2, 2)) + parties[8:]
        self.table.look_again()
        return self.table.find(MACS + parties, UDPMapping, parties, now, lambda _: None)

    def mapping(self, *args: float) -> DatagramMapping:
        peer = self.find(*args)  # type: ignore[arg-type]
        assert isinstance(peer, MappingPeer)
        return peer.mapping


@pytest.fixture
def table():
    made = Table()
    yield made
    made.table.close_all()


def test_an_endpoint_has_one_socket_for_all_destinations(table):
    assert table.mapping(1, 1, 0.0) is table.mapping(1, 2, 0.0)
    assert table.mapping(2, 1, 0.0) is not table.mapping(1, 1, 0.0)
    assert len(table.table) == 2


def test_a_mapping_lasts_while_it_is_used_and_five_minutes_more(table):
    table.find(1, 1, 0.0)
    table.find(2, 1, 10.0)
    assert table.table.deadline() == IDLE_S
    table.find(1, 1, 100.0)
    table.table.expire(IDLE_S + 10)
    assert table.closed == [2]
    table.table.expire(IDLE_S + 99)
    assert table.closed == [2]
    table.table.expire(IDLE_S + 100)
    assert table.closed == [2, 1]
    assert table.table.deadline() is None


def test_one_for_name_look_ups_ends_sooner_until_it_is_used_for_more(table):
    table.find(1, 0, 0.0, 53)
    table.find(2, 0, 0.0, 53)
    table.find(2, 1, 0.0)
    table.table.expire(BRIEF_S)
    assert table.closed == [1]


def test_a_full_table_ends_the_mapping_that_was_unused_for_longest():
    table = Table(3)
    for sport in 1, 2, 3:
        table.find(sport, 1, float(sport))
    table.find(1, 1, 10.0)
    table.find(4, 1, 11.0)
    assert table.closed == [2]
    table.find(5, 0, 12.0, 53)
    table.find(6, 1, 13.0)
    assert table.closed == [2, 3, 5]  # a brief one before those that last
    assert len(table.table) == 3
    table.table.close_all()


def test_peers_are_bounded(table, monkeypatch):
    monkeypatch.setattr(mappings, "PEERS_MAX", 4)
    for last in range(1, 9):
        mapping = table.mapping(1, last, 0.0)
    assert len(mapping.peers) == len(mapping.keys) == len(mapping.hosts) == 4
    assert mapping.peer_of(b"\0\x09" + bytes((198, 51, 100, 1))) is None
    assert mapping.peer_of(b"\0\x09" + bytes((198, 51, 100, 8))) is not None
    assert mapping.peer_of(b"\0\x10" + bytes((198, 51, 100, 8))) is not None  # of the same host


def test_a_destination_that_becomes_the_hosts_own_loses_its_peer(table):
    mapping = table.mapping(1, 1, 0.0)
    table.own.add(bytes((198, 51, 100, 1)))
    assert table.find(1, 1, 1.0) is not Reason.PROHIBITED  # the kernel has not told yet
    table.own.version = table.own.version + 1
    assert table.find(1, 1, 2.0) is Reason.PROHIBITED
    assert not mapping.peers


def test_the_kernel_is_asked_for_news_once_a_batch(table):
    parties = bytes((10, 0, 2, 15, 198, 51, 100, 1, 0, 1, 0, 9))
    assert isinstance(table.find(1, 1, 0.0), MappingPeer)
    table.own.add(parties[4:8])
    table.own.version = table.own.version + 1
    again = table.table.find(MACS + parties, UDPMapping, parties, 0.0, lambda _: None)
    assert isinstance(again, MappingPeer)
    assert table.find(1, 1, 0.0) is Reason.PROHIBITED


def test_another_resolver_of_the_host_is_used_soon(table):
    first = table.find(1, 0, 0.0, 53)
    table.resolver = ("192.0.2.54", 53)
    assert table.find(1, 0, 1.0, 53) is first
    assert table.find(1, 0, 3.0, 53).address == ("192.0.2.54", 53)
