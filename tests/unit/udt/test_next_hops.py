"""A conversation between the search for a neighbour and the stations on a link."""

import pytest

from vtl_tools.common.guest_net.hops import ASK_S, FRESH_S, KNOWN_MAX, QUESTIONS_MAX, WAITING_MAX, NextHops
from vtl_tools.common.packet import address, arp, build
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.packet import Packet

OURS, THEIRS, OTHER = (address.mac(f"02:00:00:00:00:0{n}") for n in (1, 2, 3))


class Link:
    """A search, what it sends, and what it finds."""

    def __init__(self):
        self.sent, self.found = [], []
        self.hops = NextHops(OURS, lambda frame, now: self.sent.append(Packet.at(frame)))

    def find(self, target, asker="10.1.0.5", now=0.0):
        self.hops.find(ip(target), ip(asker), lambda mac, at: self.found.append((mac, at)), now)

    def hear(self, frame, now=0.0):
        self.hops.hear(Packet.at(frame), now)


@pytest.fixture
def link():
    return Link()


def announced(spa, mac=THEIRS, sha=None, oper=arp.REPLY):
    return build.arp(src_mac=mac, dst_mac=OURS, oper=oper, sha=sha or mac, spa=ip(spa), tpa=ip("10.1.0.5"))


def advertised(target, mac=THEIRS):
    return build.neighbor_advert(
        src_mac=mac, dst_mac=OURS, src=ip(target), dst=address.link_local(OURS), target=ip(target), lladdr=mac
    )


def test_a_neighbour_that_answers_is_found_and_not_asked_again_while_it_is_fresh(link):
    link.find("10.2.0.5")
    (asked,) = link.sent
    assert (asked.eth.dst, asked.eth.src) == (address.BROADCAST, OURS)
    assert (asked.arp.spa, asked.arp.tpa, asked.arp.sha) == (ip("10.1.0.5"), ip("10.2.0.5"), OURS)
    link.hear(announced("10.2.0.5"), 0.1)
    assert link.found == [(THEIRS, 0.1)]
    assert link.hops.deadline() is None
    link.find("10.2.0.5", now=FRESH_S)
    assert link.found[1:] == [(THEIRS, FRESH_S)]
    link.find("10.2.0.5", now=FRESH_S + 0.2)
    assert len(link.sent) == 2


def test_a_neighbour_of_ipv6_is_solicited_from_our_link_local_address(link):
    link.find("fd02::5", "fd01::5")
    (asked,) = link.sent
    assert asked.ipv6.src == address.link_local(OURS)
    assert asked.ipv6.dst == address.solicited_node(ip("fd02::5"))
    assert asked.nd.target == ip("fd02::5")
    assert asked.verify()
    link.hear(advertised("fd02::5"), 0.1)
    assert link.found == [(THEIRS, 0.1)]


def test_nobody_answers_three_questions(link):
    link.find("10.2.0.5")
    link.find("10.2.0.5")
    for _ in range(2):
        link.hops.wake(link.hops.deadline())
    assert (len(link.sent), link.found) == (3, [])
    link.hops.wake(link.hops.deadline() - 0.01)
    assert link.found == []
    link.hops.wake(3 * ASK_S)
    assert link.found == [(None, 3 * ASK_S)] * 2
    assert link.hops.deadline() is None


def test_a_neighbour_that_speaks_of_itself_is_known(link):
    link.hear(announced("10.2.0.5", oper=arp.REQUEST))
    link.find("10.2.0.5", now=1.0)
    assert (link.found, link.sent) == ([(THEIRS, 1.0)], [])


def test_claims_that_do_not_fit_are_not_believed(link):
    link.hear(announced("10.2.0.5", sha=OTHER))  # another's address in the message
    link.hear(announced("10.2.0.6", mac=OURS))  # our own
    link.hear(announced("0.0.0.0", oper=arp.REQUEST))  # a probe
    broken = advertised("fd02::5")
    broken[-1] ^= 1
    link.hear(broken)
    for target in "10.2.0.5", "10.2.0.6":
        link.find(target)
    link.find("fd02::5", "fd01::5")
    assert link.found == []


def test_an_address_that_moves_to_another_station_is_followed(link):
    link.hear(announced("10.2.0.5"))
    link.hear(announced("10.2.0.5", mac=OTHER), 1.0)
    link.find("10.2.0.5", now=2.0)
    assert link.found == [(OTHER, 2.0)]


def test_tables_are_bounded(link):
    for number in range(KNOWN_MAX + 10):
        link.hear(announced(f"10.7.{number >> 8}.{number & 255}" if number else "10.7.200.1"))
    link.find("10.7.200.1", now=1.0)
    assert link.found == []  # the oldest was forgotten
    for number in range(QUESTIONS_MAX + 5):
        link.find(f"10.8.{number >> 8}.{number & 255}", now=1.0)
    assert link.found == [(None, 1.0)] * 6


def test_those_who_wait_for_a_mute_neighbour_are_bounded(link):
    for _ in range(WAITING_MAX + 3):
        link.find("10.2.0.5")
    assert link.found == [(None, 0.0)] * 3
    link.hear(announced("10.2.0.5"), 0.5)
    assert len(link.found) == WAITING_MAX + 3
    link.find("10.2.0.6", now=1.0)
    assert len(link.found) == WAITING_MAX + 3  # it waits, as the others do no longer
