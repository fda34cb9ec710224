"""`allow guest-basics`: a guest's DHCP, DNS and MLD pass, and nothing beside; DNS to its resolvers only."""

from ipaddress import ip_network

import pytest
from fw import OUT, PEER_MAC, VM, VM_MAC, rules
from fw_guest import (
    EVERYBODY,
    L2,
    LOCAL6,
    ROUTER,
    SERVER,
    TO_VM,
    ack,
    announced,
    claims,
    datagram,
    dhcp,
    solicit,
)

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.guest_net.dhcp_wire import DHCPMessage
from vtl_tools.common.packet import address, build, nd
from vtl_tools.common.rules.position import RuleError
from vtl_tools.common.rules.rule import Verdict
from vtl_tools.services.fw import answers, question
from vtl_tools.services.fw.explain import unreachable
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.presets import LINK_RULES
from vtl_tools.services.fw.saved_state import StateKeeper, recall
from vtl_tools.services.fw.stage import Firewall

TEXT = "allow guest-basics\ndeny any\n"
RESOLVER, OTHER = address.ip("10.0.0.53"), address.ip("192.0.2.66")
RESOLVER6, VM6 = address.ip("2001:db8::53"), address.ip("2001:db8::5")


class Guest:
    """A VM behind a firewall of its own; what it sends and is sent passes or not."""

    def __init__(self, text=TEXT, identity=True, now=0.0):
        self.identity = Identity() if identity is True else identity
        self.stage = Firewall(Policy(rules(text)), "fw.rules", identity=self.identity)
        self.passed = []
        for port in 0, 1:
            self.stage.out[port] = lambda batch, now: self.passed.extend(bytes(frame) for frame in batch)
        self.now = now

    def _pass(self, port, frame):
        self.passed.clear()
        self.stage.on_batch(port, Batch.of([frame]), self.now)
        return self.passed == [bytes(frame)]

    def sends(self, frame):
        return self._pass(0, frame)

    def gets(self, frame):
        return self._pass(1, frame)

    def asks(self, resolver, sport=5353, src=None, **more):
        src = src or (VM if len(resolver) == 4 else VM6)
        return self.sends(datagram(src, sport, 53, dst=resolver, **more))

    def leases(self, **answer):
        assert self.sends(dhcp(dhcp_wire.REQUEST))
        assert self.gets(named(**answer))

    def wake(self, now):
        self.now = now
        self.stage.wake(now)
        self.stage.settle(now)


def named(resolvers=RESOLVER, seconds=600, xid=7, dst=EVERYBODY, src=SERVER):
    """The acknowledgement of a lease that names resolvers."""
    options = {53: bytes((dhcp_wire.ACK,)), 51: seconds.to_bytes(4, "big"), 54: src, 6: resolvers}
    message = DHCPMessage(dhcp_wire.BOOTREPLY, xid, VM_MAC, yiaddr=VM, options=options)
    return datagram(src, 67, 68, message.encode(), dst=dst, **TO_VM)


def advertised(resolvers=RESOLVER6, lifetime=600, src=ROUTER, mac=PEER_MAC):
    """A router's advertisement that names resolvers."""
    option = build.nd_option(nd.RDNSS, bytes(2) + lifetime.to_bytes(4, "big") + resolvers)
    return build.nd_message(
        src_mac=mac, dst_mac=VM_MAC, src=src, dst=address.ALL_NODES, kind=nd.ROUTER_ADVERT, body=bytes(12),
        options=option,
    )  # fmt: skip


@pytest.fixture
def guest():
    return Guest()


def test_dhcp_works_and_names_the_resolver(guest):
    assert not guest.gets(named())
    guest.leases()
    assert guest.asks(RESOLVER)
    assert not guest.asks(OTHER)
    assert not guest.asks(RESOLVER, sport=9, dst_mac=PEER_MAC, src=OTHER)
    assert guest.identity.status()["resolvers"] == ["10.0.0.53"]


def test_only_what_is_asked_is_answered_at_the_port_of_dhcp(guest):
    assert not guest.gets(datagram(SERVER, 67, 68, dst=VM, **TO_VM))
    guest.leases()
    assert guest.gets(datagram(SERVER, 67, 68, dst=VM, **TO_VM))  # another server's offer may come
    assert not guest.gets(datagram(SERVER, 68, 68, dst=VM, **TO_VM))
    assert not guest.gets(datagram(SERVER, 67, 69, dst=VM, **TO_VM))
    guest.wake(3600.0)
    assert not guest.gets(datagram(OTHER, 67, 68, dst=VM, **TO_VM))


