"""Stations of BGP EVPN: which VTEP has a MAC, and when an own station is announced or given up."""

import pytest

from vtl_tools.services.vnet.evpn import table as tables
from vtl_tools.services.vnet.evpn.gobgp_api import EvpnRoute, OwnNetwork
from vtl_tools.services.vnet.evpn.table import MOVES_MAX, MOVES_S, OWN_MAX, EvpnTable

MAC, OTHER = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
LOW, OWN, HIGH = (bytes((10, 0, 0, n)) for n in (1, 5, 9))
NETWORK = OwnNetwork(100, "10.0.0.5", "65000:100")


def route(vtep: bytes, mac: bytes = MAC, sequence: int = 0, **changes: object) -> EvpnRoute:
    made = EvpnRoute(
        mac, f"10.0.0.{vtep[3]}:2", "", vtep, 100, sequence, frozenset(("65000:100",)), is_withdrawn=False
    )
    return made._replace(**changes)  # type: ignore[arg-type]


@pytest.fixture
def table() -> EvpnTable:
    return EvpnTable(NETWORK)


def updates(table: EvpnTable) -> list[tuple[bytes, int | None]]:
    found = []
    while table.has_update:
        if (update := table.next_update()) is not None:
            found.append(update)
    return found


def test_the_highest_sequence_number_counts_and_then_the_lowest_vtep(table: EvpnTable) -> None:
    table.learn(route(HIGH))
    assert table.find(MAC) == HIGH
    table.learn(route(LOW))
    assert table.find(MAC) == LOW
    table.learn(route(HIGH, sequence=1))
    assert table.find(MAC) == HIGH
    table.learn(route(HIGH, is_withdrawn=True))
    assert table.find(MAC) == LOW
    table.learn(route(LOW, is_withdrawn=True))
    assert table.find(MAC) is None
    assert not table.knows(LOW)
    assert table.take_changes(9) == [(MAC, False)]
    assert table.routes == 0


def test_a_mac_with_and_without_an_address_is_two_routes(table: EvpnTable) -> None:
    table.learn(route(LOW))
    table.learn(route(LOW, ip="10.9.0.1"))
    table.learn(route(LOW, is_withdrawn=True))
    assert table.find(MAC) == LOW


def test_frames_for_all_go_to_the_vteps_that_say_so(table: EvpnTable) -> None:
    table.learn(route(HIGH, b""))
    table.learn(route(LOW, b""))
    assert table.flood == (LOW, HIGH)
    table.learn(route(LOW, b"", is_withdrawn=True))
    assert table.flood == (HIGH,)


@pytest.mark.parametrize(
    "changes", [{"vni": 101}, {"targets": frozenset(("65000:7",))}, {"targets": frozenset()}, {"vtep": OWN}]
)
def test_routes_of_another_network_are_left_alone(table: EvpnTable, changes: dict[str, object]) -> None:
    table.learn(route(LOW)._replace(**changes))  # type: ignore[arg-type]
    assert table.find(MAC) is None
    table.learn(route(LOW))
    table.learn(route(LOW)._replace(**changes))  # type: ignore[arg-type]  # it was changed to be no longer of ours
    assert table.find(MAC) is None


def test_without_a_target_those_of_any_as_count() -> None:
    table = EvpnTable(OwnNetwork(100, "10.0.0.5", ""))
    assert table.join(65001 + (7 << 16)).target == "65001:100"
    table.learn(route(LOW, targets=frozenset(("64999:100",))))
    assert table.find(MAC) == LOW


def test_an_own_station_is_announced_once_and_withdrawn(table: EvpnTable) -> None:
    table.begin()
    table.own(MAC, 0.0)
    table.own(MAC, 1.0)
    assert updates(table) == [(MAC, 0)]
    table.disown(MAC)
    assert updates(table) == [(MAC, None)]
    table.own(OTHER, 2.0)
    table.disown(OTHER)
    assert updates(table) == []


def test_a_station_that_came_from_a_vtep_has_the_next_number(table: EvpnTable) -> None:
    table.learn(route(LOW, sequence=7))
    assert table.take_changes(9) == [(MAC, True)]
    table.own(MAC, 0.0)
    assert updates(table) == [(MAC, 8)]
    table.learn(route(LOW, is_withdrawn=True))
    assert table.take_changes(9) == [(MAC, False)]


@pytest.mark.parametrize(("sequence", "vtep", "is_lost"), [(0, HIGH, False), (0, LOW, True), (1, HIGH, True)])
def test_an_own_station_is_given_up_for_a_better_route(
    table: EvpnTable, sequence: int, vtep: bytes, is_lost: bool
) -> None:
    table.own(MAC, 0.0)
    updates(table)
    table.learn(route(vtep, sequence=sequence))
    assert updates(table) == ([(MAC, None)] if is_lost else [])
    assert table.take_changes(9) == [(MAC, is_lost)]


