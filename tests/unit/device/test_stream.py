"""QEMU's stream framing: any split of the octets, a peer that comes and goes, or lies."""

import socket
import stat
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.device.helpers import ether, octets, plain, read_all, ready, tcp, until
from vtl_tools.common.device.base import RETRY_S, Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.device.stream import LENGTH_MAX, StreamDevice
from vtl_tools.common.errors import DeviceError
from vtl_tools.common.packet.vnet import VNET


def open_(device):
    with device:
        pass


def framed(*frames):
    return b"".join(struct.pack("!I", len(frame)) + frame for frame in frames)


class Wire:
    """A StreamDevice that serves, and the plain socket of a client that plays QEMU."""

    def __init__(self, path):
        self.path = str(path)
        self.device = StreamDevice("qemu:test", self.path, server=True)
        self.device.connect()
        self.qemu = self.join()

    def join(self):
        qemu = socket.socket(socket.AF_UNIX)
        qemu.connect(self.path)
        qemu.settimeout(10)
        until(lambda: self.device.up, self.device)
        return qemu

    def close(self):
        self.qemu.close()
        self.device.close()


@pytest.fixture
def wire(tmp_path):
    wire = Wire(tmp_path / "sock")
    yield wire
    wire.close()


def test_frames_pass_both_ways(wire):
    wire.qemu.sendall(framed(ether(1), ether(2, 1514)))
    assert read_all(wire.device, 2) == [ether(1), ether(2, 1514)]
    assert wire.device.write(Batch.of([plain(3), plain(4, 1514)])) == 2
    expected = framed(ether(3), ether(4, 1514))
    assert wire.qemu.recv(len(expected), socket.MSG_WAITALL) == expected
    assert (wire.device.tx_frames, wire.device.tx_octets) == (2, 1574)
    assert (wire.device.rx_frames, wire.device.rx_octets) == (2, 1574)


def test_frames_survive_every_split_of_the_stream(wire):
    stream = framed(ether(1), ether(2, 20), ether(3))
    for at in range(1, len(stream)):
        wire.qemu.sendall(stream[:at])
        got = octets(wire.device.read())
        wire.qemu.sendall(stream[at:])
        assert got + read_all(wire.device, 3 - len(got)) == [ether(1), ether(2, 20), ether(3)]


def test_frames_arrive_octet_by_octet(wire):
    got = []
    for octet in framed(ether(1, 30), ether(2, 30)):
        wire.qemu.sendall(bytes([octet]))
        got += octets(wire.device.read())
    assert got == [ether(1, 30), ether(2, 30)]


def test_more_frames_than_a_batch_holds_wake_the_reader_until_all_are_read(wire):
    sent = [ether(n, 14 + n % 50) for n in range(5 * SLOTS + 7)]
    wire.qemu.sendall(framed(*sent))
    assert read_all(wire.device, len(sent)) == sent
    assert not ready(wire.device, 0)


def test_the_largest_frame_passes_both_ways(wire):
    largest = ether(1, FRAME_MAX - VNET)
    for _ in range(5):  # enough to go round the buffer
        wire.qemu.sendall(framed(largest))
        assert read_all(wire.device, 1) == [largest]
    super_segment = tcp(b"x" * 60_000, gso_size=1000)
    assert wire.device.write(Batch.of([super_segment])) == 60
    assert len(wire.qemu.recv(60 * 1058, socket.MSG_WAITALL)) == 60 * 1058


@pytest.mark.parametrize("length", [0, 1, 13])
def test_runts_are_counted_and_passed_over(wire, length):
    wire.qemu.sendall(framed(ether(1), bytes(length), ether(2)))
    assert read_all(wire.device, 2) == [ether(1), ether(2)]
    assert wire.device.drops == {Drop.RUNT: 1}


def test_a_frame_that_qemu_takes_and_ip_has_not_is_passed_over(wire):
    wire.qemu.sendall(framed(bytes(LENGTH_MAX), ether(1)))
    assert read_all(wire.device, 1) == [ether(1)]
    assert wire.device.drops == {Drop.TOO_BIG: 1}


@pytest.mark.parametrize("length", [LENGTH_MAX + 1, 0x8000_0000, 0xFFFF_FFFF])
def test_a_corrupt_length_ends_the_connection_and_the_next_is_taken(wire, length, caplog):
    wire.qemu.sendall(framed(ether(1)) + struct.pack("!I", length) + bytes(100))
    assert read_all(wire.device, 1) == [ether(1)]
    assert not wire.device.up
    assert wire.device.losses == 1
    assert wire.device.drops == {Drop.TOO_BIG: 1}
    assert f"it announced a frame of {length} octets" in caplog.text
    with suppress(ConnectionResetError):  # what we had not read is lost with it
        assert wire.qemu.recv(1) == b""
    with wire.join() as qemu:
        qemu.sendall(framed(ether(2)))
        assert read_all(wire.device, 1) == [ether(2)]