def test_a_lease_is_renewed_at_its_server_and_no_other(guest):
    guest.leases()
    renew = {"src": VM, "ciaddr": VM}
    assert guest.sends(dhcp(dhcp_wire.REQUEST, dst=SERVER, **renew))
    assert guest.gets(named(dst=VM))
    assert not guest.sends(dhcp(dhcp_wire.REQUEST, dst=OTHER, **renew))


def test_a_refusal_to_renew_reaches_the_guest_though_it_is_sent_to_all(guest):
    guest.leases(seconds=86_400)
    guest.wake(3600.0)
    refusal = {"kind": dhcp_wire.NAK, "leased": bytes(4), "xid": 9}
    assert not guest.gets(ack(**refusal))
    assert guest.sends(dhcp(dhcp_wire.REQUEST, src=VM, ciaddr=VM, dst=SERVER, xid=9))
    assert not guest.gets(ack(**refusal, src=OTHER))
    assert guest.gets(ack(**refusal))
    assert guest.identity.dhcp4.lease is None


def test_without_identity_dhcp_stays_on_the_link():
    guest = Guest(identity=None)
    assert guest.sends(dhcp(dhcp_wire.DISCOVER))
    assert guest.gets(named())
    assert not guest.sends(datagram(VM, 68, 67, dst=OTHER))
    assert not guest.asks(RESOLVER)


def test_a_resolver_counts_as_long_as_the_lease_that_named_it(guest):
    guest.leases(seconds=100)
    guest.wake(99.0)
    assert guest.asks(RESOLVER)
    guest.wake(101.0)
    guest.leases(seconds=100, resolvers=OTHER)
    assert guest.asks(OTHER)
    assert not guest.asks(RESOLVER, sport=999)


def test_an_address_of_an_option_may_have_its_resolver_by_dhcp():
    guest = Guest(identity=Identity(VM_MAC, (ip_network("10.0.0.5"),), (SERVER,)))
    guest.leases(dst=VM)
    assert guest.asks(RESOLVER)


def test_a_router_names_the_resolver_until_its_lifetime_ends(guest):
    assert guest.sends(solicit(LOCAL6))
    assert guest.gets(announced())
    assert guest.gets(advertised())
    assert claims_address(guest)
    assert guest.asks(RESOLVER6)
    assert guest.gets(advertised(lifetime=0))
    assert not guest.asks(RESOLVER6, sport=9)
    assert guest.gets(advertised(lifetime=5))
    assert guest.asks(RESOLVER6, sport=9)
    guest.wake(guest.now + 6.0)
    assert not guest.asks(RESOLVER6, sport=10)


def claims_address(guest):
    owns = claims(guest.identity, VM6, guest.now)
    guest.now += 2.0
    return owns


@pytest.mark.parametrize(
    "frame",
    [
        advertised(src=address.ip("2001:db8:9::1")),
        advertised(resolvers=bytes(16)),
        advertised(resolvers=address.ip("ff02::fb")),
        advertised(resolvers=b"\x20"),
        named(resolvers=RESOLVER, xid=8),
        named(resolvers=EVERYBODY),
        named(resolvers=RESOLVER, dst=OTHER),
    ],
    ids=["from afar", "of nobody", "of a group", "too short", "unasked", "of all", "to another"],
)
def test_nobody_else_names_a_resolver(guest, frame):
    assert guest.sends(dhcp(dhcp_wire.REQUEST))
    guest.gets(frame)
    assert guest.identity.status()["resolvers"] == []


def test_the_guest_names_no_resolver(guest):
    guest.sends(solicit(LOCAL6))
    mine = {"mac": VM_MAC, "src": LOCAL6}
    assert not guest.sends(advertised(**mine))
    assert not guest.sends(datagram(VM, 67, 68, DHCPMessage(2, 7, VM_MAC).encode(), dst=VM))
    assert guest.identity.status()["resolvers"] == []


