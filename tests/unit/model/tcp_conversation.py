"""Conversations in the manner of packetdrill: who sends what, in relative numbers, and what is known then."""

from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.packet import Packet

LETTERS = {"S": tcp.SYN, ".": tcp.ACK, "P": tcp.PSH, "F": tcp.FIN, "R": tcp.RST}
MACS = {LOCAL: address.mac("02:00:00:00:00:01"), REMOTE: address.mac("02:00:00:00:00:02")}
PORTS = {LOCAL: 40000, REMOTE: 80}
HOSTS = {
    4: {LOCAL: address.ip("10.0.0.1"), REMOTE: address.ip("10.0.0.2")},
    6: {LOCAL: address.ip("fd00::1"), REMOTE: address.ip("fd00::2")},
}


def variables(model):
    """All that a model knows, layer by layer."""
    parts = [model.local, model.remote, model.ip.local, model.ip.remote]
    parts += [model.ip.link.local, model.ip.link.remote]
    told = [{name: getattr(part, name) for name in dir(part) if not name.startswith("__")} for part in parts]
    return [{name: value for name, value in each.items() if not callable(value)} for each in told]


class Conversation:
    """Two ends that talk past a model. Numbers are relative to each end's ISS, windows as in the header.

    A second model follows by the quick way, and must know the same at all times.
    """

    def __init__(self, version=4, iss=(1000, 5_000_000)):
        self.version = version
        self.iss = dict(zip((LOCAL, REMOTE), iss, strict=True))
        self.model = self.quick = None

    def frame(self, end, flags, seq, length=0, ack=0, win=1000, vlan=None, ip_id=0, **options):
        other = end.other
        hosts = HOSTS[self.version]
        bits = sum(LETTERS[letter] for letter in flags)
        return build.tcp(
            src_mac=MACS[end], dst_mac=MACS[other], src=hosts[end], dst=hosts[other],
            sport=PORTS[end], dport=PORTS[other],
            seq=(self.iss[end] + seq) % 2**32,
            ack=(self.iss[other] + ack) % 2**32 if bits & tcp.ACK else 0,
            flags=bits, window=win, payload=bytes(length), options=tcp.encode_options(**options),
            vlan=vlan, ip_id=ip_id,
        )  # fmt: skip

    def say(self, end, flags, seq, length=0, **more):
        """Let an end send a segment past the model; return what it was taken for."""
        frame = self.frame(end, flags, seq, length, **more)
        if self.model is None:
            self.model = TcpModel.from_packet(Packet.at(frame), end)
            self.quick = TcpModel.from_packet(Packet.at(frame), end)
            return self.model.seen.text
        before = variables(self.model)
        said = self.model.sync(Packet.at(frame))
        assert self.quick.sync_frame(frame) is said
        assert self.quick.seen is self.model.seen
        assert variables(self.quick) == variables(self.model)
        assert said is (end if self.model.seen.taken else None)
        if said is None:
            assert variables(self.model) == before, "what is refused changes nothing"
        return self.model.seen.text

    def local(self, *args, **more):
        return self.say(LOCAL, *args, **more)

    def remote(self, *args, **more):
        return self.say(REMOTE, *args, **more)

    def numbers(self, end):
        """SND.UNA, SND.NXT and RCV.NXT of an end, relative."""
        one, own, others = self.model[end], self.iss[end], self.iss[end.other]
        return tuple(
            (n - base) % 2**32
            for n, base in zip((one.snd_una, one.snd_nxt, one.rcv_nxt), (own, own, others), strict=True)
        )

    @property
    def states(self):
        return self.model.local.state.value, self.model.remote.state.value

    def handshake(self, wscale=(7, 8), timestamps=False, **options):
        offers = {"mss": 1460, "sack_permitted": True} | options
        stamps = [{"timestamps": pair} if timestamps else {} for pair in ((100, 0), (900, 100), (101, 900))]
        self.local("S", 0, window_scale=wscale[0], **offers, **stamps[0])
        self.remote("S.", 0, ack=1, window_scale=wscale[1], **offers, **stamps[1])
        self.local(".", 1, ack=1, **stamps[2])
        return self