def test_a_peer_that_leaves_amid_a_frame_leaves_nothing_behind(wire):
    wire.qemu.sendall(framed(ether(1)) + framed(ether(2))[:30])
    assert read_all(wire.device, 1) == [ether(1)]
    wire.qemu.close()
    until(lambda: not wire.device.up, wire.device)
    assert wire.device.write(Batch.of([plain(9)])) == 0
    assert wire.device.drops == {Drop.LINK_DOWN: 1}
    with wire.join() as qemu:
        qemu.sendall(framed(ether(3)))
        assert read_all(wire.device, 1) == [ether(3)]


def test_a_second_client_waits_until_the_first_leaves(wire):
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(wire.path)
        second.sendall(framed(ether(2)))
        wire.qemu.sendall(framed(ether(1)))
        assert read_all(wire.device, 1) == [ether(1)]
        assert not ready(wire.device, 0)
        wire.qemu.close()
        assert read_all(wire.device, 1) == [ether(2)]
        # Nor does it wake for a peer that is there, when the time to look for one comes.
        assert not ready(wire.device, 1.2 * RETRY_S)


def test_a_full_socket_drops_whole_frames_and_finishes_the_one_it_began(wire):
    batch = Batch.of([plain(n, 1514) for n in range(SLOTS)])
    taken = 0
    while not wire.device.drops:
        taken += wire.device.write(batch)
    dropped = wire.device.drops[Drop.QUEUE_FULL]
    assert wire.device.write(batch) == 0
    assert wire.device.drops == {Drop.QUEUE_FULL: dropped + SLOTS}
    assert wire.device.tx_frames == taken
    assert wire.device.tx_octets == taken * 1514

    received = bytearray()
    while len(received) < taken * 1518:
        received += wire.qemu.recv(1 << 20)
        if ready(wire.device, 0):
            wire.device.read()
    assert len(received) == taken * 1518
    assert [received[at : at + 4] for at in range(0, len(received), 1518)] == [b"\0\0\x05\xea"] * taken
    assert not ready(wire.device, 0)
    assert wire.device.write(Batch.of([plain(1)])) == 1
    assert wire.qemu.recv(64, socket.MSG_WAITALL) == framed(ether(1))


def test_a_peer_lost_while_a_frame_was_half_sent_gets_whole_frames_next_time(wire):
    batch = Batch.of([plain(n, 1514) for n in range(SLOTS)])
    while not wire.device.drops:
        wire.device.write(batch)
    wire.qemu.close()
    until(lambda: not wire.device.up, wire.device)
    with wire.join() as qemu:
        assert wire.device.write(Batch.of([plain(1)])) == 1
        assert qemu.recv(64, socket.MSG_WAITALL) == framed(ether(1))


def test_writing_to_a_peer_that_just_left_is_counted(wire):
    wire.qemu.close()
    assert wire.device.write(Batch.of([plain(1), plain(2)])) == 0
    assert wire.device.drops == {Drop.LINK_DOWN: 2}
    assert not wire.device.up


@pytest.mark.parametrize("address", ["unix", ("127.0.0.1", 0), ("::1", 0)])
def test_client_and_server_find_each_other_in_any_order_and_again(tmp_path, address):
    if address == "unix":
        address = str(tmp_path / "sock")
    else:
        with socket.create_server(
            address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        ) as s:
            address = s.getsockname()[:2]
    with StreamDevice("qemu:client", address) as client:
        assert not client.up
        assert client.write(Batch.of([plain()])) == 0
        for n in range(2):
            with StreamDevice("qemu:server", address, server=True) as server:
                until(lambda: client.up and server.up, client, server)
                client.write(Batch.of([plain(n)]))
                assert read_all(server, 1) == [ether(n)]
                server.write(Batch.of([plain(n + 1)]))
                assert read_all(client, 1) == [ether(n + 1)]
            until(lambda: not client.up, client)
        assert client.losses == 2


def test_the_socket_s_file_is_for_its_owner_only_and_goes_with_the_link(tmp_path):
    path = tmp_path / "sock"
    with StreamDevice("qemu:test", str(path), server=True):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_stale_file_is_replaced(tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with StreamDevice("qemu:test", str(path), server=True), socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(str(path))


def test_a_live_server_s_file_is_left_alone(wire):
    with pytest.raises(DeviceError, match="another process serves"):
        open_(StreamDevice("qemu:test", wire.path, server=True))
    wire.qemu.sendall(framed(ether(1)))
    assert read_all(wire.device, 1) == [ether(1)]


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(DeviceError, match="is not a socket"):
        open_(StreamDevice("qemu:test", str(path), server=True))
    assert path.read_text() == "data"


@pytest.mark.parametrize("server", [False, True])
def test_a_missing_directory_is_an_error_and_not_waited_for(tmp_path, server):
    with pytest.raises(DeviceError, match="there is no directory"):
        open_(StreamDevice("qemu:test", str(tmp_path / "no" / "sock"), server=server))


def test_an_address_in_use_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(DeviceError, match="qemu:test: Address already in use"):
            open_(StreamDevice("qemu:test", other.getsockname(), server=True))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(pieces=st.lists(st.binary(max_size=60), max_size=8))
def test_whatever_a_peer_says_nothing_is_raised_and_nothing_is_kept(wire, pieces):
    for piece in pieces:
        with suppress(OSError):
            wire.qemu.sendall(piece)
        wire.device.read()
    if not wire.device.up:
        wire.qemu.close()
        wire.qemu = wire.join()
