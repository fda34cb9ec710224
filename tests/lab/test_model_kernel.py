"""Real connections pass a model, and what it knows is what both kernels hold; what it says, they believe.

Two hosts on either side of a wire, which is the test itself: it carries each frame from one to the other,
and follows it on the way. The kernels' variables are read by way of TCP_REPAIR (Linux: tcp_repair(7) is
what checkpointing a process uses), TCP_INFO and the queues' ioctls.
"""

import fcntl
import socket
import struct
import time
from dataclasses import dataclass, field

import pytest

from lab.wait import PATIENCE_S
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.udp import UdpModel
from vtl_tools.common.packet import tcp
from vtl_tools.common.packet.packet import Packet

pytestmark = pytest.mark.lab

TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ, TCP_REPAIR_WINDOW = 19, 20, 21, 29
RECV_QUEUE, SEND_QUEUE = 1, 2
REPAIR_OFF_SILENTLY = -1
SIOCOUTQ, SIOCOUTQNSD = 0x5411, 0x894B
WITH_TIMESTAMPS, WITH_SACK, WITH_WSCALE = 1, 2, 4  # tcpi_options
STATES = ["", "ESTABLISHED", "SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED",
          "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING"]  # fmt: skip


@dataclass
class Truth:
    """What a kernel holds of one end."""

    state: str
    snd_una: int
    snd_nxt: int
    rcv_nxt: int
    snd_wnd: int
    rcv_wnd: int
    wscale: int
    peer_wscale: int
    timestamps: bool
    sack_permitted: bool
    advmss: int

    @classmethod
    def of(cls, sock):
        def ask(option, form):
            return struct.unpack(form, sock.getsockopt(socket.IPPROTO_TCP, option, struct.calcsize(form)))

        def queue(ioctl):
            return struct.unpack("i", fcntl.ioctl(sock, ioctl, bytes(4)))[0]

        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, SEND_QUEUE)
            (written,) = ask(TCP_QUEUE_SEQ, "I")
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, RECV_QUEUE)
            (rcv_nxt,) = ask(TCP_QUEUE_SEQ, "I")
            _, snd_wnd, _, rcv_wnd, rcv_wup = ask(TCP_REPAIR_WINDOW, "5I")
        finally:
            sock.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF_SILENTLY)
        assert rcv_wup == rcv_nxt, "all is acknowledged"
        return cls(
            state=STATES[info[0]],
            snd_una=(written - queue(SIOCOUTQ)) % 2**32,
            snd_nxt=(written - queue(SIOCOUTQNSD)) % 2**32,
            rcv_nxt=rcv_nxt,
            snd_wnd=snd_wnd,
            rcv_wnd=min(rcv_wnd, 0xFFFF << (info[6] >> 4)),  # it is kept larger than a header can tell
            wscale=info[6] >> 4,
            peer_wscale=info[6] & 15,
            timestamps=bool(info[5] & WITH_TIMESTAMPS),
            sack_permitted=bool(info[5] & WITH_SACK),
            advmss=struct.unpack_from("I", info, 8 + 4 * 19)[0],
        )


def known(model, end):
    """The same of one end, by the model."""
    one, other = model[end], model[end.other]
    return Truth(
        state=one.state.value,
        snd_una=one.snd_una,
        snd_nxt=one.snd_nxt,
        rcv_nxt=one.rcv_nxt,
        snd_wnd=one.snd_wnd,
        rcv_wnd=one.rcv_wnd,
        wscale=one.wscale,
        peer_wscale=other.wscale,
        timestamps=model.timestamps,
        sack_permitted=model.sack_permitted,
        advmss=one.mss - (12 if model.timestamps else 0),  # Linux counts the option in
    )


