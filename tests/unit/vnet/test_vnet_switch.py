"""Decisions of vtl-vnet: rules, learning, services, and no loop between daemons."""

import pytest

from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.claims import CLAIM_S, CLAIMS_OF_LINK
from vtl_tools.services.vnet.fields import UNKNOWN, FrameFields, fields_of, key_of
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.stations import AGE_S, STATIONS_MAX, STATIONS_OF_LINK, StationTable
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
    assert switch.remove_rule(switch.find_rule("on  vm1 via fw"))
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
        stations.send_through(0, mac, "fw")
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
    assert fields_of(hidden[:-24]).protocol == UNKNOWN, "cut off: nothing is raised"


TOLD = LinkRole(told=True)


def test_a_station_that_a_control_plane_tells_of_is_there(switch: VnetSwitch) -> None:
    switch.add_link("dc", TOLD)
    sent(switch, frame(B, ALL), "vm1")
    assert switch.tell(A, "dc", 0.0) == ""
    assert sent(switch, frame(B, A), "vm1") == {LinkSide("dc")}
    switch.tell(A, "", 0.0)
    assert len(sent(switch, frame(B, A), "vm1")) > 1


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


# --- who is behind a service


def test_a_station_behind_a_service_is_known_only_once_the_service_has_passed_a_frame(
    switch: VnetSwitch,
) -> None:
    sent(switch, frame(B, ALL), "far1")
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    sent(switch, frame(B, ALL), "vm1")  # forged, and the firewall drops it
    assert switch.stations.link_of(B) == "far1"
    assert sent(switch, frame(C, B), "vm2") == {LinkSide("far1")}
    sent(switch, frame(A, ALL), "vm1")
    assert switch.stations.link_of(A) == ""
    assert sent(switch, frame(A, ALL), "fw", NET) == {LinkSide(name) for name in ("vm2", "far1", "far2")}
    assert switch.stations.link_of(A) == "vm1"
    assert sent(switch, frame(B, A), "far1") == {LinkSide("fw", NET)}


def test_a_station_moves_behind_a_service_when_the_service_has_passed_it(switch: VnetSwitch) -> None:
    sent(switch, frame(A, ALL), "far1")
    switch.add_rule(parse_vnet_rule("from-mac 02:00:00:00:00:01 via fw"))
    assert sent(switch, frame(A, ALL), "far2") == {LinkSide("fw", VM)}
    assert switch.stations.link_of(A) == "far1"
    route = switch.decide(frame(A, ALL), LinkSide("fw", NET), 0.0)
    assert (route.moved, route.at) == ("far1", "far2")
    assert len(switch.claims) == 0


def test_several_services_pass_a_station_one_after_the_other(switch: VnetSwitch) -> None:
    switch.add_link("wan", SERVICE)
    for service in "fw", "wan":
        switch.add_rule(parse_vnet_rule(f"on vm1 via {service}"))
    assert sent(switch, frame(A, ALL), "vm1") == {LinkSide("fw", VM)}
    assert sent(switch, frame(A, ALL), "fw", NET) == {LinkSide("wan", VM)}
    assert switch.stations.link_of(A) == ""
    sent(switch, frame(A, ALL), "wan", NET)
    station = switch.stations.find(0, A)
    assert station is not None
    assert (station.link, station.through) == ("vm1", {"fw", "wan"})
    # A broadcast to it enters the last one only, and passes the other.
    assert LinkSide("wan", NET) in sent(switch, frame(B, ALL), "vm2")
    assert LinkSide("fw", NET) not in sent(switch, frame(B, ALL), "vm2")
    assert sent(switch, frame(B, ALL), "wan", VM) == {LinkSide("fw", NET)}
    assert sent(switch, frame(B, ALL), "fw", VM) == {LinkSide("vm1")}


def test_answers_of_a_service_go_to_who_sent_into_it_whatever_its_source(switch: VnetSwitch) -> None:
    sent(switch, frame(B, ALL), "far1")
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    sent(switch, frame(B, C), "vm1")  # forged
    assert sent(switch, frame(C, B), "fw", VM) == {LinkSide("vm1")}
    assert sent(switch, frame(C, B), "vm2") == {LinkSide("far1")}


@pytest.mark.parametrize("dst", [ALL, A])
def test_a_vm_that_was_not_heard_is_reached_through_its_service_only(switch: VnetSwitch, dst: bytes) -> None:
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    targets = sent(switch, frame(B, dst), "far1")
    assert targets == {LinkSide("vm2"), LinkSide("fw", NET)}
    assert sent(switch, frame(B, dst), "fw", VM) == {LinkSide("vm1")}


