"""Decisions of vtl-vnet: rules, learning, services, and no loop between daemons."""

import pytest

from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.fields import FrameFields, fields_of, key_of
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.stations import AGE_S, STATIONS_OF_LINK, StationTable
from vtl_tools.services.vnet.switch import NET, VM, LinkKind, LinkRole, LinkSide, VnetSwitch

A, B, C = (bytes.fromhex(f"02000000000{n}") for n in (1, 2, 3))
ALL = b"\xff" * 6
SERVICE = LinkRole(LinkKind.SERVICE, sides=2)
PEER = LinkRole(LinkKind.VNET)


def frame(src: bytes, dst: bytes, protocol: int = 6) -> FrameFields:
    return FrameFields(dst, src, 0, protocol, b"\x0a\x09\x00" + src[-1:], b"\x0a\x09\x00" + dst[-1:])


@pytest.fixture
def switch() -> VnetSwitch:
    made = VnetSwitch()
    for name in "vm1", "vm2":
        made.add_link(name, LinkRole())
    for name in "far1", "far2":
        made.add_link(name, PEER)
    made.add_link("fw", SERVICE)
    return made


def sent(
    switch: VnetSwitch, fields: FrameFields, link: str, side: int = VM, now: float = 0.0
) -> set[LinkSide]:
    return set(switch.decide(fields, LinkSide(link, side), now).targets)


def test_a_frame_goes_to_all_links_until_its_destination_was_seen(switch: VnetSwitch) -> None:
    assert sent(switch, frame(A, B), "vm1") == {LinkSide("vm2"), LinkSide("far1"), LinkSide("far2")}
    assert sent(switch, frame(B, A), "vm2") == {LinkSide("vm1")}
    assert sent(switch, frame(A, B), "vm1") == {LinkSide("vm2")}
    assert switch.decide(frame(A, B), LinkSide("vm1"), AGE_S / 2).moved == ""
    assert switch.decide(frame(A, B), LinkSide("far1"), AGE_S / 2).moved == "vm1"
    switch.stations.expire(2 * AGE_S)
    assert len(switch.stations) == 0


def test_a_frame_of_a_daemon_is_not_sent_to_another(switch: VnetSwitch) -> None:
    assert sent(switch, frame(A, ALL), "far1") == {LinkSide("vm1"), LinkSide("vm2")}
    sent(switch, frame(C, ALL), "far2")
    assert switch.decide(frame(A, C), LinkSide("far1"), 0.0).reason == "split-horizon"
    assert switch.decide(frame(C, C), LinkSide("far2"), 0.0).reason == "same-link"
    switch.add_rule(parse_vnet_rule("to-mac 02:00:00:00:00:03 via far2"))
    assert sent(switch, frame(A, C), "far1") == {LinkSide("far2")}


def test_a_link_for_transit_passes_frames_on(switch: VnetSwitch) -> None:
    switch.add_link("leaf", LinkRole(LinkKind.VNET, transit=True))
    assert sent(switch, frame(A, ALL), "leaf") == {LinkSide(name) for name in ("vm1", "vm2", "far1", "far2")}
    assert sent(switch, frame(B, ALL), "far1") == {LinkSide("vm1"), LinkSide("vm2"), LinkSide("leaf")}


def test_a_service_has_both_directions_of_a_conversation(switch: VnetSwitch) -> None:
    sent(switch, frame(B, ALL), "vm2")
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    assert sent(switch, frame(A, B), "vm1") == {LinkSide("fw", VM)}
    assert sent(switch, frame(A, B), "fw", NET) == {LinkSide("vm2")}
    assert sent(switch, frame(B, A), "vm2") == {LinkSide("fw", NET)}
    assert sent(switch, frame(B, A), "fw", VM) == {LinkSide("vm1")}


