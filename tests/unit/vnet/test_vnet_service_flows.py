"""Connections of rules that come and go: which go through the service, and which around it."""

import pytest

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import build
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.services.vnet import service_flows
from vtl_tools.services.vnet.fields import fields_of
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.service_flows import (
    FLOWS_MAX,
    IDLE_S,
    LINGER_S,
    OPENING_MAX,
    FlowSegment,
    ServiceFlows,
    may_be_marked,
    segment_of,
)
from vtl_tools.services.vnet.switch import VM, LinkKind, LinkRole, LinkSide, VnetSwitch

A, B, C = (bytes.fromhex(f"02000000000{n}") for n in (1, 2, 3))
IPS = {A: bytes((10, 9, 0, 1)), B: bytes((10, 9, 0, 2)), C: bytes((10, 9, 0, 3))}


def tcp(src: bytes, dst: bytes, port: int, flags: int, *, up: bool = True) -> memoryview:
    """A segment of a connection of a port; up: from who connects."""
    ports = (port, 80) if up else (80, port)
    return memoryview(
        build.tcp(
            src_mac=src, dst_mac=dst, src=IPS[src], dst=IPS[dst], sport=ports[0], dport=ports[1],
            seq=1, ack=1, flags=flags, payload=b"",
        )
    )  # fmt: skip


class World:
    """vm1 with A, far with B, and a service under the frames of vm1."""

    def __init__(self, keep_s: int = 0, *, sides: int = 2, ends_tcp: bool = True) -> None:
        self.switch = VnetSwitch()
        for name in "vm1", "far":
            self.switch.add_link(name, LinkRole())
        self.switch.add_link("s", LinkRole(LinkKind.SERVICE, sides, ends_tcp=ends_tcp))
        for mac, link in (A, "vm1"), (B, "far"), (C, "vm1"):
            self.switch.stations.learn(0, mac, link, 0.0)
        keep = f"keep-flows {keep_s} " if keep_s else ""
        self.rule = parse_vnet_rule(f"on vm1 {keep}via s")
        self.switch.add_rule(self.rule)

    @property
    def flows(self) -> ServiceFlows:
        return self.switch.flows[self.rule.text]

    def sent(self, frame: memoryview, link: str, now: float, side: int = VM) -> str:
        fields = fields_of(frame)
        assert fields is not None
        segment = segment_of(frame, fields)
        route = self.switch.decide(fields, LinkSide(link, side), now, segment)
        for flows in route.tracked:
            assert segment is not None
            if segment.is_marked:
                flows.note(segment, now)
        return route.targets[0].link if route.targets else route.reason

    def opens(self, port: int, now: float) -> None:
        """A connection of A through the service, with the service's answer."""
        assert self.sent(tcp(A, B, port, SYN), "vm1", now) == "s"
        assert self.sent(tcp(B, A, port, SYN | ACK, up=False), "s", now) == "vm1"
        assert self.sent(tcp(A, B, port, ACK), "vm1", now) == "s"

    def both(self, port: int, now: float) -> tuple[str, str]:
        """Where segments of an open connection go, of A and of B."""
        return (
            self.sent(tcp(A, B, port, ACK), "vm1", now),
            self.sent(tcp(B, A, port, ACK, up=False), "far", now),
        )


AROUND, THROUGH = ("far", "vm1"), ("s", "s")


def test_connections_from_before_the_rule_go_around_if_the_rule_says_so() -> None:
    world = World(keep_s=10)
    assert world.both(1, 5.0) == AROUND
    assert world.sent(tcp(A, B, 2, SYN), "vm1", 5.0) == "s"
    assert world.sent(tcp(B, A, 2, SYN | ACK, up=False), "s", 5.0) == "vm1"
    assert world.both(2, 6.0) == THROUGH
    assert world.both(3, 15.1) == THROUGH, "it came too late"
    assert world.both(1, 1000.0) == AROUND
    assert (world.flows.kept, world.flows.taken) == (1, 1)
    assert World().both(1, 5.0) == THROUGH


def test_a_kept_connection_is_no_way_around_for_anything_else() -> None:
    world = World(keep_s=10)
    assert world.both(1, 5.0) == AROUND
    forged = bytearray(tcp(C, B, 1, ACK))
    forged[10 + 14 + 12 : 10 + 14 + 16] = IPS[A]  # another station of the link, with A's address
    assert world.sent(memoryview(forged), "vm1", 20.0) == "s"
    forged[10 + 14 + 20 + 13] = SYN
    assert world.sent(memoryview(forged), "vm1", 20.0) == "s"
    assert world.both(1, 20.0) == AROUND, "nobody else closes it"
    assert world.sent(tcp(A, B, 1, SYN), "vm1", 20.0) == "s", "a new one of the same ports"
    assert world.both(1, 20.0) == THROUGH


def test_no_station_is_learned_from_a_kept_connection() -> None:
    world = World(keep_s=10)
    world.switch.stations.learn(0, C, "far", 0.0)
    assert world.sent(tcp(C, B, 1, ACK), "vm1", 5.0) == "far"
    assert world.switch.stations.link_of(C) == "far"


