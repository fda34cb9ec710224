"""TCP conversations: two ends that keep to the protocol over a network that loses and reorders, and liars."""

from dataclasses import dataclass, field

from nft_world import ends

from vtl_tools.common.packet import build, tcp

MASK = 0xFFFF_FFFF
S, A, F, R, P, U = tcp.SYN, tcp.ACK, tcp.FIN, tcp.RST, tcp.PSH, tcp.URG
LIE_FLAGS = {
    "no-ack": P, "null": 0, "xmas": F | P | U, "syn-fin": S | F, "rst-fin": R | F, "syn-rst": S | R,
    "fin-no-ack": F, "urgent": A | U,
}  # fmt: skip
LIES = [
    "seq-far", "seq-edge", "seq-old", "ack-future", "ack-old", "ack-window-old", "rst-exact", "rst-inside",
    "rst-far", "rst-ack", "syn", "syn-old", "syn-ack", "syn-ack-other", "old-stamp", "no-stamp", "fin-far",
    "ack-wrong-side", "bad-sum", "zero-ack", *LIE_FLAGS,
]  # fmt: skip


def flags_text(bits):
    return "".join(name for name, bit in zip("FSRPAU", (F, S, R, P, A, U), strict=True) if bits & bit) or "-"


@dataclass
class End:
    """One end: what it has sent, what was acknowledged, what it has got, what it offers and was offered."""

    iss: int
    window: int
    shift: int | None
    stamps: bool
    sack: bool
    nxt: int = 0
    una: int = 0
    rcv: int | None = None
    offered: int = 0
    room: int = 0
    state: str = "closed"
    flying: list = field(default_factory=list)
    early: dict = field(default_factory=dict)
    fin: int | None = None
    got_fin: bool = False
    unseen: bool = False  # its FIN was lost before the firewall
    tick: int = 0
    recent: int = 0


