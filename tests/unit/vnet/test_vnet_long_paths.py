"""Services for pairs on a virtual clock: which pair gets one, how two daemons agree, and how it ends."""

import json
from contextlib import suppress
from types import SimpleNamespace

import pytest

from vtl_tools.common.errors import Malformed, SpecError
from vtl_tools.common.packet import build
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.tcp import ACK
from vtl_tools.services.vnet.adapt import AGAIN_S, BUSY_MBIT, BUSY_TICKS, TRIAL_S, LinkView
from vtl_tools.services.vnet.carried import CarryState
from vtl_tools.services.vnet.carry_message import CarryMessage
from vtl_tools.services.vnet.carrying import CARRIED_MAX, LOST_S, PORT, START_S, Carrying
from vtl_tools.services.vnet.fields import fields_of
from vtl_tools.services.vnet.long_paths import LongPaths, Trial, busy_mbit, reason
from vtl_tools.services.vnet.switch import LinkKind, LinkRole, VnetSwitch

OURS, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
LONG = LinkView("site2", True, 100.0, 0.0)


def segment(port: int = 5000, dst: str = "10.9.0.2") -> memoryview:
    frame = build.tcp(
        src_mac=OURS, dst_mac=THEIRS, src=ip("10.9.0.1"), dst=ip(dst), sport=port, dport=80, seq=1, flags=ACK
    )
    return memoryview(frame)


def busy(paths: LongPaths, link: LinkView, seconds: int, mbit: float = 8.0, connections: int = 1):
    """Return the pairs that so many seconds of traffic bring up."""
    found = []
    for now in range(1, seconds + 1):
        for port in range(connections):
            frame = segment(5000 + port)
            fields = fields_of(frame)
            assert fields is not None
            paths.note("two", fields, frame, round(mbit * 1e6 / 8 / connections))
        found += paths.tick({"two": link}, float(now))
    return found


@pytest.mark.parametrize("connections", [1, 4])
def test_a_busy_pair_on_a_long_link_is_found_with_the_rate_of_one_connection(connections: int) -> None:
    (path,) = busy(LongPaths(), LONG, BUSY_TICKS + 1, connections=connections)
    assert (path.link, str(path.pair), path.pair.our_mac) == ("two", "10.9.0.1 10.9.0.2", OURS)
    assert path.mbit == pytest.approx(8 / connections)
    assert "8.0 Mbit/s of TCP, round trip 100 ms" in path.why


@pytest.mark.parametrize(
    ("link", "mbit"),
    [
        (LONG, 0.5),
        (LONG._replace(up=False), 8.0),
        (LONG._replace(rtt_ms=None), 8.0),
        (LONG._replace(rtt_ms=30.0), 8.0),
        (LONG._replace(rtt_ms=5.0, loss_percent=1.0), 8.0),
    ],
)
def test_no_pair_is_found_that_is_idle_or_whose_link_is_good(link: LinkView, mbit: float) -> None:
    assert not busy(LongPaths(), link, 10, mbit)


def test_a_pair_is_busy_with_less_where_loss_lets_a_connection_have_less() -> None:
    lossy = LONG._replace(loss_percent=4.0)
    assert busy_mbit(lossy) == pytest.approx(0.353, rel=0.01)
    assert busy_mbit(LONG) == busy_mbit(LONG._replace(loss_percent=0.1)) == BUSY_MBIT
    assert not busy(LongPaths(), lossy, 10, 0.3)
    assert busy(LongPaths(), lossy, 10, 0.5)


def test_a_lossy_link_needs_be_less_long() -> None:
    assert "loss 0.20 %" in reason(LONG._replace(rtt_ms=12.0, loss_percent=0.2))


def test_a_burst_finds_nothing_and_a_pair_that_was_put_off_not_before() -> None:
    paths = LongPaths()
    assert not busy(paths, LONG, BUSY_TICKS)
    (path, *_) = busy(paths, LONG, 2 * BUSY_TICKS)
    paths.put_off(path.pair, 1000.0)
    assert not busy(paths, LONG, 2 * BUSY_TICKS)


