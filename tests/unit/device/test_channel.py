"""The channel between VTL processes: super-segments whole, and a peer's word checked."""

import socket
import stat
import struct

import pytest

from tests.unit.device.helpers import MACS, octets, plain, read_all, ready, tcp, until
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.device.channel import ChannelDevice
from vtl_tools.common.packet.vnet import HEADER


@pytest.fixture
def ends(tmp_path):
    path = str(tmp_path / "sock")
    with ChannelDevice("channel:server", path, server=True) as server:
        with ChannelDevice("channel:client", path) as client:
            until(lambda: server.up, server)
            yield server, client


@pytest.fixture
def foreign(tmp_path):
    """A channel that serves, and a raw socket that plays its peer."""
    path = str(tmp_path / "sock")
    with ChannelDevice("channel:server", path, server=True) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
            peer.connect(path)
            until(lambda: server.up, server)
            yield server, peer


def frames(batch):
    return [bytes(frame) for frame in batch]


def test_frames_keep_their_virtio_net_hdr_both_ways(ends):
    for source, target in (ends, ends[::-1]):
        sent = [plain(1), tcp(b"x" * 60_000, gso_size=1448), tcp(b"y")]
        assert source.write(Batch.of(sent)) == 3
        assert frames(target.read()) == sent


def test_a_whole_batch_of_the_largest_frames_passes(ends):
    server, client = ends
    sent = [tcp(bytes([n]) * 65_000, gso_size=1448) for n in range(SLOTS)]
    assert client.write(Batch.of(sent)) == SLOTS
    assert frames(server.read()) == sent


def test_a_full_channel_drops_and_counts(ends):
    server, client = ends
    batch = Batch.of([plain(n, 1514) for n in range(SLOTS)])
    taken = 0
    while not client.drops:
        taken += client.write(batch)
    assert set(client.drops) == {Drop.QUEUE_FULL}
    assert len(read_all(server, taken)) == taken
    assert client.tx_octets == taken * 1514


def test_the_socket_s_file_is_for_its_owner_only(tmp_path):
    with ChannelDevice("channel:test", str(tmp_path / "sock"), server=True):
        assert stat.S_IMODE((tmp_path / "sock").stat().st_mode) == 0o600


def test_each_end_may_be_restarted(tmp_path):
    path = str(tmp_path / "sock")
    with ChannelDevice("channel:client", path) as client:
        for n in range(2):
            with ChannelDevice("channel:server", path, server=True) as server:
                until(lambda: client.up and server.up, client, server)
                client.write(Batch.of([plain(n)]))
                assert frames(server.read()) == [plain(n)]
            assert client.write(Batch.of([plain(9)])) == 0
            assert not client.up
        assert client.losses == 2
        assert client.drops == {Drop.LINK_DOWN: 2}
    with ChannelDevice("channel:server", path, server=True) as server:
        for n in range(2):
            with ChannelDevice("channel:client", path) as client:
                until(lambda: server.up, server)
                client.write(Batch.of([plain(n)]))
                assert read_all(server, 1) == [plain(n)[10:]]
            until(lambda: not server.up, server)
        assert server.losses == 2


def test_frames_before_the_end_are_still_delivered(foreign):
    server, peer = foreign
    peer.send(plain(1))
    peer.send(plain(2))
    peer.close()
    assert read_all(server, 2) == [plain(1)[10:], plain(2)[10:]]
    until(lambda: not server.up, server)


def header(flags=0, gso_type=0, hdr_len=0, gso_size=0, csum_start=0, csum_offset=0):
    return HEADER.pack(flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)


BODY = MACS + b"\x08\0" + bytes(86)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"x", Drop.RUNT),
        (plain()[:23], Drop.RUNT),
        (bytes(FRAME_MAX + 1), Drop.TOO_BIG),
        (header(flags=4) + BODY, Drop.MALFORMED),
        (header(flags=0x80) + BODY, Drop.MALFORMED),
        (header(flags=1, csum_start=13) + BODY, Drop.MALFORMED),
        (header(flags=1, csum_start=99) + BODY, Drop.MALFORMED),
        (header(flags=1, csum_start=34, csum_offset=65) + BODY, Drop.MALFORMED),
        (header(flags=1, csum_start=0xFFFF, csum_offset=0xFFFF) + BODY, Drop.MALFORMED),
        (header(gso_type=2, gso_size=1) + BODY, Drop.MALFORMED),
        (header(gso_type=1, gso_size=0) + BODY, Drop.MALFORMED),
        (header(gso_type=0x80, gso_size=1) + BODY, Drop.MALFORMED),
        (header(gso_type=0x85, gso_size=1) + BODY, Drop.MALFORMED),
        (header(gso_type=1, gso_size=9, hdr_len=101) + BODY, Drop.MALFORMED),
    ],
)
def test_what_is_no_frame_is_counted_by_reason(foreign, message, reason):
    server, peer = foreign
    for data in (plain(1), message, plain(2)):
        peer.send(data)
    assert read_all(server, 2) == [plain(1)[10:], plain(2)[10:]]
    assert server.drops == {reason: 1}
    assert server.up


@pytest.mark.parametrize(
    "good",
    [
        header(flags=1, csum_start=34, csum_offset=64) + BODY,
        header(flags=2) + BODY,
        header(flags=1, gso_type=0x81, gso_size=10, hdr_len=54, csum_start=34, csum_offset=16) + BODY,
        header(flags=1, gso_type=5, gso_size=10, hdr_len=42, csum_start=34, csum_offset=6) + BODY,
    ],
)
def test_what_linux_takes_is_taken(foreign, good):
    server, peer = foreign
    peer.send(good)
    assert ready(server)
    assert frames(server.read()) == [good]


def test_an_empty_message_ends_the_connection_and_another_is_taken(foreign, tmp_path):
    server, peer = foreign
    peer.send(plain(1))
    peer.send(b"")
    assert octets(server.read()) == [plain(1)[10:]]
    assert not server.up
    with ChannelDevice("channel:client", str(tmp_path / "sock")) as client:
        until(lambda: server.up, server)
        client.write(Batch.of([plain(2)]))
        assert read_all(server, 1) == [plain(2)[10:]]


def test_no_runt_is_sent_for_it_would_end_the_channel(ends):
    server, client = ends
    assert client.write(Batch.of([b"", plain(1), b"x" * 23])) == 1
    assert client.write(Batch.of([b""])) == 0
    assert client.drops == {Drop.RUNT: 3}
    assert frames(server.read()) == [plain(1)]
    assert server.up


def test_a_peer_that_resets_is_a_peer_that_left(foreign):
    server, peer = foreign
    server.write(Batch.of([plain(1)]))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()  # with a frame unread
    until(lambda: not server.up, server)
    assert server.write(Batch.of([plain(2)])) == 0
    assert server.drops == {Drop.LINK_DOWN: 1}