class Talk:
    """A connection. say() makes a segment; maker.emit takes frames."""

    def __init__(self, maker):
        random = self.random = maker.random
        self.maker = maker
        while True:  # until nobody else talks there
            self.six, self.vm, self.net = random.random() < 0.3, random.randrange(2), random.randrange(3)
            self.opener = random.random() < 0.65  # out
            high, low = random.choice([40000, 40001, 65535]), random.choice([22, 53, 80, 443, 8080])
            self.ports = (high, low) if self.opener else (low, high)
            self.vlan = maker.vlan()
            self.flow = ("tcp", self.six, self.vm, self.net, *self.ports, self.vlan)
            if self.flow not in maker.talks:
                break
        maker.talks.add(self.flow)
        iss = [0, 1000, MASK - 5, 0x7FFF_FFF0, random.getrandbits(32)]
        self.ends = {}
        for out in True, False:
            self.ends[out] = End(
                random.choice(iss), random.choice([1, 100, 1000, 8000, 65535]),
                random.choice([None, 0, 2, 7, 14]), random.random() < 0.4, random.random() < 0.5,
                tick=random.choice([1, 1000, MASK - 3]),
            )  # fmt: skip
        self.shifted = self.stamped = False
        self.late = []
        self.blind = False  # goes on though something did not pass that had to

    # --- segments

    def say(
        self,
        out,
        flags,
        seq,
        ack=0,
        size=0,
        *,
        window=None,
        odd=(),
        options=None,
        label="",
        bad_sum=False,
        stamp=None,
    ):
        me = self.ends[out]
        wnd = me.window if flags & S else me.offered
        shown = wnd if flags & S or not self.shifted else wnd >> (me.shift or 0)
        if options is None:
            if flags & S:
                answer = flags & A
                other = self.ends[not out]
                options = tcp.encode_options(
                    mss=1460,
                    window_scale=me.shift if not answer or other.shift is not None else None,
                    sack_permitted=me.sack and (not answer or other.sack),
                    timestamps=(me.tick, me.recent) if me.stamps and (not answer or other.stamps) else None,
                )
            elif self.stamped and not flags & R:
                options = tcp.encode_options(timestamps=(me.tick if stamp is None else stamp, me.recent))
            else:
                options = b""
        sport, dport = self.ports if out else self.ports[::-1]
        frame = build.tcp(
            **ends(out, self.six, self.vm, self.net), sport=sport, dport=dport, seq=seq & MASK,
            ack=ack & MASK if flags & A else 0, flags=flags, window=min(shown, 0xFFFF), options=options,
            payload=bytes(size), vlan=self.vlan,
        )  # fmt: skip
        if bad_sum:
            frame[-size - len(options) - 4] ^= 0x55
        mine, theirs = self.ends[out].iss, self.ends[not out].iss
        text = (
            f"tcp{'6' if self.six else ''} {sport}>{dport} {flags_text(flags)} {(seq - mine) & MASK}+{size}"
        )
        text += f" ack {(ack - theirs) & MASK} win {wnd} {label}" if flags & A else f" win {wnd} {label}"
        me.unseen &= not flags & F
        odd = {*odd, *(["blind"] if self.blind else []), *(["unseen-fin"] if me.unseen else [])}
        return self.maker.emit(out, frame, text.strip(), self.flow, odd, segment=(flags, seq & MASK))

    def lost(self):
        """Say what becomes of a segment: lost before the firewall, behind it, late, or nothing of this."""
        return self.random.choices(["", "before", "behind", "late"], [80, 4, 6, 10])[0]

    def send(self, out, flags, seq, size=0, **more):
        """Send a segment that keeps to the protocol, and have the other end take it."""
        me = self.ends[out]
        ack = me.rcv if me.rcv is not None else 0
        fate = self.lost()
        if fate != "before" and not self.say(out, flags, seq, ack, size, **more) and not self.blind:
            return
        arrived = (out, flags, seq, ack, size, me.offered)
        if fate == "late":
            self.late.append(arrived)
        elif not fate:
            self.take(*arrived)

    def take(self, out, flags, seq, ack, size, window):
        """Have the other end take a segment, as far as it does."""
        me, peer = self.ends[not out], self.ends[out]
        if me.state != "open" or peer.state == "closed":
            return
        if flags & R:
            me.state = "closed"
            return
        if flags & A and (ack - me.una) & MASK < 1 << 31 and (me.nxt - ack) & MASK < 1 << 31:
            me.una, me.room = ack, window
            me.flying = [one for one in me.flying if 0 < (sum(one) - ack) & MASK < 1 << 31]
        fin = 1 if flags & F else 0
        if size or fin:
            me.early[seq & MASK] = (size, fin)
            while me.rcv in me.early:
                length, last = me.early.pop(me.rcv)
                me.rcv = (me.rcv + length + last) & MASK
                me.got_fin = me.got_fin or bool(last)

    # --- what happens in turn

    def run(self):
        """Yield after each step."""
        for _ in range(self.random.choice([1, 1, 1, 2])):
            yield from self.open()
            for _ in range(self.random.choice([2, 6, 12, 25])):
                self.step()
                yield

    def open(self):
        random, opener = self.random, self.opener
        me, peer = self.ends[opener], self.ends[not opener]
        for end in me, peer:
            end.iss = (end.iss + random.choice([100_000, 1 << 20])) & MASK if end.nxt else end.iss
            end.nxt = end.una = end.iss
            end.rcv, end.flying, end.early, end.fin, end.got_fin = None, [], {}, None, False
            end.offered, end.state, end.unseen = end.window, "closed", False
        self.shifted = self.stamped = False
        kind = random.choices(
            ["plain", "again", "both", "challenge", "refused", "lie", "stray"], [10, 2, 2, 1, 1, 2, 1]
        )[0]
        if kind == "stray":
            self.lie()
            yield
        self.blind = not self.say(opener, S, me.iss)
        yield
        if self.blind and random.random() < 0.8:
            return
        if kind == "again":
            me.tick = (me.tick + 1) & MASK
            self.say(opener, S, me.iss, label="again")
            yield
        elif kind == "challenge":
            self.say(not opener, A, peer.iss + 7000, me.iss + 90_000, odd={"challenge"}, label="challenge")
            yield
            self.say(opener, R, me.iss + 90_000, odd={"challenge"})
            yield
            self.say(opener, S, me.iss, label="again")
            yield
        elif kind == "refused":
            self.say(not opener, R | A, 0, me.iss + 1)
            yield
            return
        elif kind == "lie":
            self.lie()
            yield
        elif kind == "both":
            self.blind |= not self.say(not opener, S, peer.iss)
            yield
        self.shifted = me.shift is not None and peer.shift is not None
        self.stamped = me.stamps and peer.stamps
        me.recent, peer.recent = peer.tick, me.tick
        me.nxt = me.una = (me.iss + 1) & MASK
        peer.nxt = peer.una = (peer.iss + 1) & MASK
        me.rcv, peer.rcv = peer.nxt, me.nxt
        me.room, peer.room = peer.window, me.window
        me.state = peer.state = "open"
        if self.shifted:
            me.offered, peer.offered = me.window << me.shift, peer.window << peer.shift
        self.blind |= not self.say(not opener, S | A, peer.iss, peer.rcv)
        yield
        if random.random() < 0.1:
            self.say(not opener, S | A, peer.iss, peer.rcv, label="again")
            yield
        if kind == "both":
            self.say(opener, S | A, me.iss, me.rcv)
            yield
        if random.random() < 0.95:
            self.blind |= not self.say(opener, A, me.nxt, me.rcv)
            peer.room = me.offered
            yield

    def step(self):
        random = self.random
        out = random.random() < 0.5
        me = self.ends[out]
        me.tick = (me.tick + random.choice([0, 1, 5])) & MASK
        if self.late and random.random() < 0.5:
            self.take(*self.late.pop(random.randrange(len(self.late))))
        if random.random() < 0.07:
            self.lie()
            return
        if me.state != "open":
            self.stray(out)
            return
        actions = ["ack"] * 3 + ["data"] * 6 + ["again"] * 3 + ["window", "alive", "probe", "fin", "rst"]
        getattr(self, f"do_{random.choice(actions)}")(out, me)

    def do_ack(self, out, me):
        self.send(out, A, me.nxt)

    def do_data(self, out, me):
        size = self.random.choice([1, 10, 100, 536, 1400])
        room = me.room - ((me.nxt - me.una) & MASK)
        size = min(size, room)
        if size <= 0 or me.fin is not None:
            self.send(out, A, me.nxt)
            return
        seq = me.nxt
        me.nxt = (me.nxt + size) & MASK
        me.flying.append((seq, size, 0))
        if self.random.random() < 0.15 and room - size > 0:  # the next one comes first
            more = min(room - size, 100)
            later, me.nxt = me.nxt, (me.nxt + more) & MASK
            me.flying.append((later, more, 0))
            self.send(out, A | P, later, more)
        self.send(out, A | P, seq, size)

    def do_again(self, out, me):
        if not me.flying:
            self.send(out, A, me.nxt)
            return
        seq, size, fin = self.random.choice(me.flying)
        self.send(out, A | (F if fin else 0), seq, size, label="again")

    def do_window(self, out, me):
        """Offer other room, as far as what was offered is kept to."""
        before = me.offered
        me.offered = self.random.choice(
            [me.window, me.window // 2, me.window * 2, 0 if me.rcv is not None else 1]
        )
        if self.shifted:
            me.offered &= -1 << (me.shift or 0)
        me.offered = min(me.offered, 0xFFFF << ((me.shift or 0) if self.shifted else 0))
        if me.offered < before:
            me.offered = before  # a window is not shrunk (RFC 9293 section 3.8.6)
        self.send(out, A, me.nxt)

    def do_alive(self, out, me):
        if (me.nxt - me.una) & MASK == 0 and me.fin is None:
            self.say(out, A, (me.nxt - 1) & MASK, me.rcv, self.random.choice([0, 1]), label="keep-alive")

    def do_probe(self, out, me):
        if me.room == 0 and me.fin is None and (me.nxt - me.una) & MASK == 0:
            self.say(out, A, me.nxt, me.rcv, 1, label="probe")
            me.flying.append((me.nxt, 1, 0))
            me.nxt = (me.nxt + 1) & MASK

    def do_fin(self, out, me):
        if me.fin is None:
            seq = me.nxt
            me.fin = me.nxt = (me.nxt + 1) & MASK
            me.flying.append((seq, 0, 1))
            me.unseen = True
            self.send(out, F | A, seq)

    def do_rst(self, out, me):
        self.send(out, self.random.choice([R, R | A]), me.nxt)
        me.state = "closed"

    def stray(self, out):
        """Say something behind the end."""
        me = self.ends[out]
        kind = self.random.choice(["ack", "data", "fin", "rst", "syn", "syn-new", "syn-ack"])
        ack = me.rcv or 0
        more = {"odd": {"stray"}, "label": "stray"}
        if kind == "ack":
            self.say(out, A, me.nxt, ack, **more)
        elif kind == "data":
            self.say(out, A | P, me.nxt, ack, 10, **more)
        elif kind == "fin":
            self.say(out, F | A, me.nxt, ack, **more)
        elif kind == "rst":
            self.say(out, R, me.nxt, **more)
        elif kind == "syn":
            self.say(out, S, me.iss, **more)
        elif kind == "syn-new":
            self.say(out, S, me.nxt + 500_000, **more)
        else:
            self.say(out, S | A, me.iss, ack, **more)

    def lie(self):
        """Say what no end would that keeps to the protocol."""
        random = self.random
        out = random.random() < 0.5
        me, peer, kind = self.ends[out], self.ends[not out], random.choice(LIES)
        size = random.choice([0, 1, 100])
        flags, seq, ack, size = self._lied(kind, me, peer, me.nxt, me.rcv or 0, size)
        more = {
            "old-stamp": {"stamp": (me.tick - random.choice([10_000, 1 << 30])) & MASK},
            "no-stamp": {"options": b""},
            "bad-sum": {"bad_sum": True},
        }
        self.say(out, flags, seq, ack, size, odd={kind, "lie"}, label=kind, **more.get(kind, {}))

    def _lied(self, kind, me, peer, seq, ack, size):
        """Return flags, number, acknowledgement and size."""
        choice = self.random.choice
        flags = A
        if kind in LIE_FLAGS:
            flags = LIE_FLAGS[kind]
        elif kind == "bad-sum":
            flags = choice([A, S, R, F | A])
        elif kind == "seq-edge":
            seq = me.una + me.room + choice([-1, 0, 1, 2])
        elif kind.startswith("ack-"):
            ack = {
                "ack-future": peer.nxt + choice([1, 2, 1000, 1 << 30]),
                "ack-old": peer.una - choice([1, 1000]),
                "ack-window-old": peer.una - choice([66_001, 70_000, 1 << 30]),
                "ack-wrong-side": me.nxt,
            }[kind]
        elif kind.startswith("rst-"):
            flags, size = R, 0
            if kind == "rst-ack":
                flags, seq, ack = R | A, choice([0, seq]), choice([0, ack, peer.nxt + 5])
            seq += {"rst-inside": choice([1, 50]), "rst-far": choice([1 << 20, -1, -500])}.get(kind, 0)
        elif kind.startswith("syn"):
            flags, size = S | A if "ack" in kind else S, 0
            ack = choice([ack, peer.iss + 1, 77])
            seq = {"syn": seq + choice([0, 1, 90_000]), "syn-ack-other": seq + 5000}.get(kind, me.iss)
        elif kind == "zero-ack":
            ack = 0
        else:
            seq += {
                "seq-far": choice([1 << 20, 1 << 30, 1 << 31, me.room + 70_000]),
                "seq-old": -choice([2, 500, 9000, 70_000, 1 << 20]),
                "fin-far": choice([1, 500]),
            }.get(kind, 0)
            flags |= F if kind == "fin-far" else 0
        return flags, seq, ack, size