def test_a_kept_connection_is_forgotten_when_it_has_ended_or_is_silent() -> None:
    world = World(keep_s=10)
    for port in 1, 2, 3:
        assert world.both(port, 5.0) == AROUND
    assert world.sent(tcp(A, B, 1, FIN | ACK), "vm1", 6.0) == "far"
    world.sent(tcp(B, A, 2, RST, up=False), "far", 6.0)  # anybody may have made it
    world.switch.expire(6.0 + LINGER_S)
    assert world.flows.kept == 3
    assert world.sent(tcp(B, A, 1, FIN | ACK, up=False), "far", 7.0) == "vm1"
    assert world.both(1, 7.5) == AROUND, "its last segments"
    world.switch.expire(7.0 + LINGER_S)
    assert world.both(1, 20.0) == THROUGH
    assert world.both(3, 20.0) == AROUND
    world.switch.expire(20.0 + IDLE_S)
    assert world.flows.kept == 0


def test_the_end_of_a_kept_connection_ends_no_new_one_of_the_same_ports() -> None:
    world = World(keep_s=10)
    assert world.both(1, 5.0) == AROUND
    for frame, link in (tcp(A, B, 1, FIN | ACK), "vm1"), (tcp(B, A, 1, FIN | ACK, up=False), "far"):
        world.sent(frame, link, 6.0)
    world.opens(1, 6.5)
    world.switch.expire(6.0 + LINGER_S)
    assert world.flows.taken == 1


@pytest.mark.parametrize("sides", [1, 2])
def test_a_rule_that_is_removed_stays_for_the_connections_of_its_service(sides: int) -> None:
    world = World(sides=sides)
    world.opens(1, 0.0)
    assert not world.switch.remove_rule(world.rule, 300.0)
    through = ("s", "s" if sides > 1 else "behind-service")
    assert world.both(1, 1.0) == through
    assert world.both(2, 1.0) == AROUND
    assert world.sent(tcp(A, B, 3, SYN), "vm1", 1.0) == "far"
    assert world.both(3, 1.0) == AROUND
    with pytest.raises(SpecError, match="still have it"):
        world.switch.remove_link("s")
    world.sent(tcp(A, B, 1, FIN | ACK), "vm1", 2.0)
    assert world.switch.expire(10.0) == []
    world.sent(tcp(B, A, 1, FIN | ACK, up=False), "s", 10.0)
    assert world.both(1, 10.5) == through
    assert world.switch.expire(10.0 + LINGER_S) == [(world.rule, 0)]
    assert world.both(1, 20.0) == AROUND
    world.switch.remove_link("s")


def test_a_connection_that_comes_from_outside_through_a_service_is_drained_as_well() -> None:
    world = World()
    assert world.sent(tcp(B, A, 1, SYN), "far", 0.0) == "s"
    assert world.sent(tcp(B, A, 1, SYN), "s", 0.0) == "vm1"
    assert world.sent(tcp(A, B, 1, SYN | ACK, up=False), "vm1", 0.0) == "s"
    assert world.flows.taken == 1
    assert not world.switch.remove_rule(world.rule, 300.0)
    assert world.sent(tcp(B, A, 1, ACK), "far", 1.0) == "s"
    assert world.switch.expire(300.0) == [(world.rule, 1)]


def test_a_service_that_ends_no_tcp_is_gone_at_once() -> None:
    world = World(keep_s=10, ends_tcp=False)
    world.opens(1, 0.0)
    assert world.switch.remove_rule(world.rule, 300.0)
    assert world.both(1, 1.0) == AROUND
    again = World()
    again.opens(1, 0.0)
    assert again.switch.remove_rule(again.rule)


def test_ports_that_a_drained_connection_had_are_free_for_a_new_one() -> None:
    world = World()
    for port in 1, 2:
        world.opens(port, 0.0)
    assert not world.switch.remove_rule(world.rule, 300.0)
    world.sent(tcp(A, B, 1, RST), "vm1", 1.0)
    assert world.sent(tcp(A, B, 1, SYN), "vm1", 1.5) == "far"
    assert world.both(1, 1.6) == AROUND
    assert world.both(2, 1.6) == THROUGH


def segment(number: int, flags: int, end: int = 0) -> FlowSegment:
    return FlowSegment(number.to_bytes(8), b"", end, flags)


def test_a_flood_of_syns_takes_no_connection_and_memory_is_bounded() -> None:
    flows = ServiceFlows()
    flows.note(segment(0, SYN), 0.0)
    flows.note(segment(0, SYN | ACK, 1), 0.0)
    for number in range(1, 3 * OPENING_MAX):
        flows.note(segment(number, SYN), 1.0)
    assert flows.taken == OPENING_MAX + 1
    for number in range(1, FLOWS_MAX + 100):
        flows.note(segment(number, SYN), 2.0)
        flows.note(segment(number, SYN | ACK, 1), 2.0)
    assert flows.taken <= FLOWS_MAX + OPENING_MAX


def test_a_flood_within_the_time_keeps_no_connection_more_than_there_is_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(service_flows, "KEPT_MAX", 100)
    flows = ServiceFlows(10.0)
    assert [flows.takes(segment(number, ACK), 0.0) for number in range(150)] == [False] * 100 + [True] * 50


@pytest.mark.parametrize("flags", [ACK, SYN, FIN | ACK, RST])
def test_a_look_at_flags_sees_what_the_whole_parser_sees(flags: int) -> None:
    frame = tcp(A, B, 1, flags)
    assert may_be_marked(frame) == (flags != ACK)
    for cut in range(24, len(frame)):
        may_be_marked(frame[:cut])


def test_keep_flows_is_for_services() -> None:
    world = World()
    with pytest.raises(SpecError, match="is no service"):
        world.switch.add_rule(parse_vnet_rule("on vm1 keep-flows 5 via far"))