def test_the_latest_eight_resolvers_are_known(guest):
    many = b"".join(address.ip(f"10.0.1.{i}") for i in range(1, 13))
    guest.leases(resolvers=many)
    assert len(guest.identity.resolvers.known) == 8
    assert guest.asks(address.ip("10.0.1.12"))
    assert not guest.asks(address.ip("10.0.1.1"))


def test_given_resolvers_are_the_only_ones():
    guest = Guest("allow guest-basics resolver 192.0.2.66, 2001:db8::53\ndeny any")
    guest.leases()
    assert guest.asks(OTHER)
    assert not guest.asks(RESOLVER)


def test_neither_other_ports_nor_other_protocols_are_open(guest):
    guest.leases()
    assert not guest.sends(datagram(VM, 9, 5353, dst=RESOLVER))
    assert not guest.sends(build.icmp_echo(**L2, src=VM, dst=RESOLVER, identifier=1, sequence=1))
    assert not guest.gets(datagram(RESOLVER, 53, 9, dst=VM, **TO_VM))
    assert guest.sends(build.tcp(**L2, src=VM, dst=RESOLVER, sport=1, dport=53, seq=1, flags=2))
    assert not guest.sends(build.tcp(**L2, src=VM, dst=RESOLVER, sport=1, dport=853, seq=1, flags=2))


def test_dhcpv6_is_answered_if_it_was_asked_from_the_link(guest):
    claims(guest.identity, LOCAL6)
    guest.now = 2.0
    servers = address.ip("ff02::1:2")
    back = {"src": ROUTER, "sport": 547, "dport": 546, "dst": LOCAL6, **TO_VM}
    assert not guest.gets(datagram(**back))
    solicited = b"\1\0\0\7" + b"\0\1\0\x0a" + b"\0\3\0\1" + VM_MAC
    assert guest.sends(datagram(LOCAL6, 546, 547, solicited, dst=servers))
    assert guest.gets(datagram(**back))
    assert not guest.gets(datagram(**{**back, "src": address.ip("2001:db8::1")}))
    reply = b"\7\0\0\7" + b"\0\1\0\x0a" + b"\0\3\0\1" + VM_MAC + b"\0\x17\0\x10" + RESOLVER6
    assert guest.gets(datagram(**back, payload=reply))
    assert guest.identity.status()["resolvers"] == ["2001:db8::53"]


@pytest.mark.parametrize("kind", [131, 132, 143])
def test_reports_of_multicast_listeners_stay_on_the_link(guest, kind):
    mine = {**L2, "src": bytes(16), "kind": kind, "body": bytes(20)}
    assert guest.sends(build.nd_message(**mine, dst=address.ip("ff02::16")))
    assert not guest.sends(build.nd_message(**mine, dst=address.ip("ff05::16")))
    assert not guest.sends(build.nd_message(**mine, dst=RESOLVER6))
    query = {**TO_VM, "kind": 130, "body": bytes(20), "dst": address.ALL_NODES}
    assert guest.gets(build.nd_message(**query, src=ROUTER))
    assert not guest.gets(build.nd_message(**query, src=RESOLVER6))


def test_resolvers_outlive_a_restart(guest):
    guest.leases()
    texts = []
    keeper = StateKeeper(guest.stage.tracker, guest.identity, "boot", texts.append)
    while not texts:
        keeper.wake(keeper.deadline())
    after = Guest()
    assert recall(texts[0], "boot", after.stage.tracker, after.identity, 0.0)
    assert after.asks(RESOLVER)
    with pytest.raises(ValueError, match="resolver"):
        recall(texts[0] + "resolver 255.255.255.255 9.0\n", "boot", after.stage.tracker, after.identity, 0.0)


def test_a_reload_spares_what_the_basics_allow(guest):
    guest.leases()
    assert guest.asks(RESOLVER)
    ended = [flow for flow in guest.stage.tracker.replace(Policy(rules(f"allow in arp\n{TEXT}"))) if flow]
    assert [str(flow) for flow in ended] == []
    assert guest.asks(RESOLVER)


