"""Conversations with an endpoint in the manner of packetdrill: numbers are relative to each end's ISS."""

from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.wire import Path

LETTERS = {"S": tcp.SYN, ".": tcp.ACK, "P": tcp.PSH, "F": tcp.FIN, "R": tcp.RST, "U": tcp.URG}
LETTERS |= {"E": tcp.ECE, "W": tcp.CWR, "A": tcp.AE}
MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
ISS, IRS = 2**32 - 3, 2**31 - 2  # numbers wrap around, or change sign, soon
PLAIN = Config(timestamps=False, sack=False, window_scaling=False, delayed_ack_s=0.0, mss=1000)


class Talk:
    """An endpoint, and its peer: us. Time moves by pass_(); what the endpoint says must be expected."""

    def __init__(self, config=PLAIN, version=4, start=100.0):
        ours, theirs = (address.ip(text) for text in HOSTS[version])
        self.path = Path(*MACS, ours, theirs, 80, 40000)
        self.now = start
        self.config, self.jar = config, FastOpen(b"cookies", pending_max=2)
        self.renew()
        self.said, self.lines = [], []

    def renew(self):
        """Put a new endpoint in place of the one before."""
        self.tcp = Endpoint(self.path, b"secret", self.now, self.config, iss=ISS, cookies=self.jar)

    def pump(self):
        for frame in self.tcp.transmit(self.now):
            for piece in segment(frame):
                pkt = Packet.at(bytearray(piece))
                assert pkt.verify(), "a right checksum"
                self.said.append(pkt)
                self.lines.append(f"{self.now:9.3f} < {pkt.tcp!r}")

    def frame(
        self, flags, seq=0, data=b"", ack=0, win=10_000, urgent=0, ecn=0, raw=b"", cookie=None, **options
    ):
        if cookie is not None:
            raw += bytes((tcp.FAST_OPEN, 2 + len(cookie))) + cookie
        path = self.path
        bits = sum(LETTERS[letter] for letter in flags)
        frame = build.tcp(
            src_mac=path.remote_mac, dst_mac=path.local_mac, src=path.remote, dst=path.local,
            sport=path.remote_port, dport=path.local_port, seq=(IRS + seq) % 2**32,
            ack=(ISS + ack) % 2**32 if bits & tcp.ACK else 0, flags=bits & 0xFF, window=win, payload=data,
            options=tcp.encode_options(**options) + raw + bytes(-len(raw) % 4), urgent=urgent,
        )  # fmt: skip
        pkt = Packet.at(frame)
        pkt.tcp.ae, pkt.ip.ecn = bits >> 8, ecn
        return frame

    def inject(self, flags, seq=0, data=b"", **more):
        """Say something to the endpoint; data may be a number of octets."""
        data = bytes(data) if isinstance(data, int) else data
        frame = self.frame(flags, seq, data, **more)
        self.lines.append(f"{self.now:9.3f} > {Packet.at(frame).tcp!r}")
        self.tcp.receive(frame, self.now)
        self.pump()

    def expect(self, flags, seq=None, data=None, ack=None, win=None, sack=None):
        """Hear the next segment; what is given must be so. Returns its view."""
        self.pump()
        assert self.said, self.tell(f"{flags!r} was expected, and nothing came")
        heard = self.said.pop(0).tcp
        bits = sum(LETTERS[letter] for letter in flags)
        assert (heard.ae << 8 | heard.flags) & ~tcp.PSH == bits & ~tcp.PSH, self.tell(
            f"{flags!r} was expected: {heard!r}"
        )
        length = len(heard.payload)
        sequence = (heard.seq - ISS) % 2**32 if seq is not None else None
        assert sequence == seq, self.tell(f"seq {seq} was expected, not {sequence}")
        if ack is not None:
            assert (heard.ack - IRS) % 2**32 == ack, self.tell(f"ack {ack} was expected: {heard!r}")
        if isinstance(data, int) or data is None:
            assert length == (data or 0), self.tell(f"{data} octets were expected, not {length}")
        else:
            assert bytes(heard.payload) == data
        assert win is None or heard.window == win, self.tell(f"win {win} was expected, not {heard.window}")
        if sack is not None:
            assert [((a - IRS) % 2**32, (b - IRS) % 2**32) for a, b in heard.sack] == sack
        return heard

    def expect_nothing(self):
        self.pump()
        assert not self.said, self.tell("nothing was expected")

    def pass_(self, seconds):
        """Let time pass, waking the endpoint when it wants to be woken."""
        self.pump()
        end = self.now + seconds
        while (due := self.tcp.deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.tcp.wake(self.now)
            self.pump()
            if self.tcp.deadline() == due:
                break
        self.now = end

    def tell(self, what):
        return "\n".join([what, *self.lines, f"left: {[p.tcp for p in self.said]}", repr(self.tcp)])
