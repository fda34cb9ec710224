"""Routes that are remembered: not longer than they hold, and not for another connection or station."""

import pytest

from vtl_tools.common.packet import build
from vtl_tools.common.packet.tcp import ACK, SYN
from vtl_tools.services.vnet.route_cache import RouteCache
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.switch import NET, VM, FrameRoute, LinkKind, LinkRole, LinkSide, VnetSwitch

A, B = (bytes.fromhex(f"02000000000{n}") for n in (1, 2))
IPS = {A: bytes((10, 9, 0, 1)), B: bytes((10, 9, 0, 2))}


class Cached:
    """vm1, vm2 and the daemons far1, far2, with a firewall, and a switch that counts what it decides on."""

    def __init__(self, rule: str) -> None:
        self.switch = VnetSwitch()
        for name in "vm1", "vm2":
            self.switch.add_link(name, LinkRole())
        for name in "far1", "far2":
            self.switch.add_link(name, LinkRole(LinkKind.VNET))
        self.switch.add_link("fw", LinkRole(LinkKind.SERVICE, 2))
        self.switch.add_rule(parse_vnet_rule(rule))
        self.moves: list[tuple[bytes, str, str]] = []
        self.cache = RouteCache(self.switch, lambda *move: self.moves.append(move))
        self.decided = 0
        decide = self.switch.decide

        def counted(*asked, **more) -> FrameRoute:  # type: ignore[no-untyped-def]
            self.decided += 1
            return decide(*asked, **more)

        self.switch.decide = counted  # type: ignore[method-assign]

    def sent(self, src: bytes, dst: bytes, link: str, side: int = VM, port: int = 1, flags: int = ACK) -> str:
        self.cache.check()
        frame = build.tcp(
            src_mac=src, dst_mac=dst, src=IPS[src], dst=IPS[dst], sport=port, dport=80, seq=1, ack=1,
            flags=flags, payload=b"",
        )  # fmt: skip
        route = self.cache.find(LinkSide(link, side), memoryview(frame), 1.0)
        return " ".join(target.link for target in route.targets)


def test_a_frame_like_the_one_before_is_not_decided_on_again() -> None:
    cached = Cached("on vm2 via fw")
    for _ in range(5):
        assert cached.sent(A, B, "vm1") == "far1 far2 fw"
    assert cached.decided == 1
    cached.switch.remove_rule(cached.switch.rules[0])
    assert cached.sent(A, B, "vm1") == "vm2 far1 far2"


def test_a_station_that_moves_behind_a_service_is_seen_to_move_at_once() -> None:
    cached = Cached("from-mac 02:00:00:00:00:01 via fw")
    cached.switch.stations.learn(0, B, "vm2", 0.0)
    for link in "far1", "far1", "far2":
        assert cached.sent(A, B, link) == "fw"
        assert cached.sent(A, B, "fw", NET) == "vm2"
    assert cached.moves == [(A, "far1", "far2")]
    before = cached.decided
    assert cached.sent(A, B, "far2") == "fw"
    assert cached.sent(A, B, "fw", NET) == "vm2"
    assert cached.sent(A, B, "fw", NET) == "vm2"
    assert cached.decided <= before + 2


def test_connections_with_the_same_addresses_have_routes_of_their_own() -> None:
    cached = Cached("on vm1 keep-flows 10 via fw")
    cached.switch.stations.learn(0, A, "vm1", 0.0)
    cached.switch.stations.learn(0, B, "far1", 0.0)
    for _ in range(3):
        assert cached.sent(A, B, "vm1", port=1) == "far1"
        assert cached.sent(A, B, "vm1", port=2, flags=SYN) == "fw"
        assert cached.sent(A, B, "vm1", port=2) == "fw"
    (flows,) = cached.switch.flows.values()
    assert (flows.kept, flows.taken) == (1, 1)


@pytest.mark.parametrize("tags", [0, 5])
def test_a_frame_that_cannot_be_judged_goes_nowhere(tags: int) -> None:
    cached = Cached("on vm1 via fw")
    octets = bytes(10) + B + A + tags * bytes.fromhex("81000000") + b"\x08\x00" + bytes(40)
    route = cached.cache.find(LinkSide("vm1"), memoryview(octets), 1.0)
    assert (route.reason == "malformed") == (not route.targets) == (tags > 4)
