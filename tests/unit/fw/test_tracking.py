"""Connections as conversations: what belongs passes, what does not is dropped and says why."""

import pytest
from fw import IN, OUT, PEER, PEER6, PEER_MAC, VM, VM6, VM_MAC, Wire, ends, policy, segment

from vtl_tools.common.packet import address, build, icmp, ip, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.services.fw.flow import pack, unpack
from vtl_tools.services.fw.saved_state import StateKeeper, recall

GROUP = address.solicited_node(PEER6)


def test_a_connection_that_a_rule_allows_passes_both_ways(wire):
    wire.open()
    assert wire.out("P.", 1, 1, b"GET /") == "+known"
    assert wire.come(".", 1, 6) == "+known"
    assert wire.come("P.", 1, 6, b"200 OK") == "+known"
    assert wire.out("F.", 6, 7) == "+known"
    assert wire.come("F.", 7, 7) == "+known"
    assert wire.out(".", 7, 8) == "+known"


def test_what_no_rule_allows_does_not_begin(wire):
    assert wire.out("S", 0, peer=81) == "rule"
    assert wire.come("S", 0) == "rule"
    assert wire.udp(IN) == "rule"
    assert len(wire.tracker.flows) == 0


def test_an_answer_without_a_question_is_dropped(wire):
    assert wire.come("S.", 0, 1) == "rule"
    assert wire.come(".", 1, 1) == "rule"
    assert wire.out(".", 1, 1) == "tcp-not-open"
    assert wire.out("R", 1) == "tcp-not-open"


def test_a_segment_outside_the_window_does_not_match(wire):
    wire.open()
    assert wire.come(".", 9000, 1, b"x") == "tcp-out-of-window"
    assert wire.come(".", 1, 5000) == "tcp-ack-of-unsent"
    assert wire.out(".", 1 - 100_000, 1, b"x") == "tcp-out-of-window"
    assert wire.come(".", 1, 1, b"x") == "+known"


def test_a_reset_must_be_in_the_window_and_ends_the_connection(wire):
    wire.open()
    assert wire.come("R", 50_000) == "tcp-out-of-window"
    assert wire.come("R", 100) == "+known"  # in it: the VM challenges it (RFC 5961)
    assert wire.out(".", 1, 1) == "+known"
    assert wire.come("R", 1) == "+known"
    assert wire.come(".", 1, 1, b"x") == "tcp-not-open"
    ended = wire.wait(10.0 + 1)
    assert [str(flow) for flow in ended] == ["out tcp 10.0.0.5 40000 to 192.0.2.1 80"]


def test_the_other_side_cannot_reopen_a_connection_that_ended(wire):
    wire.open()
    assert wire.out("R", 1) == "+known"
    assert wire.come("S", 9000) == "rule"  # the rules of `in` are asked
    assert wire.out("S", 5000) == "+new"


def test_a_syn_within_a_connection_passes_only_from_who_made_it(wire):
    wire.open()
    assert wire.out("S", 90_000) == "+known"  # to be challenged
    assert wire.come("S", 90_000) == "tcp-unexpected-syn"
    assert wire.come(".", 1, 1, b"x") == "+known"


