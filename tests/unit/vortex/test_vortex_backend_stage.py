"""The stage of vortex-backend as a conversation: frames of clients and of a honeypot go in and come out."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import address, build, derive, icmp, ip, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.vortex.addresses import BACKEND
from vtl_tools.services.vortex.backend import BACKEND_MAC, HONEYPOTS, VortexBackend
from vtl_tools.services.vortex.backend_link import GATEWAY_MAC, BackendLink
from vtl_tools.services.vortex.client_keys import clients_of, next_file, read_keys
from vtl_tools.services.vortex.wormhole_client import FLOWS_OF_CLIENT, WormholeClient

HERE = {4: BACKEND[0], 6: BACKEND[1]}
ATTACKER = {4: address.ip("8.8.4.4"), 6: address.ip("2001:4860::4")}
ALICE = {4: address.ip("198.19.0.1"), 6: address.ip("2001:2:0:1::1")}
BOB = {4: address.ip("198.19.1.2"), 6: address.ip("2001:2:0:1::102")}
POT_MAC = bytes((2, 0, 0, 0, 0, 9))
VERSIONS = pytest.mark.parametrize("version", [4, 6])


class Wires:
    """The connections of the clients, which keep what is sent."""

    refused = 0
    served: Iterable[WormholeClient] = ()

    def serve(self, clients: Iterable[WormholeClient]) -> None:
        self.served = list(clients)

    def __init__(self) -> None:
        self.came: dict[str, list[bytes]] = {"alice": [], "bob": []}

    def send(self, client: WormholeClient, frames: Sequence[memoryview]) -> int:
        self.came[client.name] += map(bytes, frames)
        return len(frames)

    def deadline(self) -> float:
        return 5.0

    def wake(self, now: float) -> None:
        pass


class World:
    def __init__(self) -> None:
        self.wires = Wires()
        self.alice, self.bob = WormholeClient(1, "alice", b"a" * 16), WormholeClient(258, "bob", b"b" * 16)
        here = {4: BACKEND[0], 16: BACKEND[1]}
        self.stage = VortexBackend(BackendLink(*BACKEND), here, (self.alice, self.bob), self.wires)
        self.pot: list[bytes] = []
        self.stage.out[HONEYPOTS] = lambda batch, now: self.pot.extend(map(bytes, batch))
        self.stage.link.learn(POT_MAC)

    def put(self, client: WormholeClient, frame: bytes | bytearray) -> list[Packet]:
        self.pot.clear()
        self.stage.on_frames(client, Batch.of([frame]), 1.0)
        return [Packet.at(bytearray(octets)) for octets in self.pot]

    def answer(self, frame: bytes | bytearray) -> dict[str, list[Packet]]:
        for came in self.wires.came.values():
            came.clear()
        self.stage.on_batch(HONEYPOTS, Batch.of([frame]), 1.0)
        return {
            name: [Packet.at(bytearray(o)) for o in came] for name, came in self.wires.came.items() if came
        }


def inward(
    version: int, flags: int = tcp.SYN, src: bytes = b"", dst: bytes = b"", sport: int = 4000
) -> bytearray:
    return build.tcp(
        src_mac=GATEWAY_MAC, dst_mac=BACKEND_MAC, src=src or ATTACKER[version], dst=dst or HERE[version],
        sport=sport, dport=22, flags=flags,
    )  # fmt: skip


def outward(version: int, src: bytes, flags: int = tcp.SYN | tcp.ACK, dst: bytes = b"") -> bytearray:
    return build.tcp(
        src_mac=POT_MAC, dst_mac=GATEWAY_MAC, src=src, dst=dst or ATTACKER[version], sport=22, dport=4000,
        flags=flags,
    )  # fmt: skip


@VERSIONS
def test_one_flow_through_two_clients_is_two_for_the_honeypot(version: int) -> None:
    world = World()
    for client, stands in (world.alice, ALICE), (world.bob, BOB):
        (came,) = world.put(client, inward(version))
        assert came.flow == (ip.TCP, ATTACKER[version], 4000, stands[version], 22)
        assert came.eth.dst == POT_MAC
        assert came.verify()
    ((name, (sent,)),) = world.answer(outward(version, BOB[version])).items()
    assert name == "bob"
    assert sent.flow == (ip.TCP, HERE[version], 22, ATTACKER[version], 4000)
    assert sent.verify()


@VERSIONS
def test_a_client_invents_no_address_of_ours_and_reaches_the_honeypot_only(
    version: int,
) -> None:
    world = World()
    for src in ALICE[version], BOB[version], HERE[version]:
        assert world.put(world.bob, inward(version, src=src)) == []
    for dst in ALICE[version], ATTACKER[version]:
        assert world.put(world.bob, inward(version, dst=dst)) == []
    assert world.bob.drops == {"source": 3, "not-for-backend": 2}


@VERSIONS
def test_the_honeypot_answers_flows_by_their_client_and_opens_none(version: int) -> None:
    world = World()
    world.put(world.alice, inward(version))
    assert world.answer(outward(version, BOB[version])) == {}
    assert world.answer(outward(version, ALICE[version], tcp.SYN)) == {}
    assert world.answer(outward(version, HERE[version])) == {}
    assert world.stage.drops == {"no-flow": 1, "opens-flow": 1, "not-an-answer": 1}


@VERSIONS
def test_a_closed_port_of_udp_is_told_with_the_quoted_address_translated(version: int) -> None:
    world = World()
    asks = build.udp(
        src_mac=GATEWAY_MAC, dst_mac=BACKEND_MAC, src=ATTACKER[version], dst=HERE[version], sport=4000,
        dport=53, payload=b"name?",
    )  # fmt: skip
    (came,) = world.put(world.alice, asks)
    kind = (
        (icmp.UNREACHABLE, icmp.PORT_UNREACHABLE)
        if version == 4
        else (icmp.V6_UNREACHABLE, icmp.V6_PORT_UNREACHABLE)
    )
    error = derive.icmp_error(came, *kind, src=ALICE[version])
    assert error is not None
    (told,) = world.answer(error)["alice"]
    assert told.verify()
    assert told.ip is not None
    assert (told.ip.src, told.ip.dst) == (HERE[version], ATTACKER[version])
    assert told.quoted_flow == (ip.UDP, ATTACKER[version], 4000, HERE[version], 53)


def test_flows_of_a_client_are_bounded() -> None:
    world = World()
    for i in range(FLOWS_OF_CLIENT + 50):
        world.put(world.alice, inward(4, src=bytes((9, 9, i >> 8, i & 0xFF))))
    assert len(world.alice.flows) == FLOWS_OF_CLIENT
    for port in range(1, 600):
        world.put(world.bob, inward(4, sport=port))
    assert world.bob.drops["flows-of-source"] == 599 - 512


@given(st.booleans(), st.binary(max_size=120), st.just(bytes(10)) | st.binary(min_size=10, max_size=10))
def test_foreign_octets_of_either_side_pass_or_are_counted(
    of_client: bool, octets: bytes, header: bytes
) -> None:
    world = World()
    if of_client:
        world.put(world.alice, header + octets)
    else:
        world.answer(header + octets)
    came = len(world.pot) + sum(map(len, world.wires.came.values()))
    assert came + world.stage.drops.total() + world.alice.drops.total() == 1


def test_keys_are_of_clients_with_numbers_and_names_of_their_own(tmp_path: Path) -> None:
    for name in "alice", "bob":
        next_file(tmp_path, name).write_text(f"key of {name} 0123456789")
    (tmp_path / "7-carol").write_text("key of carol 0123456789")
    (tmp_path / "README").write_text("no key")
    assert next_file(tmp_path, "dave").name == "8-dave"
    found = clients_of(tmp_path, read_keys(tmp_path), 0)
    assert [(client.number, client.name) for client in found] == [(1, "alice"), (2, "bob"), (7, "carol")]
    with pytest.raises(SpecError, match="has a key already"):
        next_file(tmp_path, "bob")
    for wrong in "3-alice", "1-eve":
        (tmp_path / wrong).write_text(f"key of {wrong} 0123456789")
        with pytest.raises(SpecError, match="two clients have the same"):
            clients_of(tmp_path, read_keys(tmp_path), 0)
        (tmp_path / wrong).unlink()
    (tmp_path / "9-eve").write_text("key of bob 0123456789")
    with pytest.raises(SpecError, match="the same key"):
        clients_of(tmp_path, read_keys(tmp_path), 0)


def test_a_client_whose_key_and_number_stay_keeps_its_flows() -> None:
    world = World()
    for client in world.alice, world.bob:
        world.put(client, inward(4))
    again = [WormholeClient(1, "alice", b"a" * 16), WormholeClient(258, "bob", b"another key of bob")]
    world.stage.serve([*again, WormholeClient(3, "carol", b"c" * 16)])
    assert world.stage.clients["alice"] is world.alice
    assert len(world.alice.flows) == 1
    assert world.stage.clients["bob"] is again[1]
    assert list(world.answer(outward(4, ALICE[4]))) == ["alice"]
    assert world.answer(outward(4, BOB[4])) == {}
    assert [client.name for client in world.wires.served] == ["alice", "bob", "carol"]
    world.stage.serve([])
    assert world.answer(outward(4, ALICE[4])) == {}
