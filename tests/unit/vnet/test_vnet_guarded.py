"""Any frames at all: what holds of a VM behind a service, whoever sends what."""

from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.services.vnet.fields import FrameFields
from vtl_tools.services.vnet.rule import parse_vnet_rule
from vtl_tools.services.vnet.service_flows import FlowSegment
from vtl_tools.services.vnet.switch import NET, VM, LinkKind, LinkRole, LinkSide, VnetSwitch

MACS = [bytes.fromhex(f"02000000000{n}") for n in range(1, 5)]
PLACES = [
    LinkSide("vm1"), LinkSide("vm2"), LinkSide("far1"), LinkSide("far2"), LinkSide("fw", VM),
    LinkSide("fw", NET), LinkSide("tor"),
]  # fmt: skip
FRAMES = st.tuples(
    st.sampled_from(PLACES), st.sampled_from(MACS), st.sampled_from([*MACS, b"\xff" * 6]),
    st.sampled_from([6, 17, -1]), st.sampled_from([0, 2, 16, 17, 18, 4]), st.integers(0, 3),
)  # fmt: skip


def made(*rules: str) -> VnetSwitch:
    switch = VnetSwitch()
    for name in "vm1", "vm2":
        switch.add_link(name, LinkRole())
    for name in "far1", "far2":
        switch.add_link(name, LinkRole(LinkKind.VNET))
    switch.add_link("fw", LinkRole(LinkKind.SERVICE, 2))
    switch.add_link("tor", LinkRole(LinkKind.SERVICE, ends_tcp=True))
    for rule in rules:
        switch.add_rule(parse_vnet_rule(rule))
    return switch


Sent = tuple[LinkSide, bytes, bytes, int, int, int]


def sent(switch: VnetSwitch, frame: Sent, now: float) -> set[LinkSide]:
    place, src, dst, protocol, flags, port = frame
    fields = FrameFields(dst, src, 0, protocol, b"\x0a\x09\x00" + src[-1:], b"\x0a\x09\x00" + dst[-1:])
    ends = sorted((src, dst))
    segment = FlowSegment(b"".join(ends) + bytes((port,)), b"".join(ends), int(ends[0] != src), flags)
    route = switch.decide(fields, place, now, segment if protocol == 6 else None)
    for flows in route.tracked:
        flows.note(segment, now)
    assert len(set(route.targets)) == len(route.targets)
    assert bool(route.targets) != bool(route.reason)
    return set(route.targets)


@given(st.lists(FRAMES, max_size=60))
def test_nothing_passes_a_firewall_by_and_no_address_is_taken_before_it_has_judged(
    frames: list[Sent],
) -> None:
    switch = made("on vm1 via fw")
    entered: set[bytes] = set()
    for now, frame in enumerate(frames):
        place, src = frame[:2]
        before = {mac: switch.stations.link_of(mac) for mac in MACS}
        targets = sent(switch, frame, float(now))
        if place == LinkSide("vm1"):
            entered.add(src)
            assert targets == {LinkSide("fw", VM)}
        assert place.link == "fw" or LinkSide("vm1") not in targets
        moved = {mac for mac in MACS if switch.stations.link_of(mac) != before[mac]}
        assert moved <= {src}
        if moved and switch.stations.link_of(src) == "vm1":
            assert place == LinkSide("fw", NET)
            assert src in entered


@given(st.lists(FRAMES, max_size=60))
def test_a_vm_behind_tor_reaches_nothing_else_and_hears_nothing_else(frames: list[Sent]) -> None:
    switch = made("on vm1 via tor", "on vm2 via fw")
    for now, frame in enumerate(frames):
        targets = sent(switch, frame, float(now))
        if frame[0] == LinkSide("vm1"):
            assert targets == {LinkSide("tor")}
        assert frame[0] == LinkSide("tor") or LinkSide("vm1") not in targets


@given(st.lists(FRAMES, max_size=60))
def test_once_the_time_is_over_no_connection_finds_a_way_around(frames: list[Sent]) -> None:
    switch = made("on vm1 protocol tcp keep-flows 10 via tor")
    switch.expire(0.0)
    for now, frame in enumerate(frames):
        targets = sent(switch, frame, 10.0 + now)
        if frame[0] == LinkSide("vm1") and frame[3] == 6:
            assert targets == {LinkSide("tor")}


@given(st.lists(FRAMES, max_size=60), st.integers(0, 60))
def test_rules_that_come_and_go_leave_nothing_behind(frames: list[Sent], at: int) -> None:
    switch = made("on vm1 via fw", "from-mac 02:00:00:00:00:02 protocol tcp keep-flows 5 via tor")
    for now, frame in enumerate(frames):
        if now == at:
            for rule in list(switch.rules):
                switch.remove_rule(rule, 20.0 + now)
        sent(switch, frame, float(now))
        switch.expire(float(now))
    for rule in list(switch.rules):
        switch.remove_rule(rule)
    for name in list(switch.links):
        switch.remove_link(name)
    assert (len(switch.claims), len(switch.stations), switch.flows) == (0, 0, {})
