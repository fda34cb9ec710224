"""The stage of vortex-client as a conversation: frames of an attacker and of a backend go in and come out."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, build, ip, tcp, vnet
from vtl_tools.common.packet.offload import partial_to_full
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.vortex.backend_link import GATEWAY_MAC, BackendLink
from vtl_tools.services.vortex.client import AFTER_USE_S, BACKEND, OUTSIDE, VortexClient
from vtl_tools.services.vortex.disguise import Disguise, StackTraits
from vtl_tools.services.vortex.limits import Limits, Sources
from vtl_tools.services.vortex.ports import Port, PortUse

OWN = {4: address.ip("203.0.113.5"), 6: address.ip("2001:db8::5")}
ATTACKER = {4: address.ip("8.8.4.4"), 6: address.ip("2001:4860::4")}
PLACE = {4: address.ip("198.18.0.2"), 6: address.ip("2001:2::2")}
OWN_MAC, ROUTER_MAC, BACKEND_MAC = (bytes((2, 0, 0, 0, 0, n)) for n in (1, 2, 3))
VERSIONS = pytest.mark.parametrize("version", [4, 6])


class Host:
    """A volunteer that remembers what it is told to do."""

    def __init__(self) -> None:
        self.in_use: set[Port] = set()
        self.did: list[object] = []
        self.closed = False
        self.receivers: set[tuple[bytes, int, bytes, int]] = set()

    def has_receiver(self, remote: bytes, remote_port: int, local: bytes, local_port: int) -> bool:
        return (remote, remote_port, local, local_port) in self.receivers

    def is_own(self, octets: bytes) -> bool:
        return octets in OWN.values()

    def sockets(self) -> tuple[set[Port], bool]:
        return self.in_use, False

    def has_closed(self) -> bool:
        return self.closed

    def moved(self) -> bool:
        return False

    def give_back(self, ports: Iterable[Port]) -> None:
        self.did += ports

    def take(self, ports: Iterable[Port]) -> None:
        self.did.append(("take", *ports))

    def apply(self) -> None:
        self.did.append("apply")

    def restore(self) -> None:
        self.did.append("restore")


class World:
    """The stage, and what came out of it by port."""

    def __init__(
        self,
        *,
        echo: bool = True,
        limits: Limits | None = None,
        traits: StackTraits | None = None,
        offset: int = 0,
    ) -> None:
        self.host = Host()
        disguise = Disguise(traits or StackTraits(ttl4=61, ttl6=62), lambda: offset)
        link = BackendLink(PLACE[4], PLACE[6])
        ports = PortUse([(1, 1023)])
        self.stage = VortexClient(ports, link, self.host, disguise, Sources(), limits or Limits(), echo=echo)
        self.came: list[list[bytes]] = [[], []]
        for port in BACKEND, OUTSIDE:
            self.stage.out[port] = lambda batch, now, port=port: self.came[port].extend(map(bytes, batch))
        self.now = 1.0

    def put(self, port: int, frame: bytes | bytearray) -> list[Packet]:
        """Let a frame come in; return what comes out on the other side."""
        for came in self.came:
            came.clear()
        self.stage.on_batch(port, Batch.of([frame]), self.now)
        return [Packet.at(bytearray(octets)) for octets in self.came[1 - port]]

    def know_backend(self) -> None:
        """Let the backend ask for its gateway."""
        gateway = address.ip("198.18.0.1")
        asks = build.arp(src_mac=BACKEND_MAC, dst_mac=b"\xff" * 6, sha=BACKEND_MAC, spa=PLACE[4], tpa=gateway)
        self.put(BACKEND, asks)


def segment(version: int, flags: int, *, outside: bool, port: int = 23, **fields: int) -> bytearray:
    """A segment of the attacker, or of the backend."""
    if outside:
        l2, ends, ports = (ROUTER_MAC, OWN_MAC), (ATTACKER[version], OWN[version]), (4000, port)
    else:
        l2, ends, ports = (BACKEND_MAC, GATEWAY_MAC), (PLACE[version], ATTACKER[version]), (port, 4000)
    return build.tcp(
        src_mac=l2[0], dst_mac=l2[1], src=ends[0], dst=ends[1], sport=ports[0], dport=ports[1], flags=flags,
        seq=fields.get("seq", 0), ack=fields.get("ack", 0),
    )  # fmt: skip


def datagram(version: int, octets: int, *, outside: bool, port: int = 53) -> bytearray:
    if outside:
        l2, ends, ports = (ROUTER_MAC, OWN_MAC), (ATTACKER[version], OWN[version]), (4000, port)
    else:
        l2, ends, ports = (BACKEND_MAC, GATEWAY_MAC), (PLACE[version], ATTACKER[version]), (port, 4000)
    return build.udp(
        src_mac=l2[0], dst_mac=l2[1], src=ends[0], dst=ends[1], sport=ports[0], dport=ports[1],
        payload=bytes(octets),
    )  # fmt: skip


@pytest.fixture
def world() -> World:
    found = World()
    found.know_backend()
    return found


@VERSIONS
def test_a_handshake_is_translated_both_ways(world: World, version: int) -> None:
    (syn,) = world.put(OUTSIDE, segment(version, tcp.SYN, outside=True, seq=7))
    assert syn.flow == (ip.TCP, ATTACKER[version], 4000, PLACE[version], 23)
    assert (syn.eth.src, syn.eth.dst) == (GATEWAY_MAC, BACKEND_MAC)
    assert syn.verify()
    (answer,) = world.put(BACKEND, segment(version, tcp.SYN | tcp.ACK, outside=False, seq=99, ack=8))
    assert answer.flow == (ip.TCP, OWN[version], 23, ATTACKER[version], 4000)
    assert (answer.eth.src, answer.eth.dst) == (OWN_MAC, ROUTER_MAC)
    assert answer.ip is not None
    assert answer.ip.ttl == {4: 61, 6: 62}[version]
    assert answer.verify()


@VERSIONS
@given(data=st.data())
def test_no_octet_of_the_volunteers_addresses_is_in_what_the_backend_gets(
    version: int, data: st.DataObject
) -> None:
    world = World()
    world.know_backend()
    port = data.draw(st.integers(1, 1023))
    for frame in (
        segment(version, data.draw(st.sampled_from([tcp.SYN, tcp.ACK, tcp.FIN])), outside=True, port=port),
        datagram(version, data.draw(st.integers(0, 900)), outside=True, port=port),
    ):
        (got,) = world.put(OUTSIDE, frame)
        octets = bytes(got.buf)
        assert not any(secret in octets for secret in (OWN[version], OWN_MAC, ROUTER_MAC))


@VERSIONS
def test_an_echo_is_translated_and_only_its_reply_goes_back(world: World, version: int) -> None:
    def ping(*, outside: bool, reply: bool) -> bytearray:
        ends = (ATTACKER[version], OWN[version]) if outside else (PLACE[version], ATTACKER[version])
        l2 = (ROUTER_MAC, OWN_MAC) if outside else (BACKEND_MAC, GATEWAY_MAC)
        return build.icmp_echo(
            src_mac=l2[0], dst_mac=l2[1], src=ends[0], dst=ends[1], identifier=5, sequence=1, reply=reply
        )

    assert world.put(BACKEND, ping(outside=False, reply=True)) == []
    (asked,) = world.put(OUTSIDE, ping(outside=True, reply=False))
    assert asked.verify()
    assert world.put(BACKEND, ping(outside=False, reply=False)) == []
    (answered,) = world.put(BACKEND, ping(outside=False, reply=True))
    assert answered.flow == ({4: ip.ICMP, 6: ip.ICMPV6}[version], OWN[version], 5, ATTACKER[version], 5)
    assert answered.verify()


@VERSIONS
def test_the_backend_opens_no_flow_and_answers_nobody_else(world: World, version: int) -> None:
    assert world.put(BACKEND, segment(version, tcp.SYN, outside=False)) == []
    assert world.put(BACKEND, datagram(version, 10, outside=False)) == []
    world.put(OUTSIDE, segment(version, tcp.SYN, outside=True))
    assert world.put(BACKEND, segment(version, tcp.SYN, outside=False)) == [], "nor within a flow"
    assert world.put(BACKEND, segment(version, tcp.ACK, outside=False, port=24)) == []
    forged = Packet.at(segment(version, tcp.ACK, outside=False))
    assert forged.ip is not None
    forged.ip.src = ATTACKER[version]
    assert world.put(BACKEND, bytearray(forged.buf)) == []
    assert set(world.stage.drops) == {"opens-flow", "no-flow", "not-an-answer"}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [(tcp.SYN | tcp.ACK, "no-flow"), (tcp.RST, "no-flow"), (tcp.RST | tcp.ACK, "no-flow")],
)
def test_an_answer_to_the_volunteers_own_connection_is_not_wormholed(
    world: World, flags: int, reason: str
) -> None:
    assert world.put(OUTSIDE, segment(4, flags, outside=True)) == []
    assert world.stage.drops == {reason: 1}


def test_a_port_that_becomes_used_is_given_back_with_its_flows(world: World) -> None:
    world.put(OUTSIDE, segment(4, tcp.SYN, outside=True))
    world.stage.on_used((ip.TCP, 23), world.now)
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) == []
    assert world.put(BACKEND, segment(4, tcp.SYN | tcp.ACK, outside=False)) == []
    assert world.put(OUTSIDE, datagram(4, 5, outside=True, port=23)) != [], "UDP has its own ports"
    world.stage.settle(world.now)
    assert world.host.did == [(ip.TCP, 23)]
    world.now += 2
    world.stage.wake(world.now)  # the snapshot has no such socket
    assert world.host.did[-1] == ("take", (ip.TCP, 23))
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) != []


@VERSIONS
def test_a_datagram_that_a_socket_would_receive_is_not_wormholed(world: World, version: int) -> None:
    world.host.receivers.add((ATTACKER[version], 4000, OWN[version], 53))
    assert world.put(OUTSIDE, datagram(version, 9, outside=True)) == []
    assert (ip.UDP, 53) in world.stage.ports.used
    assert len(world.put(OUTSIDE, datagram(version, 9, outside=True, port=54))) == 1
    world.host.in_use = {(ip.UDP, 53), (ip.UDP, 54)}  # of a socket that is connected to another host
    world.stage.wake(100.0)
    assert world.put(OUTSIDE, datagram(version, 9, outside=True, port=54)) == []


def test_a_frame_to_a_group_opens_no_flow(world: World) -> None:
    frame = segment(4, tcp.SYN, outside=True)
    frame[10:16] = b"\xff" * 6
    assert world.put(OUTSIDE, frame) == []
    assert world.stage.drops == {"other": 1}


def test_a_port_stays_given_back_while_a_socket_uses_it(world: World) -> None:
    world.host.in_use = {(ip.TCP, 23)}
    world.stage.on_used((ip.TCP, 23), world.now)
    for _ in range(3):
        world.now += 2
        world.stage.wake(world.now)
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) == []


def test_an_unproven_source_gets_no_more_than_three_times_what_it_sent(world: World) -> None:
    world.put(OUTSIDE, datagram(4, 100, outside=True))
    sent = 0
    while world.put(BACKEND, datagram(4, 58, outside=False)):
        sent += 100
    assert sent == 400
    assert world.stage.drops == {"amplification": 1}


def test_a_handshake_proves_a_source_and_a_forged_acknowledgement_does_not(world: World) -> None:
    world.put(OUTSIDE, segment(4, tcp.SYN, outside=True, seq=7))
    world.put(BACKEND, segment(4, tcp.SYN | tcp.ACK, outside=False, seq=99, ack=8))
    world.put(OUTSIDE, segment(4, tcp.ACK, outside=True, seq=8, ack=1234))
    world.put(OUTSIDE, datagram(4, 1, outside=True))
    assert world.put(BACKEND, datagram(4, 900, outside=False)) == []
    world.put(OUTSIDE, segment(4, tcp.ACK, outside=True, seq=8, ack=100))
    world.stage.flows.end_all(world.now)
    world.put(OUTSIDE, datagram(4, 1, outside=True))
    assert world.put(BACKEND, datagram(4, 900, outside=False)) != []


def test_the_quota_ends_both_directions() -> None:
    world = World(limits=Limits(quota=500))
    world.know_backend()
    while world.put(OUTSIDE, datagram(4, 58, outside=True)):
        pass
    assert world.stage.quota.used == 500
    assert world.put(BACKEND, datagram(4, 58, outside=False)) == []
    assert world.stage.drops == {"quota": 2}


def test_frames_wait_for_the_backend_and_are_bounded() -> None:
    world = World()
    for _ in range(70):
        assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) == []
    assert world.stage.drops == {"backend-unknown": 6}
    world.know_backend()
    assert len(world.came[BACKEND]) == 64 + 1, "those that waited, and the answer to ARP"


def test_a_pause_lets_nothing_pass(world: World) -> None:
    world.put(OUTSIDE, segment(4, tcp.SYN, outside=True))
    world.stage.pause(world.now)
    assert world.put(BACKEND, segment(4, tcp.SYN | tcp.ACK, outside=False)) == []
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) == []
    world.stage.resume(world.now)
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) != []
    assert world.host.did == ["restore", "apply"]
    assert [flow["ended"] for flow in world.stage.flows.told(world.now)] == [True, False]


@given(
    st.sampled_from([BACKEND, OUTSIDE]),
    st.binary(max_size=120),
    st.just(bytes(10)) | st.binary(min_size=10, max_size=10),
)
def test_foreign_octets_pass_or_are_counted(port: int, octets: bytes, header: bytes) -> None:
    world = World()
    world.put(port, header + octets)
    assert len(world.came[1 - port]) + len(world.came[port]) + sum(world.stage.drops.values()) >= 1


def test_no_checksum_is_written_over_the_address_that_was_judged(world: World) -> None:
    world.put(OUTSIDE, datagram(4, 100, outside=True))
    for place in (14, 12), (14, 16), (14 + 20, 0), (14 + 20, 2):  # addresses, and ports
        answer = datagram(4, 58, outside=False)
        answer[: vnet.VNET] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, 0, 0, 0, *place)
        for pkt in world.put(BACKEND, answer):
            assert not pkt.buf[0] & vnet.F_NEEDS_CSUM
            assert pkt.flow == (ip.UDP, OWN[4], 53, ATTACKER[4], 4000)


def test_a_super_segment_counts_as_what_is_sent_of_it(world: World) -> None:
    world.put(OUTSIDE, datagram(4, 1000, outside=True))
    answer = datagram(4, 1000, outside=False)
    answer[: vnet.VNET] = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, vnet.GSO_UDP_L4, 42, 1, 34, 6)
    assert world.put(BACKEND, answer) == [], "a thousand datagrams of 43 octets"
    assert world.stage.drops == {"amplification": 1}


@given(st.integers(0, 3), st.integers(0, 8), st.lists(st.integers(0, 80), min_size=4, max_size=4))
def test_an_answer_is_the_flows_whatever_its_offload_says(flags: int, gso: int, rest: list[int]) -> None:
    world = World()
    world.know_backend()
    world.put(OUTSIDE, datagram(4, 400, outside=True))
    answer = datagram(4, 58, outside=False)
    answer[: vnet.VNET] = vnet.HEADER.pack(flags, gso, *rest)
    for pkt in world.put(BACKEND, answer):
        partial_to_full(pkt.buf)  # as the kernel does when it is sent
        assert Packet.at(pkt.buf).flow == (ip.UDP, OWN[4], 53, ATTACKER[4], 4000)
        assert pkt.eth.dst == ROUTER_MAC


def test_a_flow_has_no_group_for_its_next_hop(world: World) -> None:
    asks = segment(4, tcp.SYN, outside=True)
    asks[vnet.VNET + 6] |= 1
    assert world.put(OUTSIDE, asks) == []
    assert world.stage.drops == {"other": 1}


def test_late_segments_of_the_volunteers_own_connection_are_not_wormholed(world: World) -> None:
    world.host.in_use = {(ip.TCP, 23)}
    world.stage.on_used((ip.TCP, 23), world.now)
    world.host.in_use = set()
    world.now += 2
    world.stage.wake(world.now)
    for flags in tcp.ACK, tcp.ACK | tcp.PSH, tcp.FIN | tcp.ACK, tcp.RST, 0:
        assert world.put(OUTSIDE, segment(4, flags, outside=True)) == []
    assert world.put(OUTSIDE, segment(4, tcp.SYN, outside=True)) != []
    world.stage.flows.end_all(world.now)
    world.now += AFTER_USE_S
    assert world.put(OUTSIDE, segment(4, tcp.ACK, outside=True)) != [], "a scan"


@pytest.mark.parametrize("is_pause", [True, False])
def test_no_frame_that_waited_goes_to_the_backend_once_its_port_is_used(*, is_pause: bool) -> None:
    world = World()
    world.put(OUTSIDE, segment(4, tcp.SYN, outside=True))
    if is_pause:
        world.stage.pause(world.now)
    else:
        world.stage.on_used((ip.TCP, 23), world.now)
    world.know_backend()
    assert len(world.came[BACKEND]) == 1, "the answer to ARP"
