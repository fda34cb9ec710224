"""State models beside a conversation in which anybody may say anything.

Checked: Malformed, or ValueError where a model is made of a packet, and nothing else; the quick way knows
what the slow one does after every frame; numbers stay in their fields; what a model speaks is of the
connection, sound, and followed by both.
"""

from contextlib import suppress

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob
from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.base import LOCAL, REMOTE, End
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.udp import UdpModel
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet

ENDS = {LOCAL: (b"\2\0\0\0\0\1", b"\x0a\0\0\1", 40000), REMOTE: (b"\2\0\0\0\0\2", b"\x0a\0\0\2", 80)}
ISS = {LOCAL: 2**32 - 50, REMOTE: 2**31 - 50}
FLAGS = (tcp.ACK, tcp.ACK | tcp.PSH, tcp.ACK | tcp.FIN, tcp.SYN, tcp.SYN | tcp.ACK, tcp.RST,
         tcp.RST | tcp.ACK, 0, 0xFF)  # fmt: skip
WIDTH = {"ttl": 8, "dscp": 6, "identification": 16, "flow_label": 20, "port": 16, "wscale": 4, "mss": 16}
STEPS_MAX = 48


def variables(model: TcpModel) -> list[dict[str, object]]:
    """Return all that a model knows, layer by layer."""
    parts = [model.local, model.remote, model.ip.local, model.ip.remote]
    parts += [model.ip.link.local, model.ip.link.remote]
    told = [{name: getattr(part, name) for name in dir(part) if not name.startswith("__")} for part in parts]
    return [{name: value for name, value in each.items() if not callable(value)} for each in told]


def said(take: Octets, end: End, seq: int, ack: int, flags: int) -> bytearray:
    """Return a segment of the conversation."""
    how = take.number()
    (mac, host, port), (mac_there, there, port_there) = ENDS[end], ENDS[end.other]
    options = tcp.encode_options(
        mss=take.number(2) if how & 1 else None,
        window_scale=take.number() if how & 2 else None,
        sack_permitted=bool(how & 4),
        timestamps=(take.number(4), take.number(4)) if how & 8 else None,
        sack=[(take.number(4), take.number(4))] if how & 16 else (),
    )
    return build.tcp(
        src_mac=mac, dst_mac=mac_there, src=host, dst=there, sport=port, dport=port_there, seq=seq % 2**32,
        ack=ack % 2**32 if flags & tcp.ACK else 0, flags=flags, window=take.number(2),
        payload=bytes(take.number()), options=options,
    )  # fmt: skip


class Both:
    """One model that follows packets, and one that follows frames."""

    def __init__(self, first: bytearray) -> None:
        self.slow = TcpModel.from_packet(Packet.at(first), LOCAL)
        self.quick = TcpModel.from_packet(Packet.at(first), LOCAL)

    def follow(self, frame: bytearray) -> None:
        """Show both a frame; nothing is written to it."""
        before, told = bytes(frame), []
        for sync in lambda: self.slow.sync(Packet.at(frame)), lambda: self.quick.sync_frame(frame):
            try:
                told.append(sync())
            except Malformed:
                told.append(None)
        assert told[0] is told[1]
        assert self.slow.seen is self.quick.seen
        assert bytes(frame) == before
        self.check()

    def check(self) -> None:
        known = variables(self.slow)
        assert known == variables(self.quick)
        for part in known:
            for name, value in part.items():
                if isinstance(value, int):
                    assert 0 <= value < 2 ** WIDTH.get(name, 32), name

    def speak(self, take: Octets) -> None:
        end, flags = take.pick((LOCAL, REMOTE)), take.pick((None, *FLAGS))
        size = take.number(2) % 3000
        frame = self.slow.create(bytes(size), from_=end, flags=flags, offload=True, sync=False)
        pkt = Packet.at(frame)
        assert self.slow.matches(pkt) is end
        assert pkt.verify()
        assert len(pkt.tcp.payload) == size
        self.follow(frame)

    def adopt(self, frame: bytearray, end: End) -> None:
        """Let a foreign packet be one of the connection, in both in the same way."""
        copies = bytearray(frame), bytearray(frame)
        for model, copy in zip((self.slow, self.quick), copies, strict=True):
            with suppress(ValueError):
                pkt = Packet.at(copy)
                right = pkt.verify()
                model.adopt(pkt, end)
                assert model.matches(Packet.at(copy)) is end
                assert Packet.at(copy).verify() == right
        assert copies[0] == copies[1]
        self.check()


def one(data: bytes) -> None:
    take = Octets(data)
    first = said(take, LOCAL, ISS[LOCAL], ISS[REMOTE] + 1, take.pick((tcp.SYN, tcp.ACK)))
    both = Both(first)
    for _ in range(STEPS_MAX):
        if not take.left:
            return
        what = take.number() % 8
        if what < 5:
            end, flags, how = take.pick((LOCAL, REMOTE)), take.pick(FLAGS), take.number()
            one_end, other = both.slow[end], both.slow[end.other]
            seq = one_end.snd_nxt + take.number() - 128 if how & 1 else take.number(4)
            ack = other.snd_nxt + take.number() - 128 if how & 2 else take.number(4)
            both.follow(said(take, end, seq if how & 4 else one_end.snd_nxt, ack, flags))
        elif what == 5:
            both.speak(take)
        elif what == 6:
            frame = bytearray(take.blob())
            both.follow(frame)
            for kind in TcpModel, UdpModel:
                with suppress(ValueError):  # Malformed is one
                    kind.from_packet(Packet.at(bytearray(frame)))
        else:
            both.adopt(bytearray(take.blob()), take.pick((LOCAL, REMOTE)))


def seeds() -> list[bytes]:
    syn = bytes((0, 15)) + bytes((5, 180, 7)) + bytes(8) + bytes((16, 0, 0))
    answer = bytes((0, 1, 4, 0)) + bytes(8) + bytes((15, 5, 180, 2)) + bytes(8) + bytes((16, 0, 0))
    more = bytes((1, 0, 1, 7, 128, 128, 8)) + bytes(8) + bytes((16, 0, 20))
    speak = bytes((5, 0, 0, 0, 100, 5, 1, 0, 8, 0))
    made = [syn + answer + more + speak, bytes((1, 0, 16, 0, 0)) + more * 3 + speak * 2]
    made += [
        made[0] + bytes((what,)) + blob(frame) + bytes((1,)) + speak for frame in FRAMES for what in (6, 7)
    ]
    return made
