"""The TCP endpoint against a real kernel, which is at the other end of a wire and knows nothing of us."""

import socket
import time
from random import Random

import pytest

from lab.wait import PATIENCE_S
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, build, nd
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.common.tcp.wire import Path

pytestmark = pytest.mark.lab

OUR_MAC, THEIR_MAC = address.mac("02:00:00:00:00:01"), "02:00:00:00:00:02"
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
OCTETS = 3_000_000


class Wire:
    """One endpoint on a link to a kernel, driven by polling; it answers ARP and neighbour discovery."""

    def __init__(self, device, host, version):
        self.device, self.host, self.version = device, host, version
        ours, theirs = HOSTS[version]
        self.path = Path(OUR_MAC, address.mac(THEIR_MAC), address.ip(ours), address.ip(theirs), 40000, 8000)
        self.endpoint = None

    def connect(self, config=None):
        self.endpoint = Endpoint(self.path, b"secret", time.monotonic(), config)
        self.endpoint.connect()

    def listen(self, port, config=None):
        """Listen for the kernel's socket that is bound to a port of its own."""
        path = self.path.replace(local_port=80, remote_port=port)
        self.endpoint = Endpoint(path, b"secret", time.monotonic(), config)
        self.endpoint.listen()

    def turn(self):
        now, end = time.monotonic(), self.endpoint
        for frame in self.device.read():
            if not self.resolve(frame):
                end.receive(frame, now)
        if (due := end.deadline()) is not None and due <= now:
            end.wake(now)
        frames = end.transmit(now)
        for at in range(0, len(frames), 64):
            self.device.write(Batch.of(frames[at : at + 64]))

    def resolve(self, frame):
        pkt, path = Packet.at(frame), self.path
        macs = {"src_mac": OUR_MAC, "dst_mac": path.remote_mac}
        if pkt.is_arp_request and pkt.arp.tpa == path.local:
            reply = build.arp(
                **macs, oper=2, sha=OUR_MAC, spa=path.local, tha=path.remote_mac, tpa=path.remote
            )
        elif pkt.icmp is not None and pkt.icmp.type == nd.NEIGHBOR_SOLICIT and pkt.nd.target == path.local:
            reply = build.neighbor_advert(
                **macs, src=path.local, dst=pkt.ip.src, target=path.local, lladdr=OUR_MAC
            )
        else:
            return False
        self.device.write(Batch.of([reply]))
        return True

    def until(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not in time\n{self.endpoint} {self.endpoint.info()}"
            self.turn()
        return value

    def until_state(self, state):
        self.until(lambda: self.endpoint.state is state, state.value)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def wire(lab, request):
    host, us = lab.host("host"), lab.host("us", ipv6=False)
    lab.veth(host, "eth0", us, "vm", left_mac=THEIR_MAC)
    host.addr("eth0", "10.0.0.2/24", "fd00::2/64")
    device = PacketDevice("vm")
    with us.enter():
        device.connect()
    yield Wire(device, host, request.param)
    device.close()


def active(wire, config=None):
    """Connect to a server of the kernel's; return its socket."""
    with wire.host.enter():
        server = socket.create_server((HOSTS[wire.version][1], 8000), family=FAMILY[wire.version])
    server.setblocking(False)
    wire.connect(config)

    def accept():
        try:
            return server.accept()[0]
        except BlockingIOError:
            return None

    accepted = wire.until(accept, "accepting")
    server.close()
    accepted.setblocking(False)
    return accepted


def call(wire):
    """Let the kernel call us; return its socket, once the endpoint was asked."""
    with wire.host.enter():
        client = socket.socket(FAMILY[wire.version])
    client.setblocking(False)
    client.bind((HOSTS[wire.version][1], 0))
    wire.listen(client.getsockname()[1])
    client.connect_ex((HOSTS[wire.version][0], 80))
    wire.until(lambda: wire.endpoint.asked, "the SYN")
    return client


def passive(wire):
    client = call(wire)
    wire.endpoint.accept()
    wire.until_state(State.ESTABLISHED)
    return client


OPENINGS = pytest.mark.parametrize("opening", [active, passive])


def receive(sock):
    """What waits; None at the end."""
    try:
        return sock.recv(1 << 20) or None
    except BlockingIOError:
        return b""


def send(sock, data):
    try:
        return sock.send(data)
    except BlockingIOError:
        return 0


def exchange(wire, sock, ours, theirs):
    """Send both ways at once; return what came to us and to the kernel."""
    left, right = memoryview(ours), memoryview(theirs)
    to_us, to_them = bytearray(), bytearray()

    def turn():
        nonlocal left, right
        if left:
            left = left[wire.endpoint.write(left) :]
        if right:
            right = right[send(sock, right) :]
        while piece := wire.endpoint.read():
            to_us.extend(piece)
        to_them.extend(receive(sock) or b"")
        return len(to_us) == len(theirs) and len(to_them) == len(ours)

    wire.until(turn, "the transfer")
    return to_us, to_them


@OPENINGS
def test_every_octet_arrives_both_ways(wire, opening):
    with opening(wire) as sock:
        ours, theirs = Random(1).randbytes(OCTETS), Random(2).randbytes(OCTETS)
        assert exchange(wire, sock, ours, theirs) == (theirs, ours)
        info = wire.endpoint.info()
        assert info.sack
        assert info.timestamps
        assert info.snd_wscale > 0
        assert info.segments_out < OCTETS / 1460, "super-segments went out"


def test_every_octet_arrives_without_options(wire):
    config = Config(sack=False, timestamps=False, window_scaling=False)
    with active(wire, config) as sock:
        ours, theirs = Random(1).randbytes(OCTETS), Random(2).randbytes(OCTETS)
        assert exchange(wire, sock, ours, theirs) == (theirs, ours)


@OPENINGS
def test_half_closed_by_us_the_kernel_still_sends(wire, opening):
    with opening(wire) as sock:
        wire.endpoint.close()
        wire.until(lambda: receive(sock) is None, "our FIN")
        wire.until_state(State.FIN_WAIT_2)
        data = Random(3).randbytes(500_000)
        assert exchange(wire, sock, b"", data)[0] == data
    wire.until_state(State.TIME_WAIT)
    assert wire.endpoint.at_eof


@OPENINGS
def test_half_closed_by_the_kernel_we_still_send(wire, opening):
    with opening(wire) as sock:
        sock.shutdown(socket.SHUT_WR)
        wire.until_state(State.CLOSE_WAIT)
        data = Random(4).randbytes(500_000)
        assert exchange(wire, sock, data, b"")[1] == data
        wire.endpoint.close()
        wire.until_state(State.CLOSED)
        assert wire.endpoint.ended is Ended.CLOSED


@OPENINGS
def test_urgent_data_arrives_both_ways(wire, opening):
    with opening(wire) as sock:
        sock.send(b"before!", socket.MSG_OOB)
        sock.send(b"after")
        wire.until(lambda: wire.endpoint.readable == 12, "the kernel's octets")
        assert wire.endpoint.urgent == 7
        assert [bytes(wire.endpoint.read(7)), bytes(wire.endpoint.read())] == [b"before!", b"after"]
        wire.endpoint.write(b"ours!", urgent=True)
        wire.endpoint.write(b"more")
        wire.until(lambda: wire.endpoint.acknowledged == 9, "an acknowledgement")
        assert sock.recv(1, socket.MSG_OOB) == b"!"  # Linux: the octet before the pointer
        assert [sock.recv(100), sock.recv(100)] == [b"ours", b"more"]


def test_an_abort_resets_the_kernels_socket(wire):
    with active(wire) as sock:
        wire.endpoint.abort()
        wire.turn()

        def was_reset():
            try:
                return sock.recv(1) == b"?"
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True

        wire.until(was_reset, "the reset")


def test_the_kernels_reset_ends_the_endpoint(wire):
    sock = active(wire)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()
    wire.until_state(State.CLOSED)
    assert wire.endpoint.ended is Ended.RESET


def test_nobody_listens_there(wire):
    wire.connect()
    wire.until_state(State.CLOSED)
    assert wire.endpoint.ended is Ended.REFUSED


def test_a_refused_kernel_says_so(wire):
    with call(wire) as sock:
        wire.endpoint.refuse()
        wire.until(lambda: sock.connect_ex((HOSTS[wire.version][0], 80)) == 111, "ECONNREFUSED")


def test_a_kernel_that_does_not_read_shuts_its_window_and_opens_it(wire):
    with active(wire) as sock:
        data = Random(5).randbytes(8_000_000)
        left = memoryview(data)

        def fill():
            nonlocal left
            left = left[wire.endpoint.write(left) :]
            return wire.endpoint.info().snd_wnd == 0

        wire.until(fill, "a window of zero")
        wire.until(lambda: wire.endpoint.info().retransmits or wire.endpoint.info().unacked == 1, "a probe")
        got = bytearray()

        def drain():
            nonlocal left
            left = left[wire.endpoint.write(left) :]
            got.extend(receive(sock) or b"")
            return len(got) == len(data)

        wire.until(drain, "the rest")
        assert got == data


def test_a_kernel_that_does_not_read_still_sends(wire):
    """Our acknowledgements are acceptable to it although an octet probes its window."""
    with active(wire) as sock:
        ours = memoryview(bytes(8_000_000))

        def fill():
            nonlocal ours
            ours = ours[wire.endpoint.write(ours) :]
            return wire.endpoint.info().snd_wnd == 0 and wire.endpoint.info().unacked == 1

        wire.until(fill, "a probe")
        data = Random(7).randbytes(OCTETS)
        theirs, got = memoryview(data), bytearray()

        def pass_on():
            nonlocal theirs
            theirs = theirs[send(sock, theirs) :]
            while piece := wire.endpoint.read():
                got.extend(piece)
            return len(got) == len(data)

        wire.until(pass_on, "the transfer")
        assert got == data


def test_we_do_not_read_and_the_kernel_waits(wire):
    with active(wire, Config(receive_buffer=100_000)) as sock:
        data = Random(6).randbytes(2_000_000)
        right = memoryview(data)

        def fill():
            nonlocal right
            right = right[send(sock, right) :]
            return wire.endpoint.info().rcv_wnd < 2000

        wire.until(fill, "a full buffer")
        assert wire.endpoint.readable <= 100_000
        got = bytearray()

        def drain():
            nonlocal right
            right = right[send(sock, right) :] if right else right
            while piece := wire.endpoint.read(10_000):
                got.extend(piece)
            return len(got) == len(data)

        wire.until(drain, "the rest")
        assert got == data
