"""Both modules together: connections, their ends, refusals, and frames that are none of theirs."""

from contextlib import closing
from ipaddress import ip_network
from random import Random

import pytest

from tests.unit.udt.modules import Modules
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC
from vtl_tools.common.packet import address, arp, build, icmp, tcp
from vtl_tools.common.packet.address import ip, mac
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.services.udt.allowed import AllowList, Route
from vtl_tools.services.udt.far import RETRIES_MAX
from vtl_tools.services.udt.transport.base import FlowOpening

ROUTER = mac("02:00:00:00:00:99")


@pytest.fixture
def modules():
    with closing(Modules()) as found:
        yield found


@pytest.fixture
def joined(modules):
    """A connection, and its two ends."""
    client = modules.client.open(80)
    modules.run()
    (server,) = modules.server.accepted
    return modules, client, server


def sent_to(site, condition):
    """The packets that a station heard and that fulfil a condition."""
    return [pkt for pkt in site.station.heard if condition(pkt)]


def test_the_server_sees_the_client_and_octets_cross_both_ways(joined):
    modules, client, server = joined
    assert (client.state, server.state) == (State.ESTABLISHED, State.ESTABLISHED)
    assert (server.path.remote, server.path.remote_port) == (ip("10.1.0.5"), client.path.local_port)
    content, answer = Random(1).randbytes(3_000_000), Random(2).randbytes(2_000_000)
    got = {client: b"", server: b""}
    left = {client: content, server: answer}
    while left[client] or left[server] or len(got[client]) < len(answer) or len(got[server]) < len(content):
        for end in client, server:
            left[end] = left[end][end.write(left[end]) if left[end] else 0 :]
            got[end] += bytes(end.read())
        modules.run()
    assert got == {client: answer, server: content}


def test_the_syn_is_answered_when_the_server_has_answered(modules):
    modules.server.is_mute = True
    client = modules.client.open(80)
    modules.run(0.5)
    assert client.state is State.SYN_SENT
    modules.server.is_mute = False
    modules.run(1.0)
    assert client.state is State.ESTABLISHED


def test_each_direction_closes_by_itself(joined):
    modules, client, server = joined
    client.write(b"question")
    client.close()
    modules.run(0.1)
    assert (bytes(server.read()), server.at_eof) == (b"question", True)
    assert client.state is State.FIN_WAIT_2
    server.write(b"answer")
    server.close()
    modules.run()
    assert (bytes(client.read()), client.at_eof) == (b"answer", True)
    modules.run(3.0)
    assert (client.ended, server.ended) == (Ended.CLOSED, Ended.CLOSED)
    assert modules.near.stage.status(modules.now)["near"]["connections"] == {}
    assert modules.far.stage.status(modules.now)["far"]["flows"] == 0


@pytest.mark.parametrize("first", [0, 1])
def test_a_reset_crosses(joined, first):
    modules, *ends = joined
    ends[first].abort()
    modules.run()
    assert ends[1 - first].ended is Ended.RESET
    assert modules.far.stage.status(modules.now)["far"]["flows"] == 0


def test_a_refusal_crosses(modules):
    modules.server.refuses = True
    client = modules.client.open(80)
    modules.run()
    assert client.ended is Ended.REFUSED
    assert modules.far.stage.status(modules.now)["far"]["failed"] == 1


def test_a_server_that_is_not_there_is_unreachable(modules):
    modules.server.is_mute = True
    modules.client.open(80)
    modules.run(4.0)
    (error,) = sent_to(modules.near, lambda pkt: pkt.icmp is not None)
    assert (error.icmp.type, error.icmp.code) == (icmp.UNREACHABLE, 1)


def test_a_client_that_gives_up_leaves_nothing_behind(modules):
    modules.server.is_mute = True
    client = modules.client.open(80)
    modules.run()
    client.abort()
    modules.near.push([rst_of(client)], modules.now)
    modules.run()
    assert modules.far.stage.status(modules.now)["far"]["flows"] == 0


def rst_of(endpoint):
    path = endpoint.path
    return build.tcp(
        src_mac=path.local_mac, dst_mac=path.remote_mac, src=path.local, dst=path.remote,
        sport=path.local_port, dport=path.remote_port, seq=endpoint.snd.iss + 1 & 0xFFFFFFFF, flags=tcp.RST,
    )  # fmt: skip


def test_a_far_module_that_dies_silently_resets_its_connections_within_five_seconds(joined):
    modules, client, _ = joined
    modules.far.turn = lambda now: False
    modules.run(3.5)
    assert client.ended is None
    modules.run(1.0)
    assert client.ended is Ended.RESET
    assert [name for name, _ in modules.near.events] == ["peer-up", "peer-down"]


def test_connections_beyond_the_limit_are_refused():
    with closing(Modules(limits=RelayLimits(connections=2))) as modules:
        ends = [modules.client.open(80) for _ in range(3)]
        modules.run()
        assert [end.state for end in ends[:2]] == [State.ESTABLISHED] * 2
        assert ends[2].state is State.SYN_SENT