def test_a_connection_that_has_slowed_down_is_compared_by_what_it_is_now() -> None:
    paths = LongPaths()
    (path,) = busy(paths, LONG, BUSY_TICKS + 1, 32.0)
    for now in range(10, 20):
        frame = segment()
        fields = fields_of(frame)
        assert fields is not None
        paths.note("two", fields, frame, 30_000)
        assert not paths.tick({"two": LONG}, float(now))
    assert paths.rate("two", path.pair) == pytest.approx(0.24)
    for now in range(20, 20 + BUSY_TICKS):
        paths.tick({"two": LONG}, float(now))
    assert paths.rate("two", path.pair) is None, "it has ended"
    paths.note("two", fields, frame, 30_000)
    assert paths.rate("two", path.pair) is None, "it has begun, and no second is counted yet"


def carried(trial: Trial, mbit: float, seconds: int, first: float = 1.0, flows: int = 1) -> list[str]:
    """Return the verdicts of so many seconds."""
    octets, found = trial._octets, []
    for n in range(seconds):
        octets += round(mbit * 1e6 / 8 * flows)
        trial.take(flows=flows, octets=octets, up=True, now=first + n)
        found.append(trial.verdict(first + n))
    return found


def test_a_service_pays_if_a_connection_in_it_is_faster() -> None:
    trial = Trial(8.0, 60.0, 0.0)
    assert set(carried(trial, 20.0, 30, flows=3)) == {""}
    assert trial.pays
    assert trial.after_mbit == pytest.approx(20.0)


def test_a_service_does_not_pay_if_no_connection_is_faster() -> None:
    trial = Trial(8.0, 60.0, 0.0)
    *before, verdict = carried(trial, 8.0, 7)
    assert (set(before), verdict) == ({""}, "did not pay: 8.0 Mbit/s a connection, and 8.0 without it")


def test_a_service_that_carries_nothing_or_reaches_nobody_is_undone() -> None:
    trial = Trial(8.0, 20.0, 0.0)
    assert not trial.verdict(TRIAL_S - 1)
    assert "not reached" in trial.verdict(TRIAL_S)
    trial = Trial(8.0, 20.0, 0.0)
    verdicts = carried(trial, 0.0, 25, flows=0)
    assert [verdicts.index("idle for 20 s"), verdicts[0]] == [19, ""]
    assert set(carried(Trial(8.0, 20.0, 0.0), 0.0, 25, flows=1)) == {""}, "a silent connection stays"


# --- two daemons


class Site:
    """A daemon: its switch, its services, and what it tells the other one."""

    def __init__(self, name: str, other: str, ours: bytes, theirs: bytes, *, is_on: bool = True) -> None:
        self.switch, self.is_on = VnetSwitch(), is_on
        self.switch.add_link("vm", LinkRole())
        self.switch.add_link("peer", LinkRole(LinkKind.VNET))
        self.switch.stations.learn(0, ours, "vm", 0.0)
        self.switch.stations.learn(0, theirs, "peer", 0.0)
        self.specs: dict[str, str] = {}
        self.takes: dict[str, bool] = {}
        self.events: list[tuple[str, str]] = []
        self.put_off: list[float] = []
        self.told: list[bytes] = []
        self.up, self.starts, self.secrets, self.is_reached = True, 1, [], True
        remote = SimpleNamespace(name=other)
        self.peers = {"peer": SimpleNamespace(remote=remote, where="127.0.0.1", up=True, tell=self.tell)}
        self.paths = LongPaths()
        self.paths.put_off = lambda pair, until: self.put_off.append(until)
        self.carrying = Carrying(
            name, b"k" * 32, self.switch, self, self,
            lambda action, link, why: self.events.append((action, why)), self.paths,
        )  # fmt: skip
        self.tick(0.0)

    def tell(self, kind: int, item: bytes) -> None:
        self.told.append(item)

    def add_link(self, name: str, spec: str, secret: bytes = b"") -> None:
        self.switch.add_link(name, LinkRole(LinkKind.SERVICE, 2))
        self.specs[name], self.secrets = spec, [*self.secrets, secret]

    def remove_link(self, name: str) -> None:
        self.switch.remove_link(name)

    def add_rule(self, text: str, position: int | None = None) -> None:
        from vtl_tools.services.vnet.rule import parse_vnet_rule

        self.switch.add_rule(parse_vnet_rule(text), position)
        self.carrying.order_rules()

    def remove_rule(self, text: str) -> None:
        self.switch.remove_rule(self.switch.find_rule(text))

    def service_state(self, name: str) -> tuple[bool, int]:
        return self.up, self.starts

    def ask(self, name: str, *, take: bool | None = None) -> None:
        if take is not None:
            self.takes[name] = take

    def tick(self, now: float, flows: int = 0, octets: int = 0) -> None:
        for name, one in self.carrying.carried.items():
            if one.state not in (CarryState.ASKED, CarryState.STARTING):
                answer = {
                    "taking": self.takes.get(name, False),
                    "up": self.is_reached,
                    "flows": flows,
                    "octets": octets,
                }
                self.carrying.on_answer(name, answer)
        self.carrying.tick(self.peers, now)

    @property
    def states(self) -> list[str]:
        return [str(one.state) for one in self.carrying.carried.values()]