def test_explain_shows_the_rules_and_knows_the_resolvers(guest):
    words = ["out", "udp", "10.0.0.5:5353", "10.0.0.53:53"]
    before = answers.explain(guest.stage.tracker, None, {"words": words}, "vmnet1", 0.0)
    assert before["verdict"] == "deny"
    why = "the destination is no resolver that DHCP or a router advertisement has named to the VM"
    assert {"rule": "fw.rules:1.8", "text": "allow out tcp, udp to @resolvers port 53", "why": why} in before[
        "steps"
    ]
    guest.leases()
    after = answers.explain(guest.stage.tracker, None, {"words": words}, "vmnet1", 0.0)
    assert (after["verdict"], after["rule"]) == ("allow", "fw.rules:1.8")
    offline = answers.explained(guest.stage.tracker.policy, question.read(words))
    assert offline["verdict"] == "deny"


def test_the_rules_that_it_stands_for_can_be_written_instead():
    for text in TEXT, "allow guest-basics resolver 192.0.2.66, 2001:db8::53\ndeny any":
        expanded = rules(text).rules
        assert {str(rule.place) for rule in expanded[:-1]} == {"fw.rules:1:1"}
        again = rules("\n".join(rule.text for rule in expanded)).rules
        for one, other in zip(expanded, again, strict=True):
            for name in "verdict", "directions", "protocols", "sport", "dport", "icmp", "vlan", "roles":
                assert getattr(one, name) == getattr(other, name), one.text
            assert (str(one.src), str(one.dst)) == (str(other.src), str(other.dst))
    assert len(expanded) == len(LINK_RULES) + 2


def test_every_rule_of_it_allows_and_reaches_the_link_or_a_resolver_only():
    for rule in rules(TEXT).rules[:-1]:
        assert rule.verdict is Verdict.ALLOW
        assert len(rule.directions) == 1
        if rule.directions == (OUT,):
            link = rule.dst is not None and all(
                span[0][:2] == b"\xff\x02" or span == (EVERYBODY, EVERYBODY)
                for span in (*rule.dst.v4, *rule.dst.v6)
            )
            assert link or rule.roles is not None, rule.text
        else:
            link = rule.src is not None and str(rule.src) == "fe80::/10"
            assert link or rule.roles is not None, rule.text


def test_each_rule_of_it_has_a_counter_of_its_own(guest):
    guest.leases()
    assert guest.asks(RESOLVER)
    counts = guest.stage.status(guest.now)["rules"]
    assert [row["packets"] for key, row in counts.items() if key.startswith("fw.rules:1.")] == [1, 1, 1]
    flows = answers.flows(guest.stage.tracker, {"rule": "1"}, guest.now)["flows"]
    assert {flow["rule"] for flow in flows} == {"fw.rules:1.1", "fw.rules:1.3", "fw.rules:1.8"}
    assert len(answers.flows(guest.stage.tracker, {"rule": "fw.rules:1.8"}, guest.now)["flows"]) == 1


def test_a_preset_is_never_reached_if_none_of_its_rules_is():
    some = Policy(rules("allow out udp\nallow guest-basics\ndeny any"))
    assert unreachable(some) == []
    none = Policy(rules("allow guest-basics\nallow guest-basics\ndeny any"))
    (warning,) = map(str, unreachable(none))
    assert warning == "fw.rules:2:1: is never reached: fw.rules:1 matches all that it does"


@pytest.mark.parametrize("word", ["@resolvers", "@dhcp-servers"])
def test_a_built_in_set_stands_alone_behind_to(word):
    assert rules(f"allow out tcp to {word}\ndeny").rules[0].roles
    assert rules(f"deny out to {word} log\ndeny").rules[0].roles
    for text in f"allow in tcp to {word}", f"allow tcp to {word}", f"allow out from {word}":
        with pytest.raises(RuleError, match="expected"):
            rules(f"{text}\ndeny")
    with pytest.raises(RuleError, match="is built in"):
        rules(f"set {word} = 192.0.2.1\ndeny")


def test_no_role_hides_another():
    for text in "allow in udp to @resolvers asked", "allow in udp asked to @resolvers":
        with pytest.raises(RuleError, match="expected 'out' before a set"):
            rules(f"{text}\ndeny")


def test_asked_is_for_datagrams_to_the_vm():
    assert rules("allow in udp asked\ndeny").rules[0].roles
    for text in "allow out udp asked", "allow in asked", "allow in tcp asked", "allow udp asked":
        with pytest.raises(RuleError, match="expected 'in udp' before 'asked'"):
            rules(f"{text}\ndeny")