@pytest.mark.parametrize("dst", [ALL, A])
def test_a_vm_behind_a_service_without_a_network_hears_nothing_else(switch: VnetSwitch, dst: bytes) -> None:
    switch.add_link("tor", LinkRole(LinkKind.SERVICE))
    switch.add_rule(parse_vnet_rule("on vm1 via tor"))
    assert sent(switch, frame(A, B), "vm1") == {LinkSide("tor")}
    assert sent(switch, frame(B, dst), "far1") == {LinkSide("vm2")}
    assert sent(switch, frame(C, A), "tor") == {LinkSide("vm1")}
    switch.add_rule(parse_vnet_rule("from-mac 02:00:00:00:00:02 via tor"))
    sent(switch, frame(B, ALL), "vm2")
    assert switch.decide(frame(C, B), LinkSide("far1"), 0.0).reason == "behind-service"


def test_a_frame_whose_claim_was_forgotten_is_sent_back_to_no_daemon(switch: VnetSwitch) -> None:
    switch.add_rule(parse_vnet_rule("from 10.9.0.0/24 via fw"))
    sent(switch, frame(A, ALL), "far1")
    for number in range(CLAIMS_OF_LINK):
        sent(switch, frame(b"\x06" + number.to_bytes(5), ALL), "far1")
    assert sent(switch, frame(A, ALL), "fw", NET) == {LinkSide("vm1"), LinkSide("vm2")}


def test_claims_are_bounded_and_forgotten(switch: VnetSwitch) -> None:
    switch.add_rule(parse_vnet_rule("on vm1 via fw"))
    for number in range(CLAIMS_OF_LINK + 10):
        sent(switch, frame(b"\x06" + number.to_bytes(5), ALL), "vm1")
    assert len(switch.claims) == CLAIMS_OF_LINK
    assert len(switch.stations) == 0
    switch.expire(CLAIM_S)
    assert len(switch.claims) == 0
    sent(switch, frame(A, ALL), "vm1")
    switch.remove_rule(switch.find_rule("on vm1 via fw"))
    assert len(switch.claims) == 0
    assert switch.claims.behind("fw") == set()


def test_a_full_table_of_stations_forgets_those_of_the_link_with_most() -> None:
    stations = StationTable()
    stations.learn(0, B, "vm2", 0.0)
    for number in range(STATIONS_MAX):
        stations.learn(0, b"\x06" + number.to_bytes(5), f"far{number % 3}", 1.0)
    assert stations.find(0, B) is not None


# --- fields that are hidden


@pytest.mark.parametrize("tags", range(1, 6))
def test_no_protocol_hides_behind_tags(tags: int) -> None:
    ipv4 = b"\x08\x00" + bytes(9) + b"\x06" + bytes(2) + bytes(range(8)) + bytes(20)
    tagged = memoryview(bytes(10) + B + A + tags * bytes.fromhex("81000000") + ipv4)
    found = fields_of(tagged)
    assert (key_of(tagged) is None) == (found is None) == (tags > 4)
    assert found is None or found.protocol == 6


def test_a_protocol_that_cannot_be_seen_matches_each_rule_of_a_protocol() -> None:
    rule = parse_vnet_rule("on vm1 protocol tcp via fw")

    def packet(first: int, rest: bytes) -> memoryview:
        ipv6 = bytes(4) + b"\x00\x40" + bytes((first, 64)) + bytes(range(32))
        return memoryview(bytes(10) + B + A + b"\x86\xdd" + ipv6 + rest)

    options = 60
    many = packet(options, 8000 * (bytes((options, 0)) + bytes(6)))
    later = packet(44, bytes((options, 0)) + (8).to_bytes(2) + bytes(20))
    udp = packet(17, bytes(20))
    for each, matches in (many, True), (later, True), (udp, False):
        fields = fields_of(each)
        assert fields is not None
        assert rule.matches(fields, "vm1") is matches


@pytest.mark.parametrize("word", ["vlan", "protocol", "keep-flows"])
def test_a_number_without_end_is_refused(word: str) -> None:
    with pytest.raises(SpecError):
        parse_vnet_rule(f"on vm1 {word} {'9' * 5000} via fw")


def test_a_station_that_a_control_plane_told_of_is_behind_a_service_until_it_is_gone(
    switch: VnetSwitch,
) -> None:
    switch.add_link("dc", TOLD)
    switch.tell(A, "dc", 0.0)
    switch.add_rule(parse_vnet_rule("from 10.9.0.1/32 via fw"))
    assert sent(switch, frame(A, ALL), "dc") == {LinkSide("fw", VM)}
    assert switch.stations.behind("fw") == {"dc"}
    switch.tell(A, "", 1.0)
    assert switch.stations.behind("fw") == set()
