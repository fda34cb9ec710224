"""ARP and neighbour discovery under `deny any`: what a guest is reached by passes, and no data with it."""

import pytest
from fw import IN, OUT, PEER6, PEER_MAC, VM, VM6, VM_MAC, Wire
from fw_guest import L2, LOCAL6, ROUTER

from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.fw.answers import explained
from vtl_tools.services.fw.neighbours import NEIGHBOURS_MAX
from vtl_tools.services.fw.question import read

SOLICIT, ADVERT, ROUTERS, ROUTER_ADVERT = 135, 136, 133, 134
ON_LINK = address.ip("2001:db8::7")
GROUP = address.solicited_node(ON_LINK)
LLADDR, TARGET, NONCE = build.nd_option(1, VM_MAC), build.nd_option(2, VM_MAC), build.nd_option(14, b"nonce!")


@pytest.fixture
def wire():
    return Wire("deny any")


def said(kind, dst=GROUP, options=b"", src=VM6, target=None, word=bytes(4), **more):
    """A message of the VM, as it is to be but for what is said."""
    body = word if kind in (ROUTERS, ROUTER_ADVERT) else word + (ON_LINK if target is None else target)
    return build.nd_message(
        **{**L2, **more}, src=src, dst=dst, kind=kind, body=body.ljust(12, b"\0") if kind == 134 else body,
        options=options,
    )  # fmt: skip


def heard(wire, src):
    """Somebody of the link asks for the VM."""
    macs = {"src_mac": PEER_MAC, "dst_mac": VM_MAC}
    frame = build.nd_message(**macs, src=src, dst=address.solicited_node(VM6), kind=135, body=bytes(4) + VM6)
    assert wire.raw(frame, IN) == "+rule"


@pytest.mark.parametrize(
    "frame",
    [
        said(SOLICIT), said(SOLICIT, options=LLADDR), said(SOLICIT, options=LLADDR + NONCE),
        said(SOLICIT, options=NONCE, src=bytes(16)), said(SOLICIT, ROUTER), said(ADVERT, address.ALL_NODES),
        said(ADVERT, ROUTER, TARGET, word=b"\xe0\0\0\0"), said(ROUTERS, address.ALL_ROUTERS, LLADDR),
        said(ROUTERS, address.ALL_ROUTERS, src=bytes(16)),
        build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM), build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM, oper=2),
        bytes(build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM)).ljust(70, b"\0"),
    ],
)  # fmt: skip
def test_what_a_guest_is_reached_by_passes(wire, frame):
    assert wire.raw(frame, OUT) == "+rule"


def hop(frame, limit):
    Packet.at(frame).ip.ttl = limit
    return frame


def behind(frame):
    """The same behind destination options."""
    pkt = Packet.at(bytearray(frame))
    data = bytes((58, 1, 1, 12)) + b"secretsecret" + bytes(frame[pkt.ip.payload_off :])
    return bytes(frame[:24]) + build.ip_header(VM6, pkt.ip.dst, 60, len(data), ttl=255) + data


ATTACKS = {
    "solicits the Internet": said(SOLICIT, PEER6),
    "solicits the Internet about it": said(SOLICIT, PEER6, NONCE, target=PEER6),
    "advertises to the Internet": said(ADVERT, PEER6),
    "asks the Internet for routers": said(ROUTERS, PEER6),
    "speaks to an organization": said(SOLICIT, address.ip("ff08::1")),
    "an option nobody knows": said(SOLICIT, options=build.nd_option(253, b"secret")),
    "a long nonce": said(SOLICIT, options=build.nd_option(14, b"secret" * 200 + b"xx")),
    "a long address": said(SOLICIT, options=build.nd_option(1, VM_MAC + b"secret12")),
    "two nonces": said(SOLICIT, options=NONCE + build.nd_option(14, b"secret")),
    "a nonce in an advertisement": said(ADVERT, address.ALL_NODES, NONCE),
    "another's option": said(SOLICIT, options=TARGET),
    "reserved bits": said(SOLICIT, word=b"secr"),
    "reserved bits of an advertisement": said(ADVERT, address.ALL_NODES, word=b"\x60\0\0\1"),
    "reserved bits to routers": said(ROUTERS, address.ALL_ROUTERS, word=b"secr"),
    "another hop limit": hop(said(SOLICIT), 254),
    "behind options": behind(said(SOLICIT)),
    "behind its end": bytes(said(SOLICIT)) + b"secret",
    "a router": said(ROUTER_ADVERT, address.ALL_NODES, src=LOCAL6),
    "another question of ARP": build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM, oper=0x5345),
    "ARP behind its end": bytes(build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM)).ljust(71, b"s"),
}