def test_a_destination_that_is_not_allowed_is_neither_asked_for_nor_connected():
    allowed = AllowList([Route(ip_network("10.2.0.0/28"))], [])
    with closing(Modules(allowed)) as modules:
        modules.client.open(80, "10.2.0.77")
        modules.run()
        assert modules.server.heard == []
        (error,) = sent_to(modules.near, lambda pkt: pkt.icmp is not None)
        assert error.icmp.code == icmp.UNREACHABLE + 10  # administratively prohibited
        ((name, told),) = [event for event in modules.far.events if event[0] == "refused"]
        assert (name, told["reason"], told["destination"]) == ("refused", "not-allowed", "10.2.0.77 80")
        assert modules.far.stage.status(modules.now)["far"]["refused"] == {"not-allowed": 1}


def ask(modules, destination, count, port=40000):
    """Let a near module open flows for one client, as often as it likes."""
    opening = FlowOpening(ip("10.1.0.5"), port, ip(destination), 80)
    return [modules.dialer.connector(opening) for _ in range(count)]


def test_a_peer_that_asks_without_end_for_one_destination_is_refused_and_fills_no_log(modules, caplog):
    ask(modules, "127.0.0.1", 1000)
    modules.run()
    assert modules.far.stage.status(modules.now)["far"]["refused"] == {"special": 1000}
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_flows_of_the_same_addresses_and_ports_wait_for_the_first_in_bounded_number(modules):
    connectors = ask(modules, "10.2.0.5", RETRIES_MAX + 10)
    modules.run()
    assert len(modules.server.accepted) == 1
    assert [each.step(0) for each in connectors].count(Reason.HOST_UNREACHABLE) == 9
    modules.run(11.0)
    assert [each.step(0) for each in connectors].count(Reason.HOST_UNREACHABLE) == RETRIES_MAX + 9
    assert modules.far.stage.status(modules.now)["far"]["flows"] == 1


def test_servers_that_send_to_guests_that_do_not_read_fill_no_memory():
    limits = RelayLimits(memory=1 << 19)
    with closing(Modules(limits=limits)) as modules:
        for _ in range(30):
            modules.client.open(80)
        modules.run()
        relay, far = modules.near.stage.relay, modules.far.stage.far
        for _ in range(15):
            for server in modules.server.accepted:
                if server.ended is None:
                    server.write(bytes(1 << 17))
            modules.run(0.05)
            held = sum(flow.endpoint.buffered + flow.internal.buffered for flow in relay.flows.values())
            assert held <= limits.most
            assert far.budget.buffered <= limits.most
        assert relay.budget.evicted + far.budget.evicted > 0


def test_a_guest_that_reads_is_served_though_others_hold_more_than_the_memory():
    with closing(Modules(limits=RelayLimits(memory=1 << 19))) as modules:
        mute = [modules.client.open(80) for _ in range(4)]
        modules.run()
        for _ in range(15):
            for server in modules.server.accepted:
                server.write(bytes(1 << 17))
            modules.run(0.05)
        assert modules.near.stage.relay.budget.is_full
        client = modules.client.open(80)
        modules.run()
        server = modules.server.accepted[-1]
        got = 0
        for _ in range(400):
            server.write(bytes(1 << 15))
            modules.run(0.01)
            got += len(client.read(1 << 20))
        assert got > 1 << 21
        assert all(each.ended is None for each in (*mute, client))


def test_another_key_opens_no_session():
    with closing(Modules(far_key=b"x" * 32)) as modules:
        modules.client.open(80)
        modules.run(2.0)
        assert modules.server.heard == []
        assert "peer-refused" in [name for name, _ in modules.far.events]
        assert not modules.module.up


# --- with an uplink


@pytest.fixture
def uplinked():
    with closing(Modules(uplink=True, behind=[ip_network("10.2.0.0/16")])) as found:
        yield found


def asking(target, dst_mac=address.BROADCAST):
    client = mac("02:00:00:00:00:01")
    return build.arp(src_mac=client, dst_mac=dst_mac, sha=client, spa=ip("10.1.0.5"), tpa=ip(target))


def segment(dst, flags, dst_mac=ROUTER, vlan=None, seq=7):
    return build.tcp(
        src_mac=mac("02:00:00:00:00:01"), dst_mac=dst_mac, src=ip("10.1.0.5"), dst=ip(dst), sport=999,
        dport=80, seq=seq, flags=flags, vlan=vlan,
    )  # fmt: skip