def pair(**of_second: bool) -> list[Site]:
    return [Site("one", "two", OURS, THEIRS), Site("two", "one", THEIRS, OURS, **of_second)]


def exchange(sites: list[Site], now: float) -> None:
    for _ in range(4):
        for site, other in (sites, sites[::-1]):
            told, site.told = site.told, []
            for item in told:
                other.carrying.take("peer", item, now, is_on=other.is_on)


def found():
    return busy(LongPaths(), LONG, BUSY_TICKS + 1)[0]._replace(link="peer")


def begun(sites: list[Site]) -> None:
    sites[0].carrying.begin(found(), 0.0)
    for now in range(1, 6):
        exchange(sites, float(now))
        for site in sites:
            site.tick(float(now))
    exchange(sites, 5.0)


def test_two_daemons_agree_put_rules_before_connections_are_taken_and_drain_before_they_go() -> None:
    sites = pair()
    begun(sites)
    assert [site.states for site in sites] == [["carrying"]] * 2
    assert [site.takes for site in sites] == [{"udt-0": True}] * 2
    assert [rule.text for rule in sites[1].switch.rules] == [
        "from-mac 02:00:00:00:00:02 to-mac 02:00:00:00:00:01 from 10.9.0.2 to 10.9.0.1 protocol tcp via udt-0"
    ]
    assert f"peer=127.0.0.1:{PORT}&listen=127.0.0.1:{PORT}" in sites[0].specs["udt-0"]
    assert sites[0].secrets == sites[1].secrets != [b"k" * 32]
    for n in range(7):
        sites[0].tick(10.0 + n, flows=1, octets=1_000_000 * (n + 1))
    assert ("undo", "10.9.0.1 10.9.0.2: did not pay: 8.0 Mbit/s a connection, and 8.0 without it") in (
        sites[0].events
    )
    exchange(sites, 20.0)
    assert [site.states for site in sites] == [["draining"]] * 2
    sites[0].tick(21.0, flows=1)
    assert sites[0].states == ["draining"], "a connection is left"
    sites[0].tick(22.0)
    exchange(sites, 23.0)
    assert [(site.states, site.switch.rules) for site in sites] == [([], [])] * 2
    assert sites[0].put_off == [16.0 + AGAIN_S]


def test_a_daemon_without_adaptation_leaves_a_split_link_at_the_other() -> None:
    sites = pair(is_on=False)
    begun(sites)
    assert sites[0].specs == {"split-0": "service:split?uplink&on-demand"}
    assert (sites[0].states, sites[1].specs) == (["carrying"], {})
    assert "no vtl-udt: two has no --adapt on" in sites[0].events[0][1]


def test_so_does_one_that_does_not_answer() -> None:
    sites = pair()
    sites[0].carrying.begin(found(), 0.0)
    sites[0].tick(START_S)
    assert list(sites[0].specs) == ["split-0"]
    assert json.loads(sites[0].told[-1])["say"] == "end"


