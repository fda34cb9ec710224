"""Runs a conversation that is written down: packetdrill's notation, as far as an endpoint's interface goes.

    config sack=True mss=1000           first, if at all: fields of Config that differ from talk.PLAIN
    +0 listen                           calls: connect listen accept refuse close abort, read N, write N
    +0 write 10 urgent                  also: more, eor
    +0 close both                       in both directions
    +0 configure user_timeout_s=3.0     fields of Config
    +0 path_mtu 1300                    the largest packet, in octets behind its headers
    +.1 < S 0:0(0) win 5000 <mss 1000>  the peer says; options are mss, sackOK, wscale, TS val ecr, sack, uto
    +0 > S. 0:0(0) ack 1                the endpoint must say; P is looked at only where it is written
    +0 < U. 1:2(1) ack 1 win 9 urg 1    and the urgent pointer
    +0 < [ce] EA. 1:9(8) <ECN e0b 9>    ECN: noecn, ect0, ect1 or ce in the IP header, which is looked at only
                                        where it is written; A is AE; the option, or <noECN>
    +0 < S 0:9(9) <FO valid>            fast open: nothing, valid or digits; <noFO>. connect N: N octets are
                                        written before the SYN leaves; renew: a new endpoint
    +0 is state ESTABLISHED             a field of ConnectionInfo or property of the endpoint, as text
    +0 fails write 1                    a call must raise ValueError

A line begins with the seconds since the line before; time passes by the endpoint's deadlines. Numbers are
relative to each end's ISS. What the endpoint says and no line expects is a failure.
"""

import re
from ast import literal_eval
from dataclasses import replace

from talk import IRS, ISS, LETTERS, PLAIN, Talk

from vtl_tools.common.packet import tcp

TOLERANCE_S = 0.004
TIMES = "rtt_s", "busy_s", "window_limited_s", "buffer_limited_s"
CODEPOINTS = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}
SEGMENT = re.compile(
    r"(?:\[(\w+)\] )?([FSRPUEWA.]+) (\d+):(\d+)\((\d+)\)"
    r"(?: ack (\d+))?(?: win (\d+))?(?: urg (\d+))?(?: <(.*)>)?$"
)


def options(text, base, valid):
    found = {}
    for option in filter(None, (text or "").split(",")):
        name, *words = option.split()
        if name == "mss":
            found["mss"] = int(words[0])
        elif name == "uto":  # seconds, or minutes
            found["user_timeout"] = int(words[0]) if words[0][-1] != "m" else 0x8000 | int(words[0][:-1])
        elif name == "wscale":
            found["window_scale"] = int(words[0])
        elif name == "sackOK":
            found["sack_permitted"] = True
        elif name == "TS":
            found["timestamps"] = int(words[1]), int(words[3])
        elif name == "sack":
            edges = [tuple(int(edge) for edge in word.split(":")) for word in words]
            found["sack"] = [tuple((base + edge) % 2**32 for edge in block) for block in edges]
        elif name in ("ECN", "noECN"):
            counts = b"".join(int(word).to_bytes(3, "big") for word in words[1::2])
            kind = 174 if words[:1] == ["e1b"] else 172
            found["raw"] = bytes((kind, 2 + len(counts))) + counts if name == "ECN" else b""
        elif name in ("FO", "noFO"):
            cookie = valid if words == ["valid"] else bytes.fromhex("".join(words))
            found["cookie"] = cookie if name == "FO" else None
        else:
            raise ValueError(f"no such option: {option}")
    return found


def fields(text):
    return {name: literal_eval(value) for name, value in (word.split("=") for word in text.split())}


def raw_option(segment):
    """Return the AccECN option as octets; none if it is absent."""
    for kind, data in segment.options():
        if kind in (172, 174):
            return bytes((kind, 2 + len(data))) + data
    return b""


