"""QEMU's datagram framing over UDP and unix sockets, and VXLAN between two of ours."""

import socket
import stat

import pytest

from tests.unit.device.helpers import ether, octets, plain, read_all, ready, tcp, until
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.device.dgram import DgramDevice
from vtl_tools.common.device.vxlan import VxlanDevice
from vtl_tools.common.errors import DeviceError
from vtl_tools.common.packet.vnet import NONE, VNET


def free_ports(count, host="127.0.0.1"):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sockets = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(count)]
    for sock in sockets:
        sock.bind((host, 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture(params=["unix", "127.0.0.1", "::1"])
def addresses(request, tmp_path):
    if request.param == "unix":
        return str(tmp_path / "a"), str(tmp_path / "b")
    return tuple((request.param, port) for port in free_ports(2, request.param))


@pytest.fixture
def ends(addresses):
    a, b = addresses
    with DgramDevice("dgram:a", b, a) as left, DgramDevice("dgram:b", a, b) as right:
        until(lambda: left.up and right.up, left, right)
        yield left, right


def test_frames_pass_both_ways(ends):
    for source, target in (ends, ends[::-1]):
        assert source.write(Batch.of([plain(1), plain(2, 1514), tcp(b"x" * 3000, gso_size=1000)])) == 5
        assert ready(target)
        frames = [bytes(frame) for frame in target.read()]
        assert [len(frame) - VNET for frame in frames] == [60, 1514, 1054, 1054, 1054]
        assert frames[:2] == [plain(1), plain(2, 1514)]
        assert all(frame[:VNET] == NONE for frame in frames)
        assert source.drops == target.drops == {}


def test_headers_are_zeros_whatever_was_written_into_them_before(ends):
    left, right = ends
    left.write(Batch.of([plain(1)]))
    for frame in right.read():
        frame[:VNET] = b"\xff" * VNET
    left.write(Batch.of([plain(2)]))
    assert [bytes(frame) for frame in right.read()] == [plain(2)]


def test_no_more_than_a_batch_is_read_at_once(ends):
    left, right = ends
    got = []
    for n in range(0, 2 * SLOTS, 8):  # a unix socket's queue is short
        left.write(Batch.of([plain(m) for m in range(n, n + 8)]))
        got += octets(right.read())
    assert got == [ether(n) for n in range(2 * SLOTS)]


def test_a_peer_that_leaves_and_comes_back(addresses):
    a, b = addresses
    with DgramDevice("dgram:a", b, a) as left:
        for n in range(2):
            with DgramDevice("dgram:b", a, b) as right:
                until(lambda: left.up and right.up, left, right) if isinstance(a, str) else None
                right.write(Batch.of([plain(n)]))
                assert read_all(left, 1) == [ether(n)]
                assert left.up
                left.write(Batch.of([plain(n)]))
                assert read_all(right, 1) == [ether(n)]
            left.write(Batch.of([plain(9)]))  # over UDP it goes, and the answer is that nobody listens
            until(lambda: not left.up, left)
            assert left.losses == n + 1


def test_only_the_configured_peer_is_heard(ends, addresses, tmp_path):
    left, right = ends
    family = socket.AF_UNIX if isinstance(addresses[0], str) else socket.AF_INET
    family = socket.AF_INET6 if "::1" in addresses[0] else family
    with socket.socket(family, socket.SOCK_DGRAM) as stranger:
        try:
            stranger.sendto(ether(666), addresses[0])
        except PermissionError:
            assert family == socket.AF_UNIX
    right.write(Batch.of([plain(1)]))
    assert read_all(left, 1) == [ether(1)]


def test_a_stranger_who_came_before_the_peer_is_not_heard(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with DgramDevice("dgram:a", b, a) as left, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(ether(666), a)
        assert not left.read()
        stranger.sendto(ether(667), a)
        with DgramDevice("dgram:b", a, b) as right:
            until(lambda: left.up, left)
            until(lambda: right.up, right)
            right.write(Batch.of([plain(1)]))
            assert read_all(left, 1) == [ether(1)]
        assert left.drops == {Drop.FOREIGN: 2}


def test_runts_and_giants_are_counted(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu:
        qemu.bind(b)
        with DgramDevice("dgram:a", b, a) as left:
            for data in (
                b"",
                b"x" * 13,
                bytes(FRAME_MAX - VNET + 1),
                ether(1, 14),
                ether(2, FRAME_MAX - VNET),
            ):
                qemu.sendto(data, a)
            assert read_all(left, 2) == [ether(1, 14), ether(2, FRAME_MAX - VNET)]
            assert left.drops == {Drop.RUNT: 2, Drop.TOO_BIG: 1}


def test_a_full_queue_drops_and_counts(tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as qemu:
        qemu.bind(b)
        with DgramDevice("dgram:a", b, a) as left:
            taken = sum(left.write(Batch.of([plain(n) for n in range(SLOTS)])) for _ in range(100))
            assert left.drops == {Drop.QUEUE_FULL: 100 * SLOTS - taken}
            assert taken == left.tx_frames > 0


def test_a_unix_socket_s_file_is_private_and_goes_with_the_link(tmp_path):
    a = tmp_path / "a"
    with DgramDevice("dgram:a", str(tmp_path / "b"), str(a)):
        assert stat.S_IMODE(a.stat().st_mode) == 0o600
        with pytest.raises(DeviceError, match="another process serves"):
            with DgramDevice("dgram:again", str(tmp_path / "b"), str(a)):
                pass
    assert not a.exists()


@pytest.fixture(params=["127.0.0.1", "::1"])
def tunnel(request):
    """Two ends of VXLAN network 7, and another of 8, all on this host."""
    host = request.param
    a, b = free_ports(2, host)
    with VxlanDevice("vxlan:a", (host, b), 7, port=a, local=host) as left:
        with VxlanDevice("vxlan:b", (host, a), 7, port=b, local=host) as right:
            yield left, right, (host, b)


def test_vxlan_frames_pass_both_ways_and_batches_stay_as_they_were(tunnel):
    left, right, _ = tunnel
    for source, target in ((left, right), (right, left)):
        batch = Batch.of([plain(1), plain(2, 1514), tcp(b"x" * 3000, gso_size=1000)])
        before = [bytes(frame) for frame in batch]
        assert source.write(batch) == 5
        assert [bytes(frame) for frame in batch] == before
        assert ready(target)
        frames = [bytes(frame) for frame in target.read()]
        assert frames[:2] == [plain(1), plain(2, 1514)]
        assert len(frames) == 5
        assert source.drops == target.drops == {}


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        ("0800000000000700", None),
        ("ffffffff000007ff", None),  # reserved bits are ignored
        ("0000000000000700", Drop.FOREIGN),
        ("f7ffffff000007ff", Drop.FOREIGN),
        ("0800000000000800", Drop.FOREIGN),
        ("0800000000010700", Drop.FOREIGN),
    ],
)
def test_a_vxlan_header_decides_by_flag_and_network(tunnel, head, reason):
    _, right, address = tunnel
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind((address[0], 0))
        peer.sendto(bytes.fromhex(head) + ether(1), address)
        assert ready(right)
        assert [bytes(frame) for frame in right.read()] == ([] if reason else [plain(1)])
    assert right.drops == ({reason: 1} if reason else {})


def test_vxlan_takes_frames_from_its_peer_only():
    (port,) = free_ports(1)
    with VxlanDevice("vxlan:a", ("127.0.0.2", 4789), 7, port=port, local="127.0.0.1") as device:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.bind(("127.0.0.1", 0))
            peer.sendto(bytes.fromhex("0800000000000700") + ether(1), ("127.0.0.1", port))
        assert ready(device)
        assert not device.read()
        assert device.drops == {Drop.FOREIGN: 1}


def test_to_slip_in_among_the_frames_of_a_vxlan_peer():
    (port,) = free_ports(1)
    head = bytes.fromhex("0800000000000700")
    with VxlanDevice("vxlan:a", ("127.0.0.2", 4789), 7, port=port, local="127.0.0.1") as device:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as eve,
        ):
            peer.bind(("127.0.0.2", 0))
            eve.bind(("127.0.0.1", 0))
            for number in range(20):
                sock, octets = (peer, ether(number)) if number % 3 else (eve, ether(99))
                sock.sendto(head + octets, ("127.0.0.1", port))
        assert read_all(device, 13) == [ether(number) for number in range(20) if number % 3]
        assert device.drops == {Drop.FOREIGN: 7}


def test_vxlan_runts_are_counted(tunnel):
    _, right, address = tunnel
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as peer:
        for size in (0, 7, 8, 21):
            peer.sendto((bytes.fromhex("0800000000000700") + ether(1))[:size], address)
        peer.sendto(bytes.fromhex("0800000000000700") + ether(2), address)
        assert read_all(right, 1) == [ether(2)]
    assert right.drops == {Drop.RUNT: 4}


def test_ends_of_two_families_are_an_error():
    with pytest.raises(DeviceError, match="one end is IPv4, the other IPv6"):
        with VxlanDevice("vxlan:test", ("::1", 4789), 7, local="127.0.0.1"):
            pass