def test_a_server_that_remembers_an_older_connection_can_be_told(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.come(".", 500, 70_000) == "+known"  # its challenge
    assert wire.come(".", 500, 70_000, b"data") == "tcp-not-open"
    assert wire.out("R", 70_000) == "+known"


def test_a_simultaneous_open_is_one_connection(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.come("S", 0) == "+known"
    assert wire.out("S.", 0, 1) == "+known"
    assert wire.come("S.", 0, 1) == "+known"
    assert wire.out("P.", 1, 1, b"x") == "+known"


def test_windows_are_scaled_as_both_syns_agreed(wire):
    scale = tcp.encode_options(mss=1460, window_scale=7)
    assert wire.out("S", 0, options=scale) == "+new"
    assert wire.come("S.", 0, 1, options=scale) == "+known"
    assert wire.out(".", 1, 1, window=1000) == "+known"  # 128,000 octets
    assert wire.come(".", 120_001, 1, b"x") == "+known"
    assert wire.come(".", 140_000, 1, b"x") == "tcp-out-of-window"


def restarted(before, text):
    """Another firewall, which knows what the one before has remembered."""
    told = []
    keeper = StateKeeper(before.tracker, None, "boot", told.append)
    keeper.wake(before.now)
    keeper.close()
    after = Wire(text)
    assert recall(told[-1], "boot", after.tracker, None, after.now)
    return after


@pytest.mark.parametrize("first", [OUT, IN])
def test_a_connection_of_before_a_restart_goes_on_whoever_speaks_first(wire, first):
    wire.open()
    after = restarted(wire, "allow out tcp port 80\nreject")
    says = {
        OUT: lambda: after.out("P.", 500, 900, b"hello"),
        IN: lambda: after.come("P.", 900, 500, b"hello"),
    }
    assert says[first]() == "+known"
    assert says[first.other]() == "+known"
    assert after.come(".", 2_000_000_000, 505, b"x") == "tcp-out-of-window"
    assert after.out(".", 500, 900, vm=40001) == "tcp-not-open"
    assert after.come(".", 900, 500, vm=40001) == "rule"


def test_after_a_restart_the_new_rules_hold_for_connections_of_before(wire):
    wire.open()
    after = restarted(wire, "allow out tcp port 443\ndeny")
    assert after.out(".", 500, 900) == "rule"
    assert after.come(".", 900, 500) == "rule"


def test_connections_of_before_are_waited_for_some_minutes_only(wire):
    wire.open()
    after = restarted(wire, "allow out tcp port 80\ndeny")
    after.now += 301
    assert after.come(".", 900, 500) == "rule"
    after.tracker.wake(after.now)
    assert after.out(".", 500, 900) == "tcp-not-open"


def test_a_new_connection_may_have_the_ports_of_one_of_before(wire):
    wire.open()
    after = restarted(wire, "allow out tcp port 80\ndeny")
    assert after.come("S", 0) == "rule"
    assert after.come("R", 0) == "rule"
    after.open()


def test_udp_and_others_of_before_go_on_too(wire):
    for direction in OUT, IN, OUT:
        wire.udp(direction)
    after = restarted(wire, "allow out udp port 53\ndeny")
    assert after.udp(IN) == "+known"
    assert after.udp(IN, vm=5001) == "rule"


def test_tcp_ends_after_silence_as_long_as_its_state_bears(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.wait(239) == []
    assert len(wire.wait(3)) == 1
    wire.open(vm=40001)
    assert wire.wait(7400) == []
    assert wire.out(".", 1, 1, vm=40001) == "+known"
    assert wire.wait(7400) == []
    assert len(wire.wait(60)) == 1
    assert wire.tracker.deadline() is None


def test_udp_answers_pass_and_end_after_silence(wire):
    assert wire.udp(OUT) == "+new"
    assert wire.udp(IN) == "+known"
    assert wire.udp(IN, peer=54) == "rule"
    assert wire.udp(IN, vm=5001) == "rule"
    assert wire.udp(OUT, six=True) == "+new"
    assert wire.udp(IN, six=True) == "+known"
    assert len(wire.wait(122)) == 2
    assert wire.udp(IN) == "rule"


def test_udp_that_both_sides_use_is_kept_for_longer(wire):
    assert [wire.udp(OUT), wire.udp(IN), wire.udp(OUT)] == ["+new", "+known", "+known"]
    assert wire.wait(290) == []
    assert len(wire.wait(12)) == 1


def test_echo_replies_need_their_request(wire):
    for six in False, True:
        assert wire.ping(OUT, six=six) == "+new"
        assert wire.ping(IN, reply=True, six=six) == "+known"
        assert wire.ping(IN, reply=True, identifier=8, six=six) == "rule"
        assert wire.ping(IN, six=six) == "rule"
        assert wire.ping(OUT, reply=True, identifier=9, six=six) == "rule"


def test_other_protocols_are_followed_by_addresses(wire):
    def gre(direction):
        side = ends(direction)
        l2 = build.ethernet(side["src_mac"], side["dst_mac"], 0x0800)
        return bytearray(10) + l2 + build.ip_header(side["src"], side["dst"], 47, 8) + bytes(8)

    assert wire.raw(gre(IN), IN) == "rule"
    assert wire.raw(gre(OUT), OUT) == "+new"
    assert wire.raw(gre(IN), IN) == "+known"


def error(about, kind=icmp.UNREACHABLE, code=icmp.PORT_UNREACHABLE, *, direction=IN, dst=None, octets=28):
    """An ICMP error of a router about a frame."""
    pkt = Packet.at(about)
    six = pkt.ipv6 is not None
    body = bytes(about[pkt.ip.off :][: octets + 20 * six])
    router = PEER6[:-1] + b"\x99" if six else b"\xc0\x00\x02\x99"
    l2 = build.ethernet(PEER_MAC, VM_MAC, 0x86DD if six else 0x0800)
    head = icmp.ICMP.HEADER.pack(kind, code, 0, 0)
    return build.over_ip(l2, router, dst or pkt.ip.src, ip.ICMPV6 if six else ip.ICMP, head, body)


def test_icmp_errors_about_a_connection_pass_and_no_others(wire):
    question = build.udp(**ends(OUT), sport=5000, dport=53, payload=b"?")
    assert wire.raw(error(question), IN) == "rule"
    assert wire.raw(question, OUT) == "+new"
    assert wire.raw(error(question), IN) == "+related"
    assert wire.raw(error(question, octets=24), IN) == "rule"
    assert wire.raw(error(question, icmp.REDIRECT, 1), IN) == "rule"
    assert wire.raw(error(question, dst=b"\x0a\0\0\x06"), IN) == "rule"
    assert wire.raw(error(question), OUT) == "rule"
    six = build.udp(**ends(OUT, six=True), sport=5000, dport=53, payload=b"?")
    assert wire.raw(six, OUT) == "+new"
    assert wire.raw(error(six, icmp.V6_PACKET_TOO_BIG, 0), IN) == "+related"
    ping = build.icmp_echo(**ends(OUT), identifier=3, sequence=1)
    assert wire.raw(ping, OUT) == "+new"
    assert wire.raw(error(ping, icmp.TIME_EXCEEDED, 0), IN) == "+related"


def test_an_icmp_error_about_tcp_must_quote_what_is_under_way(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.raw(error(segment(OUT, "S", 0)), IN) == "+related"
    assert wire.raw(error(segment(OUT, "S", 700)), IN) == "icmp-not-sent"
    assert wire.come("S.", 0, 1) == "+known"
    assert wire.out("P.", 1, 1, b"x" * 100) == "+known"
    assert wire.raw(error(segment(OUT, "P.", 1, 1, b"x" * 100)), IN) == "+related"
    assert wire.raw(error(segment(OUT, "P.", 500_000, 1)), IN) == "icmp-not-sent"


def test_a_tag_makes_another_connection(wire):
    wire.open()
    assert wire.out("P.", 1, 1, b"x", vlan=7) == "rule"
    assert wire.out("P.", 1, 1, b"x", vlan=0) == "rule"
    tagged = Wire("allow out vlan 7 \ndeny")
    assert tagged.out("S", 0) == "rule"
    assert tagged.out("S", 0, vlan=8) == "rule"
    assert tagged.out("S", 0, vlan=(7, 7)) == "rule"
    assert tagged.out("S", 0, vlan=7) == "+new"
    assert tagged.come("S.", 0, 1, vlan=7) == "+known"
    assert tagged.come("S.", 0, 1) == "rule"


def test_a_connection_goes_to_the_ethernet_addresses_that_its_rule_allows():
    wire = Wire("allow out tcp to mac 52:54:00:00:00:02\ndeny")
    other = bytes(6)
    assert wire.out("S", 0, dst_mac=other) == "rule"
    wire.open()
    assert wire.out(".", 1, 1, b"x", dst_mac=other) == "rule"
    assert wire.out(".", 1, 1, b"x", src_mac=other) == "+known"
    assert wire.come(".", 1, 2, src_mac=other) == "+known"  # the answer may come from another router


def test_source_routes_are_dropped_whatever_the_rules(wire):
    open_wire = Wire("allow")
    frame = segment(OUT, "S", 0)
    routed = frame[:24] + b"\x47" + frame[25:44] + bytes((131, 7, 4, *PEER, 0)) + frame[44:]
    routed[26:28] = (len(routed) - 24).to_bytes(2, "big")
    assert open_wire.raw(routed, OUT) == "source-route"
    six = build.udp(**ends(OUT, six=True), sport=1, dport=53, payload=b"?")
    header = bytes((ip.UDP, 2, 0, 1)) + bytes(4) + VM6
    six = six[:30] + bytes((ip.ROUTING,)) + six[31:64] + header + six[64:]
    six[28:30] = (len(six) - 64).to_bytes(2, "big")
    assert open_wire.raw(six, OUT) == "source-route"


def test_neighbours_are_found_unless_a_rule_names_them():
    arp = build.arp(src_mac=VM_MAC, dst_mac=PEER_MAC, sha=VM_MAC, spa=VM, tpa=PEER)
    solicit = build.neighbor_solicit(src_mac=VM_MAC, dst_mac=PEER_MAC, src=VM6, dst=GROUP, target=PEER6)
    wire = Wire("deny")
    assert [wire.raw(frame, OUT) for frame in (arp, solicit)] == ["+rule", "+rule"]
    solicit[31] = 64  # the hop limit: no host takes it, so it is ICMPv6 like any other
    assert wire.raw(solicit, OUT) == "rule"
    solicit[31] = 255
    wire = Wire("deny out icmp6\ndeny out arp\nallow")
    assert [wire.raw(frame, OUT) for frame in (arp, solicit)] == ["rule", "+rule"]
    assert wire.raw(arp, IN) == "+rule"
    wire = Wire("deny out icmp6 type neighbour-solicitation\nallow")
    assert [wire.raw(frame, OUT) for frame in (arp, solicit)] == ["+rule", "rule"]


def test_a_rule_that_names_neighbours_holds_also_behind_one_that_catches_all_else():
    arp = build.arp(src_mac=VM_MAC, dst_mac=PEER_MAC, sha=VM_MAC, spa=VM, tpa=PEER)
    solicit = build.neighbor_solicit(src_mac=VM_MAC, dst_mac=PEER_MAC, src=VM6, dst=GROUP, target=PEER6)
    wire = Wire("deny\nallow out udp\ndeny out arp, udp\ndeny icmp6 type neighbour-solicitation")
    assert [wire.raw(frame, OUT) for frame in (arp, solicit)] == ["rule", "rule"]
    assert wire.raw(arp, IN) == "+rule"
    assert wire.udp(OUT) == "rule"


def test_a_rate_lets_through_so_many_new_connections_and_then_denies():
    wire = Wire("allow in tcp port 22 limit 2/s burst 3\nallow in tcp\ndeny")
    said = [wire.come("S", 0, vm=22, peer=port) for port in range(1, 6)]
    assert said == ["+new", "+new", "+new", "limit-rate", "limit-rate"]
    assert wire.come("S", 0, vm=22, peer=1) == "+known"
    wire.now += 1.0
    said = [wire.come("S", 0, vm=22, peer=port) for port in range(6, 9)]
    assert said == ["+new", "+new", "limit-rate"]


def test_connections_per_source_are_counted_until_they_end():
    wire = Wire("allow in tcp port 22 limit 2 connections per source\ndeny")
    others = b"\xc0\x00\x02\x07"
    said = [wire.come("S", 0, vm=22, peer=port) for port in range(1, 4)]
    assert said == ["+new", "+new", "limit-connections"]
    assert wire.come("S", 0, vm=22, peer=1, src=others) == "+new"
    assert wire.out("R.", 0, 1, vm=22, peer=1) == "+known"
    wire.wait(12)
    assert wire.come("S", 0, vm=22, peer=5) == "+new"
    assert wire.come("S", 0, vm=22, peer=6) == "limit-connections"


def ended(steps):
    return [str(flow) for flow in steps if flow is not None]


def test_a_new_policy_ends_what_it_does_not_allow_and_keeps_the_rest(wire):
    wire.open()
    assert wire.udp(OUT) == "+new"
    assert wire.ping(OUT) == "+new"
    narrower = policy("allow out udp\nallow out icmp type echo-request\ndeny")
    assert ended(wire.tracker.would_end(narrower)) == ["out tcp 10.0.0.5 40000 to 192.0.2.1 80"]
    assert wire.out(".", 1, 1) == "+known"
    assert ended(wire.tracker.replace(narrower)) == ["out tcp 10.0.0.5 40000 to 192.0.2.1 80"]
    assert wire.out(".", 1, 1) == "rule"
    assert wire.udp(IN) == "+known"
    assert wire.ping(IN, reply=True) == "+known"
    assert {flow.decision.rule.place.line for flow in wire.tracker.flows} == {1, 2}


def test_a_new_policy_counts_the_connections_that_it_finds():
    wire = Wire("allow in tcp port 22\ndeny")
    for port in 1, 2:
        assert wire.come("S", 0, vm=22, peer=port) == "+new"
    anew = wire.tracker.replace(policy("allow in tcp port 22 limit 3 connections\ndeny"))
    assert wire.come("S", 0, vm=22, peer=3) == "+new"
    assert wire.come("S", 0, vm=22, peer=4) == "limit-connections"
    assert ended(anew) == []
    assert wire.come("S", 0, vm=22, peer=4) == "limit-connections"


def test_a_new_policy_holds_for_each_packet_from_the_first_on(wire):
    """However far it has got with the connections that were there."""
    wire.open()
    wire.open(vm=40001)
    wire.open(vm=40002)
    assert wire.udp(OUT) == "+new"
    anew = wire.tracker.replace(policy("allow out udp\nallow out tcp to 192.0.2.1 source port 40002\ndeny"))
    assert wire.come(".", 1, 1, b"x") == "rule"
    assert wire.out(".", 1, 1) == "rule"
    assert wire.udp(IN) == "+known"
    assert wire.come(".", 1, 1, b"x", vm=40002) == "+known"
    assert {f.decision.rule.place.line for f in wire.tracker.flows if f.ports[0] in (5000, 40002)} == {1, 2}
    assert ended(anew) == [
        "out tcp 10.0.0.5 40000 to 192.0.2.1 80",
        "out tcp 10.0.0.5 40001 to 192.0.2.1 80",
    ]
    assert len(wire.tracker.flows) == 2
    assert wire.come(".", 2, 1, b"x", vm=40002) == "+known"


def test_while_a_new_policy_judges_connections_may_end_and_begin():
    wire = Wire("allow out tcp port 80\ndeny")
    wire.open()
    wire.open(vm=40001)
    (first, second) = wire.tracker.flows
    anew = wire.tracker.replace(policy("allow out tcp port 80 limit 2 connections\ndeny"))
    wire.tracker.end(first)
    assert wire.out("S", 0, vm=40003) == "+new"
    assert wire.out("S", 0, vm=40004) == "limit-connections"
    wire.tracker.end(second)
    assert ended(anew) == []
    wire.open(vm=40005)


def test_a_flood_takes_room_from_itself():
    wire = Wire("allow\n", flows_max=100)
    wire.open()
    assert wire.udp(IN, peer=9) == "+new"
    for i in range(1000):
        assert wire.come("S", 0, vm=22, peer=1024 + i, src=b"\xc6\x33\x64\x01") == "+new"
    assert len(wire.tracker.flows) == 51  # the VM's, and half for all others
    assert wire.out(".", 1, 1) == "+known"
    assert wire.udp(OUT, peer=9) == "+known"
    for i in range(1000):  # from everywhere: what both sides use stays
        assert wire.come("S", 0, vm=22, peer=7, src=b"\xc6\x33" + i.to_bytes(2, "big")) == "+new"
    assert len(wire.tracker.flows) == 51  # the VM's, and half for all others
    assert wire.out(".", 1, 1) == "+known"
    wire.wait(10_000)
    assert len(wire.tracker.flows) == 0


def test_who_has_most_connections_makes_room_when_all_are_in_use():
    wire = Wire("allow\n", flows_max=40)
    few = b"\xc6\x33\x64\x01"
    for source, ports in (few, range(1, 4)), (PEER, range(1, 40)):
        for port in ports:
            side = {"vm": 22, "peer": port}
            assert wire.come("S", 0, **side, src=source) == "+new"
            assert wire.out("S.", 0, 1, **side, dst=source) == "+known"
            assert wire.come(".", 1, 1, **side, src=source) == "+known"
    assert len(wire.tracker.flows) == 20 - 2  # of strangers' half, and an eighth is for those that begin
    for port in range(1, 4):
        assert wire.come(".", 1, 1, vm=22, peer=port, src=few) == "+known"


def test_a_quiet_connection_is_packed_and_nothing_is_lost(wire):
    wire.open()
    (flow,) = wire.tracker.flows
    packed = pack(flow.ends)
    assert pack(unpack(packed)) == packed
    for port in range(2000):
        wire.out("S", 0, vm=1000 + port)
    assert isinstance(flow.ends, bytes)
    assert flow.states == (State.ESTABLISHED, State.ESTABLISHED)
    assert wire.come(".", 9000, 1, b"x") == "tcp-out-of-window"
    assert wire.come(".", 1, 1, b"x") == "+known"


def killed(wire):
    for flow in wire.tracker.flows:
        wire.tracker.end(flow)


def denied(wire):
    assert [flow for flow in wire.tracker.replace(policy("deny out tcp\nallow\n")) if flow]
    for _ in wire.tracker.replace(policy("allow\n")):
        pass


def evicted(wire):
    for source in range(1, 4):
        for port in range(1, 40):
            wire.out("S", 0, vm=port, dst=bytes((198, 51, 100, source)))
            wire.come("S.", 0, 1, vm=port, src=bytes((198, 51, 100, source)))
            wire.out(".", 1, 1, vm=port, dst=bytes((198, 51, 100, source)))


@pytest.mark.parametrize(
    "ending", [killed, denied, evicted, lambda wire: wire.wait(8000), lambda wire: wire.come("R.", 1, 1)]
)
def test_a_connection_that_ended_is_not_known_by_its_last_segments(ending):
    wire = Wire("allow\n", flows_max=40)
    for _ in range(2):  # and the next one with the same addresses and ports neither
        wire.open()
        for _ in range(2):
            assert [wire.out(".", 1, 1), wire.come(".", 1, 1)] == ["+known", "+known"]
        ending(wire)
        assert wire.out("P.", 1, 1, b"x") == "tcp-not-open"
        assert wire.come("P.", 1, 1, b"x") == "tcp-not-open"


def test_more_connections_than_are_remembered_by_their_last_segments(wire):
    ports = range(1, 2200)
    for port in ports:
        wire.open(vm=port)
    for port in ports:
        assert [wire.out(".", 1, 1, vm=port), wire.come(".", 1, 1, vm=port)] == ["+known", "+known"]
        assert wire.come("P.", 90_000, 1, b"x", vm=port) == "tcp-out-of-window"