class Script(Talk):
    """One conversation."""

    def __init__(self, text, version=4, start=100.0):
        self.script = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        config = PLAIN
        if self.script[0].startswith("config "):
            config = replace(PLAIN, **fields(self.script.pop(0).removeprefix("config ")))
        self.times = []
        super().__init__(config, version, start)

    def pump(self):
        super().pump()
        self.times += [self.now] * (len(self.said) - len(self.times))

    def run(self):
        turns = {"<": self.hear, ">": self.say, "is": self.is_so, "fails": self.fails}
        for line in self.script:
            wait, word, *rest = line.split(maxsplit=2)
            self.lines.append(f"          {line}")
            if word in turns:
                turns[word](float(wait), rest[0])
            else:
                self.pass_(float(wait))
                self.call(word, *rest)
        self.expect_nothing()

    def call(self, name, argument=None):
        """The user's turn."""
        if name == "write":
            size, *how = argument.split()
            size = int(size)
            took = self.tcp.write(bytes(size), **dict.fromkeys(how, True))
            assert took == size, self.tell(f"write({size})")
        elif name == "read":
            size = left = int(argument)
            while left:
                piece = self.tcp.read(left)
                assert piece, self.tell(f"{size - left} octets were read, not {size}")
                left -= len(piece)
        elif name == "renew":
            self.renew()
        elif name == "connect" and argument:
            self.tcp.connect()
            self.tcp.write(bytes(int(argument)))
        elif name == "close":
            self.tcp.close(both=argument == "both")
        elif name == "path_mtu":
            self.tcp.path_mtu(int(argument) + self.tcp.framer.overhead)
        elif name == "configure":
            self.tcp.configure(**fields(argument))
        else:
            getattr(self.tcp, name)()
        self.pump()

    def fails(self, wait, rest):
        self.pass_(wait)
        name, *argument = rest.split()
        try:
            self.call(name, *argument)
        except ValueError:
            return
        raise AssertionError(self.tell(f"{rest} did not fail"))

    def is_so(self, wait, rest):
        self.pass_(wait)
        name, expected = rest.split()
        held = self.tcp if name not in TIMES and hasattr(self.tcp, name) else self.tcp.info(self.now)
        value = getattr(held, name)
        if name in TIMES:
            value = round(value, 2)
        value = getattr(value, "value", value)
        assert str(value) == expected, self.tell(f"{name} is {value}, not {expected}")

    def hear(self, wait, rest):
        """The peer's turn."""
        self.pass_(wait)
        self.expect_nothing()
        ecn, flags, seq, _, size, ack, win, urg, more = SEGMENT.match(rest).groups()
        win = 10_000 if win is None else int(win)
        numbers = {"ack": int(ack or 0), "win": win, "urgent": int(urg or 0)}
        numbers["ecn"] = CODEPOINTS[ecn or "noecn"]
        self.inject(flags, int(seq), int(size), **numbers, **options(more, ISS, self.jar.cookie(self.path)))

    def say(self, wait, rest):
        """The endpoint's turn."""
        due = self.now + wait
        self.pass_(wait + (TOLERANCE_S if wait else 0))
        assert self.said, self.tell(f"nothing came: {rest}")
        when = self.times.pop(0)
        if not self.times or wait:
            self.now = max(when, due - TOLERANCE_S)
        assert abs(when - due) <= TOLERANCE_S, self.tell(f"it came at {when:.3f}, not at {due:.3f}: {rest}")
        packet = self.said.pop(0)
        heard = packet.tcp
        ecn, flags, seq, end, size, ack, win, urg, more = SEGMENT.match(rest).groups()
        bits = sum(LETTERS[letter] for letter in flags)
        looked_at = 0x1FF if bits & tcp.PSH else 0x1FF & ~tcp.PSH
        assert (heard.ae << 8 | heard.flags) & looked_at == bits, self.tell(f"other flags: {rest}: {heard!r}")
        said = (heard.seq - ISS) % 2**32, len(heard.payload)
        assert said == (int(seq), int(size)), self.tell(f"{rest}: {said[0]}:{said[0] + said[1]}({said[1]})")
        assert int(end) == int(seq) + int(size), f"a wrong script: {rest}"
        if ack is not None:
            assert (heard.ack - IRS) % 2**32 == int(ack), self.tell(f"{rest}: {(heard.ack - IRS) % 2**32}")
        assert win is None or heard.window == int(win), self.tell(f"{rest}: win {heard.window}")
        assert ecn is None or packet.ip.ecn == CODEPOINTS[ecn], self.tell(f"{rest}: ECN {packet.ip.ecn}")
        assert heard.urgent == int(urg or 0), self.tell(f"{rest}: urg {heard.urgent}")
        for name, value in options(more, IRS, self.jar.cookie(self.path)).items():
            if name == "raw":
                there = raw_option(heard)
            elif name == "cookie":
                there = next((data for kind, data in heard.options() if kind == tcp.FAST_OPEN), None)
            else:
                there = getattr(heard, name)
            if name == "timestamps":
                there, value = there[1], value[1]  # TSval begins anywhere
            assert there == value, self.tell(f"{rest}: {name} {there}")
