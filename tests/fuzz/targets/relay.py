"""vtl-tor's relay between a guest that is hostile and streams to a proxy that is none the better.

Checked: nothing is raised; a stream gets what the guest sent, in order and once, and the guest what the
stream brought; a call is made for what the guest called, and for nothing else; of connections no more are
kept than may be, and when nobody says anything more, all of them end in time.
"""

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob
from tests.unit.relay.carry import Call, Guest, Scene
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path

STEPS_MAX = 40
CONNECTIONS = 4
PORTS = (40000, 40001, 40002, 40003, 40004, 40005)
FLAGS = ("S", ".", "P.", "F.", "R", "R.", "S.", "", "FSRP.")
STREAM = bytes(range(251)) * 300
HARD_END_S = 20_000.0


class Place:
    """One guest's port: what it has sent, and what its streams got and brought."""

    def __init__(self, scene: Scene, port: int) -> None:
        self.guest: Guest = scene.guest(port)
        self.call: Call | None = None
        self.brought = 0


class World:
    def __init__(self) -> None:
        self.scene = Scene(4, connections=CONNECTIONS, half_open=2, memory=1 << 20)
        self.scene.relay.dial, self.dial = self.dialled, self.scene.relay.dial
        self.places = {port: Place(self.scene, port) for port in PORTS}
        self.called: set[tuple[bytes, int]] = set()
        """What the guest's frames could be taken for a call of."""

    def dialled(self, path: Path) -> object:
        assert (path.local, path.local_port) in self.called, "a call for what nobody called"
        call = self.dial(path)
        if (place := self.places.get(path.remote_port)) is not None:
            place.call, place.brought = call, 0
        return call

    def push(self, frame: bytes) -> None:
        try:
            pkt = Packet.at(frame)
            if pkt.tcp is not None:
                self.called.add((pkt.ip.dst, pkt.tcp.dport))
        except Malformed:
            pass
        self.scene.push(bytearray(frame))

    def is_of_a_place(self, frame: bytes) -> bool:
        """Whether a frame is a segment from a port whose stream is judged."""
        try:
            segment = Packet.at(frame).tcp
        except Malformed:
            return False
        return segment is not None and segment.sport in self.places

    def judge(self) -> None:
        """Look at what the guest heard, and at what the streams got."""
        scene = self.scene
        scene.turn()
        for pkt in scene.said:
            if pkt.tcp is None or (place := self.places.get(pkt.tcp.dport)) is None:
                continue
            if pkt.tcp.flags & 2:
                place.guest.iss = pkt.tcp.seq
            at = (pkt.tcp.seq - place.guest.iss - 1) % 2**32
            data = bytes(pkt.tcp.payload)
            assert not data or data == STREAM[at : at + len(data)], "the guest got what no stream brought"
        scene.said.clear()
        assert len(scene.relay.flows) <= CONNECTIONS
        for place in self.places.values():
            if place.call is not None:
                got = bytes(place.call.stream.got).removeprefix(b"hello")
                assert got == STREAM[: len(got)], "a stream got what the guest did not send there"

    def say(self, place: Place, take: Octets) -> None:
        """Let the guest send a segment; its data is what belongs there."""
        flags, how = take.pick(FLAGS), take.number()
        seq = take.number(2) if how & 1 else take.number()
        ack = take.number(2) if how & 2 else take.number()
        if "S" in flags:
            seq = 0
        start = seq + ("S" in flags)
        data = STREAM[start - 1 : start - 1 + take.number(2) % 1500] if how & 4 and start else b""
        self.push(bytes(place.guest.frame(flags, seq, data, ack=ack, win=take.number(2))))

    def stream(self, place: Place, what: int, take: Octets) -> None:
        """Let something happen to the stream of a port."""
        call = place.call
        if call is None or call.stream.closed:
            return
        stream = call.stream
        if what == 0 and call.outcomes[0] is None:
            call.comes_to(b"" if take.flag() else Reason.REFUSED)
        elif what == 1 and stream.error is None and None not in stream.pending:
            data = STREAM[place.brought : place.brought + take.number(2) % 5000]
            place.brought += len(data)
            if data:
                stream.bring(data)
        elif what == 2 and stream.error is None and None not in stream.pending:
            stream.finish()
        elif what == 3:
            stream.fail()
        elif what == 4:
            stream.drain(take.number(2))
        elif what == 5:
            stream.room = 0


def one(data: bytes) -> None:
    take, world = Octets(data), World()
    scene = world.scene
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        what = take.number()
        place = world.places[PORTS[(what >> 4) % len(PORTS)]]
        what %= 16
        if what < 7:
            world.say(place, take)
        elif what < 13:
            world.stream(place, what - 7, take)
        elif what == 13:
            scene.pass_(take.number(2) / 50)
        elif what == 14:
            frame = take.blob()
            if len(frame) >= VNET + 14 and not world.is_of_a_place(frame):
                world.push(frame)
        elif take.flag():
            scene.calls.append(Call(None))
        world.judge()
    scene.pass_(HARD_END_S)
    world.judge()
    assert not scene.relay.flows, "a connection that nobody speaks of stays"


def seeds() -> list[bytes]:
    syn, ack = bytes((0, 0, 0, 0, 0, 16, 0)), bytes((0, 1, 0, 1, 1, 16, 0))
    data = bytes((0, 2, 4, 1, 1, 0, 200, 16, 0))
    bring, finish, refuse = bytes((8, 4, 0)), bytes((9,)), bytes((15, 1)) + syn + bytes((7, 0))
    made = [
        syn + ack + data + bring + ack + finish + bytes((0, 3, 0, 201, 1, 16, 0)),
        refuse,
        syn + ack + bytes((10,)),
    ]
    made += [
        b"".join(bytes((port << 4,)) + syn[1:] for port in range(6)) + bytes((13, 9, 9)),
        syn + ack + bring * 9,
    ]
    return [*made, *(syn + bytes((14,)) + blob(frame) + ack for frame in FRAMES)]