@dataclass
class Wire:
    """Carries frames between the hosts, and follows the one connection or conversation that it sees."""

    devices: dict
    kind: type = TcpModel
    model: object = None
    refused: list = field(default_factory=list)
    seen: set = field(default_factory=set)
    carrying: bool = True

    def carry(self):
        for end, device in self.devices.items():
            if batch := device.read():
                for frame in batch:
                    self.follow(frame, end)
                if self.carrying:
                    self.devices[end.other].write(batch)

    def follow(self, frame, end):
        pkt = Packet.at(frame)
        if not isinstance(pkt.transport, self.kind.HEADER):
            return
        if self.model is None:
            if not pkt.is_rst:
                self.model = self.kind.from_packet(pkt, end)
            return
        said = self.model.sync_frame(frame) if self.kind is TcpModel else self.model.sync(pkt)
        if self.kind is TcpModel:
            self.seen.add(self.model.seen.text)
        if said is not end:
            self.refused.append((end, self.model.seen, repr(pkt.tcp)))

    def until(self, condition, what):
        """Carry frames until the condition holds, and return its value."""
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not in time\n{self.model}\n{self.refused}"
            self.carry()
            time.sleep(0.0005)
        return value

    def inject(self, frame, from_):
        """Put a frame on the wire, as if `from_` had sent it."""
        assert self.devices[from_.other].write(Batch.of([frame])) == 1


@pytest.fixture
def hosts(lab):
    """The two hosts, and the wire between them."""
    local, middle, remote = lab.host("local"), lab.host("middle", ipv6=False), lab.host("remote")
    lab.veth(local, "eth0", middle, "vm")
    lab.veth(remote, "eth0", middle, "net")
    local.addr("eth0", "10.0.0.1/24", "fd00::1/64")
    remote.addr("eth0", "10.0.0.2/24", "fd00::2/64")
    devices = {LOCAL: PacketDevice("vm"), REMOTE: PacketDevice("net")}
    with middle.enter():
        for device in devices.values():
            device.connect()
    yield local, remote, Wire(devices)
    for device in devices.values():
        device.close()


FAMILIES = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
BOTH = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])


def connect(hosts, version):
    """Open a connection from the local host; return both sockets, the local one first."""
    local, remote, wire = hosts
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with remote.enter():
        server = socket.create_server((FAMILIES[version][1], 8000), family=family)
    with local.enter():
        client = socket.socket(family)
    server.setblocking(False)
    client.setblocking(False)
    client.connect_ex((FAMILIES[version][1], 8000))

    def accept():
        try:
            return server.accept()[0]
        except BlockingIOError:
            return None

    accepted = wire.until(accept, "accepting")
    server.close()
    accepted.setblocking(False)
    return client, accepted


def transfer(wire, source, sink, octets):
    """Send so many octets through the wire while reading them at the other end."""
    data, sent, got = bytes(1 << 16), 0, 0

    def step():
        nonlocal sent, got
        try:
            while sent < octets:
                sent += source.send(data[: octets - sent])
        except BlockingIOError:
            pass
        got += len(receive(sink))
        return got == octets

    wire.until(step, f"{octets} octets")


def receive(sock, size=1 << 20):
    try:
        return sock.recv(size)
    except BlockingIOError:
        return b""


def agree(wire, client, server):
    """Wait until the model and both kernels hold the same: ACKs may be delayed, by a kernel or the wire."""
    ends = (client, LOCAL), (server, REMOTE)

    def same():
        try:
            return all(Truth.of(sock) == known(wire.model, end) for sock, end in ends)
        except AssertionError:
            return False  # an ACK is still due

    try:
        wire.until(same, "agreeing")
    except AssertionError:
        for sock, end in ends:
            assert known(wire.model, end) == Truth.of(sock)
        raise
    assert wire.refused == []


def set_both(hosts, **variables):
    for host in hosts[:2]:
        for name, value in variables.items():
            host.sysctl(f"net.ipv4.{name}", value)


