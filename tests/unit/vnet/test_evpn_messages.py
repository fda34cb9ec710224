"""The conversation with gobgpd: messages, gRPC against a server by h2, and octets of anybody."""

from contextlib import suppress

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed, SpecError
from vtl_tools.services.vnet.evpn import gobgp_api as api
from vtl_tools.services.vnet.evpn.grpc import GrpcConnection, GrpcEnd, GrpcMessage
from vtl_tools.services.vnet.evpn.protobuf import integer, octets
from vtl_tools.services.vnet.evpn.spec import parse_evpn
from vtl_tools.services.vnet.links import parse_link

MAC = bytes.fromhex("020000000001")
NETWORK = api.OwnNetwork(100, "10.0.0.5", "65000:100")


def event(*paths: bytes) -> bytes:
    return octets(3, b"".join(octets(2, path) for path in paths))


@pytest.mark.parametrize("mac", [MAC, b""])
@pytest.mark.parametrize("withdraw", [False, True])
def test_a_route_is_read_as_it_is_written(mac: bytes, withdraw: bool) -> None:
    (path,) = api.paths_of(memoryview(event(api.path(NETWORK, mac, 7, withdraw=withdraw))))
    ip = "" if mac else "10.0.0.5"
    assert api.read_route(path) == api.EvpnRoute(
        mac, "10.0.0.5:100", ip, bytes((10, 0, 0, 5)), 100, 7 if mac else 0,
        frozenset(("65000:100",)), withdraw,
    )  # fmt: skip


@given(st.integers(0, 1 << 12), st.integers(0, 255), st.sampled_from([MAC, b""]))
def test_a_path_with_a_wrong_octet_is_a_route_or_malformed(at: int, octet: int, mac: bytes) -> None:
    told = bytearray(api.path(NETWORK, mac, 7))
    told[at % len(told)] = octet
    with suppress(Malformed):
        route = api.read_route(memoryview(told))
        assert route is None or len(route.mac) in (0, 6)


@given(st.binary(max_size=200))
def test_foreign_octets_are_a_route_or_malformed(told: bytes) -> None:
    for read in api.read_route, api.asn_of, lambda octets: list(api.paths_of(octets)):
        with suppress(Malformed):
            read(memoryview(told))


class Server:
    """The other end, by h2."""

    def __init__(self) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.h2.initiate_connection()

    def hears(self, client: GrpcConnection) -> bytes:
        """Take what the client sends, and return the octets of its calls."""
        found = b""
        for told in self.h2.receive_data(bytes(client.outbox)):
            if isinstance(told, h2.events.DataReceived):
                found += told.data or b""
        client.outbox.clear()
        return found

    def says(self, call: int, data: bytes = b"", *trailers: tuple[str, str]) -> bytes:
        if data:
            self.h2.send_headers(call, [(":status", "200"), ("content-type", "application/grpc")])
            self.h2.send_data(call, data)
        if trailers:
            self.h2.send_headers(call, trailers, end_stream=True)
        return self.h2.data_to_send()


def prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message


def test_a_call_has_messages_both_ways_and_an_end() -> None:
    client, server = GrpcConnection("gobgpd"), Server()
    call = client.call("/x/Y", b"asks", more=True)
    assert server.hears(client) == prefixed(b"asks")
    client.send(call, b"more", last=True)
    assert server.hears(client) == prefixed(b"more")
    said = server.says(call, prefixed(b"one") + prefixed(b"two"), ("grpc-status", "0"))
    told = [event for at in range(len(said)) for event in client.receive(said[at : at + 1])]
    assert told == [
        GrpcMessage(call, bytearray(b"one")),
        GrpcMessage(call, bytearray(b"two")),
        GrpcEnd(call, ""),
    ]


def test_an_error_is_told_in_the_words_of_the_server() -> None:
    client, server = GrpcConnection("gobgpd"), Server()
    call = client.call("/x/Y", b"")
    server.hears(client)
    failed = (":status", "200"), ("grpc-status", "12"), ("grpc-message", "unknown service apipb.GobgpApi")
    assert GrpcEnd(call, "unknown service apipb.GobgpApi") in client.receive(server.says(call, b"", *failed))


@pytest.mark.parametrize("prefix", [b"\1\0\0\0\1x", b"\0\xff\xff\xff\xff"])
def test_a_message_that_is_packed_or_endless_is_malformed(prefix: bytes) -> None:
    client, server = GrpcConnection("gobgpd"), Server()
    call = client.call("/x/Y", b"")
    server.hears(client)
    with pytest.raises(Malformed):
        client.receive(server.says(call, prefix))


@given(st.binary(max_size=300))
def test_foreign_octets_on_the_connection_are_malformed_at_most(said: bytes) -> None:
    client, server = GrpcConnection("gobgpd"), Server()
    call = client.call("/x/Y", b"")
    server.hears(client)
    with suppress(Malformed):
        client.receive(server.says(call, prefixed(b"x")) + said)


def test_a_number_that_never_ends_is_malformed() -> None:
    with pytest.raises(Malformed):
        api.asn_of(memoryview(b"\x0a\x0b\x08" + b"\xff" * 10))
    assert api.asn_of(memoryview(octets(1, integer(1, 65000)))) == 65000


@pytest.mark.parametrize(
    "spec",
    [
        "evpn:", "evpn:0,local=10.0.0.1", "evpn:16777216,local=10.0.0.1", "evpn:7", "evpn:7,local=fd00::g",
        "evpn:7,local=10.0.0.1,local=10.0.0.1", "evpn:7,local=10.0.0.1,gobgp=x", "evpn:7,local=10.0.0.1,what",
        "evpn:7,local=10.0.0.1,gobgp=x:0", "evpn:7,local=10.0.0.1,rt=70000:1", "evpn:7,local=10.0.0.1,port=0",
    ],
)  # fmt: skip
def test_a_spec_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="write evpn:VNI"):
        parse_evpn(spec)


def test_a_spec_is_read() -> None:
    spec = parse_evpn("evpn:7,local=10.0.0.1,gobgp=[::1]:5,rt=65000:9,port=1234,dev=eth0,hold=9")
    assert (spec.network, spec.gobgp, spec.port, spec.dev, spec.hold_s) == (
        api.OwnNetwork(7, "10.0.0.1", "65000:9"), ("::1", 5), 1234, "eth0", 9.0,
    )  # fmt: skip
    assert parse_evpn("evpn:7,local=10.0.0.1,gobgp=unix:/run/g.sock").gobgp == "/run/g.sock"
    assert parse_link("dc", "evpn:7,local=10.0.0.1").role.told
