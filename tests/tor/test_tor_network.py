"""Real tor processes, asked through our codec and through PySocks, which must hear the same."""

import re
import socket
from dataclasses import dataclass

import pytest
import socks as pysocks

from lab.errors import LabError
from lab.netns import Lab
from lab.tor import RELAYS, RELAYS_FOR_ONIONS, SITES, SOCKS_PORT, Tor, TorNetwork
from lab.user import NOBODY
from lab.wait import PATIENCE_S, until
from vtl_tools.common.packet import address
from vtl_tools.common.socks import Client, Command, Connected, Credentials, Failed, Reason, Resolved

pytestmark = [pytest.mark.tor, pytest.mark.lab, pytest.mark.slow]

V4, V6 = (address.ip(site) for site in SITES)
NAMES = {"www.example": SITES, "six.example": (SITES[1],)}
EXITS = {place for places in RELAYS.values() for place in places}
FOUND, REFUSED_PORT = 80, 81
GET = b"GET /index.html HTTP/1.0\r\n\r\n"
NO_SUCH_ONION = "a" * 56 + ".onion"


@dataclass
class Scene:
    lab: Lab
    net: TorNetwork
    client: Tor
    web: object


@pytest.fixture(scope="module")
def scene():
    """A private Tor network, a client of it, and a web server on the other side."""
    with Lab() as lab:
        net = TorNetwork(lab, lab.host("world"), names=NAMES, relays=RELAYS_FOR_ONIONS)
        web = lab.http(net.site, FOUND, {"index.html": b"hello"})
        yield Scene(lab, net, net.client(lab.host("guest")), web)


@pytest.fixture(scope="module")
def onion(scene):
    return scene.net.onion(FOUND, f"{SITES[0]}:{FOUND}")


def ask(scene, command, target, port=0, credentials=None, pipelined=True):
    """Ask tor through our codec over a blocking socket: the open socket, and the last event."""
    client = Client(credentials=credentials, pipelined=pipelined)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE_S)
    sock.connect(str(scene.client.socks))
    sock.sendall(client.request(command, target, port))
    event = None
    while not client.done:
        octets = sock.recv(4096)
        for event in client.receive(octets) if octets else client.eof():
            if not isinstance(event, Connected | Resolved | Failed):
                sock.sendall(event.octets)
    assert client.rest == b""
    return sock, event


def outcome(scene, *args, **more):
    sock, event = ask(scene, *args, **more)
    sock.close()
    return event


def fetch(sock) -> bytes:
    sock.sendall(GET)
    with sock.makefile("rb") as stream:
        return stream.read()


@pytest.mark.parametrize("target", [V4, "www.example"], ids=["address", "name"])
def test_connect_reaches_the_server_which_sees_an_exit(scene, target):
    before = len(scene.web.requests())
    sock, event = ask(scene, Command.CONNECT, target, FOUND)
    with sock:
        assert isinstance(event, Connected)
        assert fetch(sock).endswith(b"hello")
    seen = {line.split()[0] for line in scene.web.requests()[before:]}
    assert len(seen) == 1
    assert seen <= EXITS


@pytest.mark.parametrize("target", [V6, "six.example"], ids=["address", "name"])
def test_connect_reaches_the_server_over_ipv6(scene, target):
    before = len(scene.web.requests())
    sock, event = ask(scene, Command.CONNECT, target, FOUND)
    with sock:
        assert isinstance(event, Connected)
        assert fetch(sock).endswith(b"hello")
    [line] = scene.web.requests()[before:]
    assert line.split()[0] in EXITS
    assert ":" in line.split()[0]


def test_a_conversation_step_by_step_comes_to_the_same(scene):
    alice = Credentials(b"alice", b"secret")
    sock, event = ask(scene, Command.CONNECT, V4, FOUND, credentials=alice, pipelined=False)
    with sock:
        assert isinstance(event, Connected)
        assert fetch(sock).endswith(b"hello")


def test_a_name_resolves_at_an_exit(scene):
    assert outcome(scene, Command.RESOLVE, "www.example") == Resolved(V4)
    assert ("A", "www.example") in scene.net.names.asked


def test_a_name_of_the_new_kind_only_resolves_too(scene):
    assert outcome(scene, Command.RESOLVE, "six.example") == Resolved(V6)
    assert ("AAAA", "six.example") in scene.net.names.asked


@pytest.mark.parametrize("target", [V4, V6], ids=SITES)
def test_an_address_resolves_to_its_name(scene, target):
    assert outcome(scene, Command.RESOLVE_PTR, target) == Resolved("www.example")


FAILURES = {
    "unknown-name": ("no.example", FOUND, Reason.HOST_UNREACHABLE),
    "onion-address": (NO_SUCH_ONION, FOUND, Reason.ONION_ADDRESS),
}


def test_a_refused_port_is_a_failure(scene):
    """This tor's exits do not always tell a refusal from other failures (REASON=MISC)."""
    event = outcome(scene, Command.CONNECT, V4, REFUSED_PORT)
    assert event in (Failed(Reason.REFUSED, 5), Failed(Reason.GENERAL, 1))