def test_a_route_that_was_worse_counts_once_the_own_station_is_gone(table: EvpnTable) -> None:
    table.own(MAC, 0.0)
    table.learn(route(HIGH))
    assert table.take_changes(9) == [(MAC, False)]
    table.disown(MAC)
    assert table.take_changes(9) == [(MAC, True)]


def test_a_station_at_two_places_is_left_alone_for_a_while(table: EvpnTable) -> None:
    for number in range(MOVES_MAX + 1):
        table.learn(route(LOW, sequence=2 * number + 1))
        table.own(MAC, float(number))
    assert table.counts()["duplicates"] == 1
    assert table.counts()["own"] == 0
    table.own(MAC, 9.0)
    assert table.counts()["own"] == 0
    assert table.freed(MOVES_MAX + MOVES_S) == [MAC]
    table.own(MAC, MOVES_MAX + MOVES_S)
    assert table.counts()["own"] == 1


def test_routes_that_are_not_told_again_are_forgotten(table: EvpnTable) -> None:
    table.begin()
    for mac in MAC, OTHER, b"":
        table.learn(route(LOW, mac))
    table.take_changes(9)
    table.begin()
    table.learn(route(LOW, MAC))
    table.sweep(everything=False)
    assert table.take_changes(9) == [(OTHER, False)]
    assert table.flood == ()
    assert table.find(MAC) == LOW
    table.sweep(everything=True)
    assert table.find(MAC) is None


def test_after_a_new_connection_own_stations_are_told_and_those_of_an_earlier_run_withdrawn(
    table: EvpnTable,
) -> None:
    table.own(MAC, 0.0)
    updates(table)
    table.begin()
    for mac in MAC, OTHER, b"":
        table.learn(route(OWN, mac, rd=NETWORK.rd))
    assert updates(table) == [(MAC, 0), (OTHER, None)]


def test_a_station_that_is_gone_before_it_is_told_again_is_withdrawn(table: EvpnTable) -> None:
    table.own(MAC, 0.0)
    updates(table)
    table.begin()
    table.learn(route(OWN, MAC, rd=NETWORK.rd))  # gobgpd has kept it
    table.disown(MAC)
    assert updates(table) == [(MAC, None)]


def test_tables_are_bounded(table: EvpnTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROUTES_MAX", 3)
    monkeypatch.setattr(tables, "OWN_MAX", 2)
    macs = [bytes((2, 0, 0, 0, 1, n)) for n in range(5)]
    for mac in macs:
        table.learn(route(LOW, mac))
    assert [table.find(mac) for mac in macs] == [LOW] * 3 + [None] * 2
    for mac in (bytes((2, 0, 0, 0, 2, n)) for n in range(5)):
        table.own(mac, 0.0)
    assert table.counts() == {
        "vteps": 1, "routes": 3, "own": 2, "waiting": 2, "refused": 5, "duplicates": 0,
    }  # fmt: skip


def test_routes_forged_in_our_name_fill_no_memory(table: EvpnTable) -> None:
    for number in range(3 * OWN_MAX):
        table.learn(route(OWN, number.to_bytes(6), rd=NETWORK.rd))
    counts = table.counts()
    assert counts["waiting"] == len(list(table.told())) == 2 * OWN_MAX
    assert counts["refused"] == OWN_MAX
    assert len(updates(table)) == 2 * OWN_MAX
    assert not list(table.told())


def test_stations_that_come_and_go_while_gobgpd_is_away_fill_no_memory(table: EvpnTable) -> None:
    for number in range(3 * OWN_MAX):
        table.own(number.to_bytes(6), 0.0)
        table.disown(number.to_bytes(6))
    assert table.counts()["waiting"] == 0
    table.own(MAC, 0.0)
    assert updates(table) == [(MAC, 0)]
    table.disown(MAC)
    assert updates(table) == [(MAC, None)]


def test_an_own_route_that_an_earlier_run_withdraws_late_is_told_again(table: EvpnTable) -> None:
    table.own(MAC, 0.0)
    assert updates(table) == [(MAC, 0)]
    for mac in MAC, b"", OTHER:
        table.learn(route(OWN, mac, rd=NETWORK.rd, is_withdrawn=True))
    assert updates(table) == [(MAC, 0), (b"", 0)]


def test_a_vtep_of_ipv6_knows_those_of_ipv6() -> None:
    table = EvpnTable(OwnNetwork(100, "fd00::5", "65000:100"))
    there = bytes.fromhex("fd00") + bytes(13) + b"\x01"
    table.learn(route(LOW))
    table.learn(route(LOW)._replace(vtep=there, rd="1.2.3.4:100"))
    assert table.find(MAC) == there
    assert not table.knows(LOW)
    assert OwnNetwork(100, "fd00::5", "").rd != OwnNetwork(100, "fd00::6", "").rd