@pytest.mark.parametrize("frame", ATTACKS.values(), ids=ATTACKS)
def test_deny_lets_no_data_out_by_neighbour_discovery(wire, frame):
    assert wire.raw(frame, OUT) == "rule"


@pytest.mark.parametrize("frame", ATTACKS.values(), ids=ATTACKS)
def test_what_is_no_common_neighbour_discovery_is_for_rules_to_judge(frame):
    assert Wire("allow any").raw(frame, OUT) == "+rule"


def test_a_neighbour_with_a_global_address_is_spoken_to_once_it_was_heard(wire):
    direct, answer = said(SOLICIT, ON_LINK), said(ADVERT, ON_LINK, TARGET)
    assert [wire.raw(frame, OUT) for frame in (direct, answer)] == ["rule", "rule"]
    heard(wire, ON_LINK)
    assert [wire.raw(frame, OUT) for frame in (direct, answer)] == ["+rule", "+rule"]
    for number in range(NEIGHBOURS_MAX):
        heard(wire, ON_LINK[:-3] + b"\1" + number.to_bytes(2, "big"))
    assert wire.raw(direct, OUT) == "rule"


def test_who_is_not_on_the_link_cannot_say_that_it_is(wire):
    macs = {"src_mac": PEER_MAC, "dst_mac": VM_MAC}
    routed = build.nd_message(**macs, src=PEER6, dst=VM6, kind=135, body=bytes(4) + VM6)
    assert wire.raw(hop(routed, 254), IN) == "rule"
    assert wire.raw(said(SOLICIT, PEER6), OUT) == "rule"


def test_the_network_may_say_what_it_likes(wire):
    macs = {"src_mac": PEER_MAC, "dst_mac": VM_MAC}
    option = build.nd_option(24, bytes(14))
    advert = build.nd_message(
        **macs, src=ROUTER, dst=address.ALL_NODES, kind=134, body=bytes(12), options=option
    )
    question = build.arp(**macs, sha=PEER_MAC, spa=VM, tpa=VM)
    assert wire.raw(advert, IN) == "+rule"
    assert wire.raw(bytes(question).ljust(100, b"x"), IN) == "+rule"


def test_a_vlan_has_neighbours_where_a_rule_lets_anything_pass():
    """Else a tag would be a way to a network that no rule names."""
    frames = [build.arp(**L2, sha=VM_MAC, spa=VM, tpa=VM, vlan=vlan) for vlan in (None, 7, 8, (7, 8))]
    frames += [said(SOLICIT, vlan=vlan) for vlan in (None, 7, 8, (7, 8))]
    for text, passes in (
        ("deny any", [1, 0, 0, 0]),
        ("allow in tcp port 22 vlan 7\ndeny any", [1, 1, 0, 0]),
        ("deny out vlan 7\nallow any vlan any\ndeny", [1, 1, 1, 1]),
        ("deny any vlan 7\nallow udp\ndeny", [1, 0, 0, 0]),
        ("allow udp vlan any\ndeny", [1, 1, 1, 1]),
        ("allow out arp vlan 8\nallow out icmp6 type neighbour-solicitation vlan 8\ndeny", [1, 0, 1, 0]),
    ):
        wire = Wire(text)
        assert [wire.raw(frame, OUT) == "+rule" for frame in frames] == 2 * [bool(n) for n in passes], text


def test_explain_says_the_same():
    policy = Wire("deny any").tracker.policy
    for words, verdict in (
        ("out arp", "allow"), ("out arp vlan 7", "deny"),
        ("in icmp 2001:db8::7 2001:db8::5 type 135", "allow"),
        ("out icmp 2001:db8::5 ff02::1:ff00:7 type 135", "allow"),
        ("out icmp 2001:db8::5 2001:db8:1::1 type 135", "deny"),
        ("out icmp fe80::5 ff02::1 type 134", "deny"),
    ):  # fmt: skip
        assert explained(policy, read(words.split()))["verdict"] == verdict, words