def test_only_connections_to_what_is_behind_a_peer_are_taken(uplinked):
    near = uplinked.near
    others = [
        segment("10.9.0.1", tcp.SYN),
        segment("10.2.0.5", tcp.ACK),  # of a connection that vtl-udt has not seen
        segment("10.2.0.5", tcp.SYN, vlan=7),
        build.udp(
            src_mac=mac("02:00:00:00:00:01"), dst_mac=ROUTER, src=ip("10.1.0.5"), dst=ip("10.2.0.5"),
            sport=1, dport=2, payload=b"x",
        ),
        asking("10.1.0.1"),
        bytearray(NONE + bytes(12) + b"\x88\xcc" + bytes(46)),
    ]  # fmt: skip
    near.push(others, uplinked.now)
    assert near.uplinked == [bytes(frame) for frame in others]
    near.push([segment("10.2.0.5", tcp.SYN)], uplinked.now)
    uplinked.run()
    assert len(near.uplinked) == len(others)
    assert sent_to(near, lambda pkt: pkt.tcp is not None and pkt.tcp.flags == tcp.SYN | tcp.ACK)


def test_a_reset_right_behind_a_syn_ends_the_connection_and_does_not_pass(uplinked):
    near = uplinked.near
    near.push([segment("10.2.0.5", tcp.SYN, seq=7), segment("10.2.0.5", tcp.RST, seq=8)], uplinked.now)
    uplinked.run(1.0)
    assert not near.uplinked
    assert not near.stage.relay.flows


def test_on_demand_connections_are_taken_that_begin_while_it_is_asked_for(uplinked):
    uplinked.run(1.0)
    near = uplinked.near
    ask = near.stage.verbs()["carry"]
    assert ask({"take": False}) == {"taking": False, "up": True, "flows": 0, "octets": 0}
    near.push([segment("10.2.0.5", tcp.SYN)], uplinked.now)
    assert len(near.uplinked) == 1
    ask({"take": True})
    client = uplinked.client.open(80)
    uplinked.run()
    assert (client.state, ask({"take": False})["flows"]) == (State.ESTABLISHED, 1)
    client.write(b"x" * 1000)
    uplinked.run()
    assert ask({})["octets"] == 1000, "it goes on"
    assert len(near.uplinked) == 1


def test_stations_keep_their_ethernet_addresses_and_their_connections_pass_while_no_module_answers():
    stations = {ip("10.1.0.5"): mac("02:00:00:00:00:01"), ip("10.2.0.5"): mac("02:00:00:00:00:02")}
    with closing(Modules(uplink=True, stations=stations)) as modules:
        near, far = modules.near, modules.far
        modules.module.up.clear()
        near.push([segment("10.2.0.5", tcp.SYN)], modules.now)
        assert len(near.uplinked) == 1
        modules.run(1.0)
        client = modules.client.open(80)
        modules.run()
        assert client.state is State.ESTABLISHED
        assert {(pkt.eth.src, pkt.eth.dst) for pkt in far.station.heard} == {tuple(stations.values())}
        near.push([asking("10.2.0.5")], modules.now)
        assert Packet.at(bytearray(near.uplinked[-1])).arp.tpa == ip("10.2.0.5")


def test_the_uplinks_frames_reach_the_guest(uplinked):
    frame = bytes(segment("10.1.0.5", tcp.SYN, dst_mac=mac("02:00:00:00:00:01")))
    uplinked.near.push([frame], uplinked.now, port=1)
    uplinked.run()
    assert [pkt.tcp.flags for pkt in uplinked.client.heard] == [tcp.SYN]


def test_arp_is_answered_for_what_is_behind_a_peer_only(uplinked):
    near = uplinked.near
    near.push([asking("10.2.0.5"), asking("10.1.0.9")], uplinked.now)
    uplinked.run()
    (answer,) = uplinked.client.heard
    assert (answer.arp.oper, answer.arp.spa, answer.arp.sha) == (arp.REPLY, ip("10.2.0.5"), GATEWAY_MAC)
    assert [Packet.at(bytearray(frame)).arp.tpa for frame in near.uplinked] == [ip("10.1.0.9")]


# --- any frames


def test_any_frames_at_all_are_taken_passed_or_dropped(modules):
    rng = Random(5)
    whole = [
        segment("10.2.0.5", tcp.SYN, dst_mac=GATEWAY_MAC), segment("10.2.0.5", tcp.ACK), asking("10.2.0.5"),
        build.icmp_echo(
            src_mac=ROUTER, dst_mac=GATEWAY_MAC, src=ip("fd01::5"), dst=ip("fd02::5"), identifier=1,
            sequence=1,
        ),
    ]  # fmt: skip
    with closing(Modules(uplink=True)) as other:
        for _ in range(3000):
            frame = bytearray(rng.choice(whole))
            for _ in range(rng.randrange(4)):
                frame[rng.randrange(10, len(frame))] = rng.randrange(256)
            del frame[rng.randrange(24, len(frame) + 1) :]
            for each in modules, other:
                each.near.push([bytes(frame)], each.now)
                each.far.push([bytes(frame)], each.now)
                each.near.stage.settle(each.now)
                each.far.stage.settle(each.now)
        for each in modules, other:
            each.run()
            client = each.client.open(80)
            each.run()
            assert client.state is State.ESTABLISHED