@BOTH
@pytest.mark.parametrize("timestamps", [1, 0], ids=["timestamps", "no-timestamps"])
@pytest.mark.parametrize("scaling", [1, 0], ids=["wscale", "no-wscale"])
@pytest.mark.parametrize("sack", [1, 0], ids=["sack", "no-sack"])
def test_the_model_holds_what_both_kernels_hold(hosts, version, timestamps, scaling, sack):
    set_both(hosts, tcp_timestamps=timestamps, tcp_window_scaling=scaling, tcp_sack=sack)
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        agree(wire, client, server)
        assert (wire.model.timestamps, wire.model.sack_permitted) == (bool(timestamps), bool(sack))
        transfer(wire, client, server, 2_000_000)
        agree(wire, client, server)
        transfer(wire, server, client, 2_000_000)
        agree(wire, client, server)
        client.shutdown(socket.SHUT_WR)
        wire.until(lambda: wire.model.remote.state.value == "CLOSE-WAIT", "half close")
        agree(wire, client, server)
        transfer(wire, server, client, 500_000)
        agree(wire, client, server)
    wire.until(lambda: wire.model.closed, "closing")
    assert wire.refused == []
    assert (wire.model.local.state.value, wire.model.remote.state.value) == ("TIME-WAIT", "CLOSED")


@BOTH
def test_one_end_may_not_scale_or_stamp(hosts, version):
    hosts[1].sysctl("net.ipv4.tcp_window_scaling", 0)
    hosts[0].sysctl("net.ipv4.tcp_timestamps", 0)
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 300_000)
        transfer(wire, server, client, 300_000)
        agree(wire, client, server)
        assert (wire.model.local.wscale, wire.model.timestamps) == (0, False)


@BOTH
def test_a_full_receiver_is_known_to_be_full(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        sent = 0

        def fill():
            nonlocal sent
            try:
                while True:
                    sent += client.send(bytes(1 << 16))
            except BlockingIOError:
                return wire.model.local.snd_wnd == 0

        wire.until(fill, "filling")
        assert wire.model.remote.rcv_wnd == 0
        wire.until(lambda: "keep-alive" in wire.seen, "a probe of the window")
        got = 0

        def drain():
            nonlocal got
            got += len(receive(server))
            return got == sent

        wire.until(drain, "draining")
        agree(wire, client, server)


@BOTH
def test_keep_alives_of_an_idle_connection_change_nothing(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 1000)
        agree(wire, client, server)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        wire.until(lambda: "keep-alive" in wire.seen, "a keep-alive")
        agree(wire, client, server)


@BOTH
def test_a_reset_ends_the_connection_for_the_model_too(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 1000)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.close()
        wire.until(lambda: wire.model.closed, "the reset")
        assert wire.refused == []


@BOTH
def test_a_connection_that_was_joined_in_the_middle_is_known_but_for_its_scales(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 300_000)
        agree(wire, client, server)
        shifts = wire.model.local.wscale, wire.model.remote.wscale
        mss = wire.model.local.mss, wire.model.remote.mss
        wire.model = None
        transfer(wire, client, server, 300_000)
        transfer(wire, server, client, 300_000)
        model = wire.model
        assert model.joined
        assert model.local.wscale is model.remote.wscale is model.sack_permitted is None
        for i, end in enumerate((LOCAL, REMOTE)):
            model.learn_scale(end, shifts[i])
            model[end].mss, model[end].sack_permitted = mss[i], True
        transfer(wire, client, server, 300_000)
        transfer(wire, server, client, 300_000)
        agree(wire, client, server)


@BOTH
@pytest.mark.parametrize("stamps", [1, 0], ids=["timestamps", "no-timestamps"])
@pytest.mark.parametrize("size", [5, 1400, 30_000])
@pytest.mark.parametrize("from_", [LOCAL, REMOTE], ids=["local", "remote"])
def test_data_that_the_model_makes_is_taken_by_the_kernel_that_gets_it(hosts, version, stamps, size, from_):
    set_both(hosts, tcp_timestamps=stamps)
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 20_000)
        transfer(wire, server, client, 20_000)
        agree(wire, client, server)
        wire.carrying = False  # the end that did not say it must not hear the answer
        model, payload = wire.model, bytes(i % 251 for i in range(size))
        wire.inject(model.create(payload, from_=from_, offload=size > 1400), from_)
        sink, got = (server if from_ is LOCAL else client), b""

        def read():
            nonlocal got
            got += receive(sink)
            return got == payload

        wire.until(read, "reading")
        wire.until(lambda: model[from_].snd_una == model[from_].snd_nxt, "the kernel's ACK")
        truth = Truth.of(sink)
        assert truth.rcv_nxt == model[from_].snd_nxt
        assert wire.refused == []


