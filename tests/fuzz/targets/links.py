"""Links on sockets, whose peer is hostile: QEMU's stream, a channel, VXLAN.

Checked: nothing is raised; the frames that come out are those that a slow reader of the same octets finds, in
any pieces; what is left out is counted, each with its reason; no frame is shorter than an Ethernet header or
longer than a slot, and what a channel says of a frame is sane; what comes out can be written to a link
without offload, in plain frames that fit it.
"""

import atexit
import select
import socket
import struct

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob, pieces
from tests.fuzz.places import place
from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import FRAME_MAX, Batch
from vtl_tools.common.device.channel import ChannelDevice
from vtl_tools.common.device.memory import MemoryDevice
from vtl_tools.common.device.plain import Plain
from vtl_tools.common.device.stream import LENGTH_MAX, StreamDevice
from vtl_tools.common.device.vxlan import VxlanDevice
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.offload import is_plain
from vtl_tools.common.packet.vnet import VNET

ETHERNET = 14
VNI = 7
PIECES_MAX = 12
READS_MAX = 2000
PATIENCE_S = 20.0
"""For the kernel, which delivers datagrams when it has the time."""
PLACE = place()
HERE, STRANGER = "127.0.0.1", "127.0.0.2"


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HERE, 0))
        return int(probe.getsockname()[1])


class Links:
    """The links, which are kept: an arena is 4 MiB. Made when first asked for."""

    def __init__(self) -> None:
        self.stream = StreamDevice("qemu:test", str(PLACE / "stream"), server=True)
        self.channel = ChannelDevice("channel:test", str(PLACE / "channel"), server=True)
        port = free_port()
        self.vxlan = VxlanDevice(
            "vxlan:test", (HERE, port + 1 if port < 65535 else 1024), VNI, local=HERE, port=port
        )
        self.peer, self.stranger = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "ab")
        self.peer.bind((HERE, 0))
        self.stranger.bind((STRANGER, 0))
        self.target = HERE, port
        for link in self.stream, self.channel, self.vxlan:
            link.connect()
        self.plain = Plain(MemoryDevice("memory", 1500, False))

    def close(self) -> None:
        for one in (self.stream, self.channel, self.vxlan, self.peer, self.stranger, self.plain._device):
            one.close()

    def check(self, batch: Batch) -> list[bytes]:
        """Look at what a link gave, hand it on, and return it."""
        for frame in batch:
            assert VNET + ETHERNET <= len(frame) <= FRAME_MAX
        out = [bytes(frame) for frame in batch]
        for plain in self.plain(batch):
            for frame in plain:
                assert is_plain(frame)
                assert ETHERNET <= len(frame) - VNET <= ETHERNET + 1500 + 8
        return out


LINKS: list[Links] = []


def links() -> Links:
    if not LINKS:
        LINKS.append(Links())
        atexit.register(LINKS[0].close)
    return LINKS[0]


def counted(link: Device) -> int:
    return sum(link.drops.values())


def slow(data: bytes) -> tuple[list[bytes], int, bool]:
    """Read QEMU's framing: frames, how many are no frames, and whether the stream is out of step."""
    frames, bad, at = [], 0, 0
    while len(data) - at >= 4:
        (size,) = struct.unpack_from("!I", data, at)
        if at + 4 + size > len(data):
            return frames, bad + (size > LENGTH_MAX), size > LENGTH_MAX
        if ETHERNET <= size <= FRAME_MAX - VNET:
            frames.append(vnet.NONE + data[at + 4 : at + 4 + size])
        else:
            bad += 1
        at += 4 + size
    return frames, bad, False


def stream(said: list[bytes]) -> None:
    made = links()
    link, before, got = made.stream, counted(made.stream), []
    with socket.socket(socket.AF_UNIX) as qemu:
        qemu.connect(str(PLACE / "stream"))
        link.read()
        assert link.up
        for piece in said:
            if link._peer.sock is None:
                break
            qemu.sendall(piece)
            for _ in range(2 + len(piece) // 500):
                got += made.check(link.read())
    for _ in range(READS_MAX):
        if link._peer.sock is None:
            break
        got += made.check(link.read())
    assert link._peer.sock is None, "the end of the stream was not seen"
    frames, bad, _ = slow(b"".join(said))
    assert got == frames
    assert counted(link) - before == bad


def channel(said: list[bytes]) -> None:
    made = links()
    link, before, got = made.channel, counted(made.channel), []
    sent = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(str(PLACE / "channel"))
        link.read()
        assert link.up
        for message in said:
            if not message or link._peer.sock is None:
                continue
            other.send(message)
            sent += 1
            got += made.check(link.read())
    for _ in range(READS_MAX):
        if link._peer.sock is None:
            break
        got += made.check(link.read())
    assert link._peer.sock is None
    assert len(got) + counted(link) - before == sent, "a message is neither a frame nor counted"
    for frame in got:
        flags, kind, _, size, _, _ = vnet.HEADER.unpack_from(frame)
        assert not flags & ~3
        assert not kind or size


def vxlan(said: list[bytes], take: Octets) -> None:
    made = links()
    link, before, got, expected = made.vxlan, counted(made.vxlan), [], []
    for message in said:
        strange = take.flag()
        (made.stranger if strange else made.peer).sendto(message, made.target)
        sound = len(message) >= 8 + ETHERNET and message[0] & 8 and message[4:7] == VNI.to_bytes(3, "big")
        if sound and not strange:
            expected.append(vnet.NONE + message[8:])
    while len(got) + counted(link) - before < len(said):
        assert select.select([link], [], [], PATIENCE_S)[0], "a datagram is neither a frame nor counted"
        got += made.check(link.read())
    assert got == expected
    assert len(got) + counted(link) - before == len(said)


def one(data: bytes) -> None:
    take = Octets(data)
    what, cuts = take.number() % 3, take.take(PIECES_MAX)
    if what == 0:
        stream(pieces(take.rest(), Octets(cuts)))
        return
    said = []
    while take.left and len(said) < PIECES_MAX:
        said.append(take.blob())
    if what == 1:
        channel(said)
    else:
        vxlan(said, Octets(cuts))


def seeds() -> list[bytes]:
    cuts = bytes((3, 4, 100, 0, 1, 200, 2, 9, 0, 0, 1, 1))
    frames = [frame[VNET:] for frame in FRAMES]
    framed = [struct.pack("!I", len(frame)) + frame for frame in frames]
    tunnelled = [struct.pack("!II", 8 << 24, VNI << 8) + frame for frame in frames]
    foreign = struct.pack("!II", 8 << 24, (VNI + 1) << 8) + frames[0]
    return [
        b"\0" + cuts + b"".join(framed[:4]),
        b"\0" + cuts + framed[0] + struct.pack("!I", 5) + b"short" + framed[1],
        b"\0" + cuts + framed[2] + struct.pack("!I", LENGTH_MAX + 1) + b"x" * 80,
        b"\0" + cuts + struct.pack("!I", LENGTH_MAX) + b"x" * 80,
        *(b"\1" + cuts + b"".join(map(blob, FRAMES[at : at + 6])) for at in range(0, len(FRAMES), 6)),
        b"\2" + bytes(12) + b"".join(map(blob, tunnelled[:8])),
        b"\2" + cuts + b"".join(map(blob, [*tunnelled[:3], b"\0" * 30, foreign])),
    ]  # fmt: skip