@pytest.mark.parametrize(("target", "port", "reason"), FAILURES.values(), ids=FAILURES)
def test_failures_have_their_reasons(scene, target, port, reason):
    event = outcome(scene, Command.CONNECT, target, port)
    assert isinstance(event, Failed)
    assert event.reason is reason


def test_an_unknown_name_does_not_resolve(scene):
    assert outcome(scene, Command.RESOLVE, "no.example") == Failed(Reason.HOST_UNREACHABLE, 4)


def circuits(scene, target: str) -> dict[str, str]:
    """The circuit of each open stream to a target, by stream."""
    lines = "\n".join(scene.client.ask("GETINFO stream-status"))
    return dict(
        re.findall(rf"^(?:stream-status=)?(\d+) SUCCEEDED (\d+) {re.escape(target)}", lines, re.MULTILINE)
    )


def test_streams_of_different_credentials_share_no_circuit(scene):
    socks = []
    for user in b"alice", b"bob", b"alice":
        sock, event = ask(scene, Command.CONNECT, V4, FOUND, credentials=Credentials(user, b"x"))
        assert isinstance(event, Connected)
        socks.append(sock)
    found = circuits(scene, f"{SITES[0]}:{FOUND}")
    alice, bob, again = (found[stream] for stream in sorted(found, key=int)[-3:])
    for sock in socks:
        sock.close()
    assert alice == again != bob


def test_a_new_identity_gets_a_new_circuit(scene):
    seen = []
    for _ in range(2):
        sock, _ = ask(scene, Command.CONNECT, V4, FOUND)
        with sock:
            found = circuits(scene, f"{SITES[0]}:{FOUND}")
            seen.append(found[max(found, key=int)])
        scene.client.ask("SIGNAL NEWNYM")
    assert len(set(seen)) == 2


def test_an_onion_service_answers(scene, onion):
    sock, event = ask(scene, Command.CONNECT, onion, FOUND)
    with sock:
        assert isinstance(event, Connected)
        assert fetch(sock).endswith(b"hello")


def test_the_clients_host_reaches_nothing_but_relays(scene):
    assert scene.client.host.run("ping", "-c1", "-W1", next(iter(RELAYS.values()))[0]).returncode == 0
    with scene.client.host.enter(), pytest.raises(OSError, match="unreachable"):
        socket.create_connection((SITES[0], FOUND), 5)


def by_pysocks(host, target, port):
    """What PySocks comes to: the page, or the code in its error."""
    with host.enter():
        sock = pysocks.socksocket()
    with sock:
        sock.set_proxy(pysocks.SOCKS5, "127.0.0.1", SOCKS_PORT, rdns=True)
        sock.settimeout(PATIENCE_S)
        try:
            sock.connect((target, port))
        except OSError as error:
            return int(re.search(r"0x[0-9a-f]{2}", str(error))[0], 16)
        return fetch(sock)


@pytest.mark.parametrize("target", [SITES[0], "www.example"])
def test_pysocks_fetches_the_same_page(scene, target):
    assert by_pysocks(scene.client.host, target, FOUND).endswith(b"hello")


@pytest.mark.parametrize(("target", "port", "reason"), FAILURES.values(), ids=FAILURES)
def test_pysocks_hears_the_same_codes(scene, target, port, reason):
    ours = outcome(scene, Command.CONNECT, target, port)
    assert by_pysocks(scene.client.host, target, port) == ours.code


OTHER_TORRC = """
DataDirectory {data}
SocksPort 127.0.0.1:{port}
"""


def test_any_tor_is_a_client_by_the_lines_for_it(scene, tmp_path):
    host = scene.lab.host("other")
    scene.net.join(host)
    scene.net.join(host)  # once is enough, twice does no harm
    torrc = tmp_path / "torrc"
    own = OTHER_TORRC.format(data=tmp_path / "data", port=SOCKS_PORT)
    torrc.write_text(own + scene.net.torrc_client())
    host.popen("tor", "--hush", "-f", torrc)
    listening = f"127.0.0.1:{SOCKS_PORT}"
    until(lambda: listening in host.run("ss", "-Hltn").stdout, listening)
    assert by_pysocks(host, "www.example", FOUND).endswith(b"hello")


def test_every_user_may_use_the_clients_socket(scene):
    connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(scene.client.socks)!r})"
    scene.client.host.run("python3", "-c", connect, user=NOBODY)


def test_the_server_saw_exits_only(scene):
    sock, _ = ask(scene, Command.CONNECT, V4, FOUND)
    with sock:
        fetch(sock)
    own = {"10.98.0.1"}  # the onion service's, which is no exit
    assert {line.split()[0] for line in scene.web.requests()} <= EXITS | own


def test_a_tor_that_does_not_start_says_why(scene):
    with pytest.raises(
        LabError, match=r"client-bad: ended with status 1; its last lines:(.|\n)*NoSuchOption"
    ):
        scene.net.client(scene.lab.host("bad"), more="NoSuchOption 1\n")


def test_a_refused_command_is_an_error(scene):
    with pytest.raises(LabError, match="control: 510"):
        scene.client.ask("FROBNICATE")


@pytest.mark.parametrize("relays", [2, 6])
def test_a_network_of_too_few_or_many_relays_is_refused(lab, relays):
    with pytest.raises(LabError, match=f"{relays} relays"):
        TorNetwork(lab, lab.host("world"), relays=relays)