def test_so_does_one_whose_port_is_not_reached() -> None:
    sites = pair()
    sites[0].is_reached = False
    begun(sites)
    assert [site.states for site in sites] == [["ready"]] * 2
    sites[0].tick(5.0 + START_S)
    exchange(sites, 6.0 + START_S)
    assert [site.states for site in sites] == [["starting"], []]
    assert list(sites[0].carrying.carried) == ["split-0"]


def test_of_two_that_ask_at_once_one_is_asked() -> None:
    sites = pair()
    path = found()
    turned = path._replace(pair=type(path.pair)(path.pair.theirs, path.pair.ours, THEIRS, OURS))
    sites[1].carrying.begin(turned, 0.0)
    begun(sites)
    assert [len(site.carrying.carried) for site in sites] == [1, 1]
    assert [one.is_asker for site in sites for one in site.carrying.carried.values()] == [True, False]
    assert [site.states for site in sites] == [["carrying"]] * 2


def test_a_service_that_dies_goes_and_so_does_one_whose_asker_is_gone() -> None:
    sites = pair()
    begun(sites)
    sites[0].starts = 2
    sites[0].tick(6.0)
    assert sites[0].events[-1] == ("gone", "10.9.0.1 10.9.0.2: its service ended")
    sites[1].tick(LOST_S + 4)
    assert sites[1].states == ["carrying"]
    sites[1].tick(LOST_S + 6, flows=1)
    assert sites[1].states == ["carrying"], "a connection is left"
    sites[1].tick(LOST_S + 7)
    assert sites[1].states == []


def test_a_lost_message_is_repeated() -> None:
    sites = pair()
    sites[0].carrying.begin(found(), 0.0)
    for now in range(1, 20):
        if now % 3 == 1:
            exchange(sites, float(now))
        for site in sites:
            site.told.clear()
            site.tick(float(now))
    assert [site.states for site in sites] == [["carrying"]] * 2


def test_an_asker_that_started_again_finds_its_service_and_one_at_another_port_gets_another() -> None:
    sites = pair()
    begun(sites)
    again = Site("one", "two", OURS, THEIRS)
    sites = [again, sites[1]]
    begun(sites)
    assert [site.states for site in sites] == [["carrying"]] * 2
    assert not sites[1].events[1:], "it is the same service"
    again = Site("one", "two", OURS, THEIRS)
    again.carrying.port = 9000
    begun([again, sites[1]])
    assert [event[1].partition(": ")[2] for event in sites[1].events[1:]] == [
        "the other daemon begins anew", "8.0 Mbit/s of TCP, round trip 100 ms, loss 0.00 %",
    ]  # fmt: skip
    assert "peer=127.0.0.1:9000&" in sites[1].specs["udt-0"]


def test_a_daemon_has_few_services_started_in_a_minute() -> None:
    sites = pair()
    for _ in range(CARRIED_MAX + 3):
        begun(sites)
        for one in list(sites[0].carrying.carried.values()):
            sites[0].carrying._end(one, "", 5.0)
        exchange(sites, 5.0)
        assert not sites[1].states
    assert len(sites[1].secrets) == CARRIED_MAX


def test_an_answer_that_cannot_be_of_a_service_says_nothing() -> None:
    sites = pair()
    begun(sites)
    sites[0].carrying.on_answer("udt-0", {"taking": True, "up": True, "flows": "1", "octets": 1})
    sites[0].carrying.on_answer("udt-0", {"flows": 1})
    assert not sites[0].carrying.carried["udt-0"].answer


def test_a_service_that_hangs_is_asked_once() -> None:
    sites = pair()
    begun(sites)
    asked = []
    sites[0].ask = lambda name, take=None: asked.append(take)
    sites[0].carrying.tick(sites[0].peers, 6.0)
    sites[0].carrying.tick(sites[0].peers, 7.0)
    assert len(asked) <= 1


def test_a_rule_goes_behind_those_of_other_services_and_before_all_others() -> None:
    sites = pair()
    sites[0].add_link("fw", "")
    sites[0].add_rule("on vm via fw")
    sites[0].add_rule("to 10.9.0.0/16 via peer")
    begun(sites)
    assert [rule.via for rule in sites[0].switch.rules] == ["fw", "udt-0", "peer"]
    sites[0].add_link("later", "")
    sites[0].add_rule("from-mac 02:00:00:00:00:01 via later")
    assert [rule.via for rule in sites[0].switch.rules] == ["fw", "peer", "later", "udt-0"]