def test_a_broadcast_reaches_stations_behind_a_service_by_it_only(switch: VnetSwitch) -> None:
    switch.add_rule(parse_vnet_rule("from-mac 02:00:00:00:00:01 via fw"))
    assert sent(switch, frame(A, ALL), "vm1") == {LinkSide("fw", VM)}
    assert sent(switch, frame(A, ALL), "fw", NET) == {LinkSide("vm2"), LinkSide("far1"), LinkSide("far2")}
    assert sent(switch, frame(B, ALL), "far1") == {LinkSide("vm2"), LinkSide("fw", NET)}
    assert sent(switch, frame(B, ALL), "fw", VM) == {LinkSide("vm1")}


def test_services_are_passed_in_the_order_of_the_rules_and_back(switch: VnetSwitch) -> None:
    switch.add_link("wan", SERVICE)
    for service in "fw", "wan":
        switch.add_rule(parse_vnet_rule(f"on vm1 via {service}"))
    sent(switch, frame(B, ALL), "vm2")
    way = [LinkSide("vm1")]
    for _ in range(3):
        (target,) = sent(switch, frame(A, B), way[-1].link, NET)
        way.append(target)
    assert [each.link for each in way] == ["vm1", "fw", "wan", "vm2"]
    assert sent(switch, frame(B, A), "vm2") == {LinkSide("wan", NET)}
    assert sent(switch, frame(B, A), "wan", VM) == {LinkSide("fw", NET)}
    assert sent(switch, frame(B, A), "fw", VM) == {LinkSide("vm1")}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("on vm1", "a word is unknown, missing"),
        ("from 10.0.0.1/8 via fw", "not a prefix"),
        ("protocol tcp via fw", "a service has a VM's side"),
        ("on vm1 via nobody", "there is no link nobody"),
        ("from-mac 02 via fw", "not a MAC"),
        ("vlan 5000 via vm1", "not a VLAN"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(switch: VnetSwitch, text: str, problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        switch.add_rule(parse_vnet_rule(text))


def test_a_link_that_a_rule_names_stays(switch: VnetSwitch) -> None:
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    with pytest.raises(SpecError, match="remove the rule first"):
        switch.remove_link("fw")
    switch.remove_rule("on  vm1 via fw")
    switch.remove_link("fw")
    assert "fw" not in switch.links


def test_invented_addresses_evict_those_of_their_own_link_only() -> None:
    stations = StationTable()
    stations.learn(0, B, "vm2", 0.0)
    for number in range(STATIONS_OF_LINK + 10):
        stations.learn(0, b"\x06" + number.to_bytes(5), "vm1", 1.0)
    assert len(stations) == STATIONS_OF_LINK + 1
    assert stations.find(0, B) is not None


def test_the_links_behind_a_service_follow_moves_and_evictions() -> None:
    stations = StationTable()

    def behind(mac: bytes, link: str) -> set[str]:
        stations.learn(0, mac, link, 0.0)
        station = stations.find(0, mac)
        assert station is not None
        stations.send_through(station, "fw")
        return stations.behind("fw")

    assert behind(A, "vm1") == {"vm1"}
    assert behind(A, "vm2") == {"vm2"}
    assert behind(B, "vm1") == behind(B, "vm1") == {"vm1", "vm2"}
    stations.forget_link("vm1")
    assert stations.behind("fw") == {"vm2"}
    for number in range(STATIONS_OF_LINK):
        stations.learn(0, b"\x06" + number.to_bytes(5), "vm2", 0.0)
    assert stations.behind("fw") == set()
    behind(A, "vm2")
    stations.forget_service("fw")
    assert behind(B, "vm1") == {"vm1"}


def test_fields_of_tagged_frames_and_of_arp() -> None:
    arp = bytes(8) + bytes(6) + bytes((10, 9, 0, 1)) + bytes(6) + bytes((10, 9, 0, 2))
    found = fields_of(bytes(10) + B + A + bytes.fromhex("81000007") + b"\x08\x06" + arp)
    assert found == FrameFields(B, A, 7, -1, bytes((10, 9, 0, 1)), bytes((10, 9, 0, 2)))
    assert fields_of(bytes(10) + B + A + b"\x08\x00" + b"\x45") == FrameFields(B, A)


def test_a_short_frame_shares_its_key_with_no_whole_one() -> None:
    whole4 = bytes(10) + B + A + b"\x08\x00" + bytes(9) + b"\x06" + bytes(2) + bytes(range(1, 9)) + bytes(20)
    whole6 = bytes(10) + B + A + b"\x86\xdd" + bytes(6) + b"\x06\x40" + bytes(range(1, 33)) + bytes(20)
    for whole, protocol_at, rest in (whole4, 33, slice(36, 44)), (whole6, 30, slice(32, 64)):
        short = whole[:24] + whole[protocol_at : protocol_at + 1] + whole[rest]
        assert fields_of(short).protocol == -1
        assert key_of(memoryview(short)) != key_of(memoryview(whole))


@pytest.mark.parametrize("tag", [b"", bytes.fromhex("81000007")])
def test_a_protocol_hides_behind_no_extension_header(tag: bytes) -> None:
    headers = b"\x3c\x00" + bytes(6) + b"\x2c\x00" + bytes(6) + b"\x06" + bytes(7)

    def sent(extensions: bytes, first: int) -> memoryview:
        ipv6 = bytes(4) + b"\x00\x40" + bytes((first, 64)) + bytes(range(32))
        return memoryview(bytes(10) + B + A + tag + b"\x86\xdd" + ipv6 + extensions + bytes(20))

    plain, hidden = sent(b"", 6), sent(headers, 0)
    assert fields_of(hidden) == fields_of(plain)
    assert fields_of(hidden).protocol == 6
    assert key_of(hidden) != key_of(sent(headers[:-8] + b"\x11" + bytes(7), 0))
    assert fields_of(hidden[:-24]).protocol == 44, "cut off: nothing is raised"


TOLD = LinkRole(told=True)


def test_a_station_that_a_control_plane_tells_of_is_there(switch: VnetSwitch) -> None:
    switch.add_link("dc", TOLD)
    sent(switch, frame(B, ALL), "vm1")
    assert switch.tell(A, "dc", 0.0) == ""
    assert sent(switch, frame(B, A), "vm1") == {LinkSide("dc")}
    switch.tell(A, "", 0.0)
    assert len(sent(switch, frame(B, A), "vm1")) > 1


def test_networks_of_two_control_planes_are_not_joined(switch: VnetSwitch) -> None:
    for name, station in ("one", A), ("two", B):
        switch.add_link(name, TOLD)
        switch.tell(station, name, 0.0)
    assert LinkSide("two") not in sent(switch, frame(A, ALL), "one")
    assert switch.decide(frame(A, B), LinkSide("one"), 0.0).reason == "split-horizon"
    assert switch.stations.told_link(A) == "one"


def test_a_station_moves_from_and_to_a_control_plane(switch: VnetSwitch) -> None:
    switch.add_link("dc", TOLD)
    switch.stations.keep_news(wanted=True)
    sent(switch, frame(A, ALL), "vm1")
    assert switch.stations.take_news() == [A]
    assert switch.stations.link_of(A) == "vm1"
    assert switch.tell(A, "dc", 0.0) == "vm1"
    assert sent(switch, frame(B, A), "vm2") == {LinkSide("dc")}
    assert switch.decide(frame(A, ALL), LinkSide("vm2"), 1.0).moved == "dc"
    assert A in switch.stations.take_news()
    assert sent(switch, frame(B, A), "vm1") == {LinkSide("vm2")}


def test_a_frame_from_a_link_with_a_control_plane_moves_no_station(switch: VnetSwitch) -> None:
    switch.add_link("dc", TOLD)
    sent(switch, frame(A, ALL), "vm1")
    assert switch.decide(frame(A, ALL), LinkSide("dc"), 0.0).moved == ""
    assert switch.stations.link_of(A) == "vm1"
    sent(switch, frame(B, ALL), "dc")
    assert sent(switch, frame(A, B), "vm1") == {LinkSide("dc")}
    switch.forget_stations("dc")
    assert switch.stations.link_of(B) == ""
