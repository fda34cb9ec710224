"""Which ports and sources are wormholed, and how much."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import address
from vtl_tools.common.packet.ip import TCP, UDP
from vtl_tools.services.vortex.limits import DAY_S, Allowance, Quota, Sources
from vtl_tools.services.vortex.ports import PortUse, parse_ranges
from vtl_tools.services.vortex.tap import RANGES_MAX, coarse


def test_ranges_are_sorted_and_joined() -> None:
    assert parse_ranges("8080, 1-5,6-10,3-7") == [(1, 10), (8080, 8080)]


@pytest.mark.parametrize("text", ["", "0", "7-3", "65536", "a", "1-2-3", "1,,2"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_ranges(text)


@given(st.sets(st.integers(1, 60)), st.sets(st.integers(1, 60)))
def test_open_ranges_are_the_scope_less_what_is_used(scope: set[int], used: set[int]) -> None:
    ports = PortUse([(port, port) for port in sorted(scope)])
    for port in used:
        assert ports.use((TCP, port)) is (port in scope)
    found = [p for low, high in ports.open_ranges(TCP) for p in range(low, high + 1)]
    assert found == sorted(scope - used)
    assert [p for low, _ in ports.open_ranges(UDP) for p in [low]] == sorted(scope)
    expected = sorted((TCP, port) for port in scope & used)
    assert ports.free([], 3) + ports.free([], 60) == expected
    assert all(ports.is_open((TCP, port)) for port in scope)


def test_many_ranges_become_few_that_cover_them() -> None:
    ranges = [(port, port) for port in range(1, 2001, 2)]
    few = coarse(ranges)
    assert len(few) <= RANGES_MAX
    assert all(any(low <= port <= high for low, high in few) for port, _ in ranges)


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("8.8.8.8", True), ("2001:4860::8", True), ("10.1.2.3", False), ("192.168.7.1", False),
        ("127.0.0.1", False),
        ("169.254.1.1", False), ("224.0.0.1", False), ("255.255.255.255", False), ("0.0.0.0", False),
        ("fe80::1", False), ("fd00::1", False), ("::1", False), ("ff02::1", False), ("::ffff:8.8.8.8", False),
        ("203.0.113.77", False),
    ],
)  # fmt: skip
def test_private_sources_and_neighbours_are_excluded(text: str, is_allowed: bool) -> None:
    sources = Sources()
    assert sources.set_neighbours((ip_network("203.0.113.0/24"),))
    assert sources.allows(address.ip(text)) is is_allowed
    assert not sources.set_neighbours((ip_network("203.0.113.0/24"),))


def test_private_sources_that_are_asked_for_are_allowed_but_never_this_host_or_a_group() -> None:
    sources = Sources(allow_private=True)
    sources.set_neighbours((ip_network("203.0.113.0/24"),))
    assert sources.allows(address.ip("10.0.0.1"))
    assert sources.allows(address.ip("203.0.113.7"))
    for text in "127.0.0.1", "::1", "169.254.0.1", "fe80::1", "224.0.0.1":
        assert not sources.allows(address.ip(text)), text


def test_a_rate_lets_a_burst_pass_and_fills_again() -> None:
    allowance = Allowance(8e6)
    assert allowance.take(1_000_000, 10.0)
    assert not allowance.take(1000, 10.0)
    assert not allowance.take(1001, 10.001)
    assert allowance.take(1000, 10.002)
    assert Allowance(0).take(1 << 40, 0.0)


def test_a_quota_is_of_a_day() -> None:
    quota = Quota(1000)
    assert quota.take(1000, 5.0)
    assert not quota.take(1, 5.0 + DAY_S - 1)
    assert quota.take(1, 5.0 + DAY_S)