@pytest.mark.parametrize(
    "change",
    [
        {"ours": "10.9.0.77", "their_mac": "020000000077"},
        {"port": 70000},
        {"port": "7710"},
        {"port": True},
        {"their_mac": "01"},
        {"ours": "fd00::1"},
        {"ours": "fd00::1%a&to=::/0", "theirs": "fd00::2"},
        {"theirs": "fd00::1%a via peer", "ours": "fd00::2"},
        {"ours": "224.0.0.1"},
        {"say": 7},
        {"why": None, "say": "accept"},
    ],
)
def test_an_offer_that_cannot_be_starts_nothing(change: dict[str, object]) -> None:
    site = Site("two", "one", THEIRS, OURS)
    offer = {
        "say": "offer", "ours": "10.9.0.1", "theirs": "10.9.0.2", "our_mac": OURS.hex(),
        "their_mac": THEIRS.hex(), "port": PORT, "why": "busy",
    }  # fmt: skip
    with suppress(Malformed):  # as Adapting does
        site.carrying.take("peer", json.dumps({**offer, **change}).encode(), 0.0, is_on=True)
    assert not site.specs
    site.carrying.take("peer", json.dumps(offer).encode(), 0.0, is_on=True)
    assert list(site.specs) == ["udt-0"]


@pytest.mark.parametrize("mac", [OURS, THEIRS])
def test_a_service_for_a_station_that_has_moved_takes_no_connection(mac: bytes) -> None:
    sites = pair()
    begun(sites)
    sites[0].switch.add_link("third", LinkRole(LinkKind.VNET))
    sites[0].switch.stations.learn(0, mac, "third", 6.0)
    sites[0].tick(6.0, flows=1)
    exchange(sites, 6.0)
    assert [site.states for site in sites] == [["draining"]] * 2
    assert [site.takes for site in sites] == [{"udt-0": False}] * 2
    assert sites[0].events[-1][0] == "undo"
    assert not sites[0].put_off, "at its new place it may have another"


def test_an_offer_for_the_station_of_another_daemon_is_refused() -> None:
    sites = pair()
    sites[1].switch.add_link("third", LinkRole(LinkKind.VNET))
    sites[1].switch.stations.learn(0, OURS, "third", 0.0)
    begun(sites)
    assert list(sites[0].specs) == ["split-0"]
    assert not sites[1].specs
    sites = pair()
    sites[1].switch.stations.learn(0, OURS, "third", 0.0)
    sites[1].switch.shortcuts[0, OURS] = "third", "peer"
    begun(sites)
    assert list(sites[1].specs) == ["udt-0"], "unless it is by the shortcut to it"


def test_what_the_other_daemon_says_is_shown_only_if_it_can_be() -> None:
    told = CarryMessage("drain", found().pair, why="\x1b[2J")
    assert CarryMessage.of(told.to_octets()).why == ""
    told = told._replace(why="long " * 1000)
    assert CarryMessage.of(told.to_octets()).why == told.why[:200]


def test_there_are_few_services_at_a_time() -> None:
    site = Site("one", "two", OURS, THEIRS)
    for n in range(CARRIED_MAX + 3):
        path = found()
        site.carrying.begin(path._replace(pair=path.pair._replace(theirs=ip_of(n))), 0.0)
    assert len(site.carrying.carried) == CARRIED_MAX
    assert {one.port for one in site.carrying.carried.values()} == {PORT + 2 * n for n in range(CARRIED_MAX)}


def ip_of(n: int):
    from ipaddress import ip_address

    return ip_address(f"10.9.1.{n + 1}")


def test_a_service_that_cannot_be_started_is_told_of_and_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = pair()

    def refuse(name: str, spec: str, secret: bytes = b"") -> None:
        raise SpecError("no place")

    monkeypatch.setattr(sites[1], "add_link", refuse)
    begun(sites)
    assert sites[1].events == [("gone", "10.9.0.2 10.9.0.1: no place")]
    assert sites[0].specs == {"split-0": "service:split?uplink&on-demand"}