@BOTH
@pytest.mark.parametrize("from_", [LOCAL, REMOTE], ids=["local", "remote"])
def test_a_window_of_zero_stops_the_kernel_that_gets_it(hosts, version, from_):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 20_000)
        transfer(wire, server, client, 20_000)
        agree(wire, client, server)
        wire.carrying = False
        model, told = wire.model, server if from_ is LOCAL else client
        wire.inject(model.create(from_=from_, ack=model[from_.other].snd_una, window=0), from_)
        wire.until(lambda: Truth.of(told).snd_wnd == 0, "SND.WND")
        assert model[from_.other].snd_wnd == 0
        wire.seen.clear()
        told.send(b"for later")
        wire.until(lambda: "keep-alive" in wire.seen, "a probe")
        assert Truth.of(told).snd_nxt == model[from_.other].snd_nxt, "nothing but probes was sent"
        wire.inject(model.create(from_=from_, ack=model[from_.other].snd_una, window=0), from_)
        wire.carrying = True
        wire.inject(model.create(from_=from_, window=60_000), from_)
        reader = client if from_ is LOCAL else server
        wire.until(lambda: receive(reader) == b"for later", "what waited")
        assert wire.refused == []


@BOTH
def test_an_adopted_segment_is_taken_as_data_of_the_connection(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 1000)
        agree(wire, client, server)
        wire.carrying = False
        other = bytearray(wire.model.create(b"from elsewhere", sync=False))
        pkt = Packet.at(other)
        pkt.tcp.sport, pkt.tcp.seq, pkt.ip.ttl, pkt.eth.src = 7, 77, 3, b"\x02other"
        wire.model.adopt(pkt, LOCAL)
        wire.inject(other, LOCAL)
        wire.until(lambda: receive(server) == b"from elsewhere", "reading")
        wire.until(lambda: wire.model.local.snd_una == wire.model.local.snd_nxt, "the kernel's ACK")


@BOTH
def test_a_reset_that_the_model_makes_is_believed(hosts, version):
    wire = hosts[2]
    client, server = connect(hosts, version)
    with client, server:
        transfer(wire, client, server, 1000)
        agree(wire, client, server)
        wire.inject(wire.model.create(from_=LOCAL, flags=tcp.RST | tcp.ACK), LOCAL)

        def reset():
            try:
                return server.recv(1) == b"never"
            except ConnectionResetError:
                return True
            except BlockingIOError:
                return False

        wire.until(reset, "the reset")
        assert wire.model.closed


@BOTH
@pytest.mark.parametrize("offload", [False, True])
def test_datagrams_that_the_model_makes_are_received(hosts, version, offload):
    local, remote, wire = hosts
    wire.kind = UdpModel
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with local.enter():
        client = socket.socket(family, socket.SOCK_DGRAM)
    with remote.enter():
        server = socket.socket(family, socket.SOCK_DGRAM)
    with client, server:
        for sock, address in zip((client, server), FAMILIES[version], strict=True):
            sock.setblocking(False)
            sock.bind((address, 5000))
        client.connect((FAMILIES[version][1], 5000))
        client.send(b"hello")
        wire.until(lambda: receive(server) == b"hello", "the first")
        server.sendto(b"yes", (FAMILIES[version][0], 5000))
        wire.until(lambda: receive(client) == b"yes", "the answer")
        wire.inject(wire.model.create(b"from local", offload=offload), LOCAL)
        wire.until(lambda: receive(server) == b"from local", "ours to the remote")
        wire.inject(wire.model.create(b"from remote", from_=REMOTE, offload=offload), REMOTE)
        wire.until(lambda: receive(client) == b"from remote", "ours to the local")
        assert wire.refused == []
