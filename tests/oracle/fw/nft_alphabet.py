"""The few packets and rules of which short sequences are made, so that a failure is found as a short one."""

from random import Random

from hypothesis import strategies as st
from nft_policies import Rule
from nft_sequences import Maker
from nft_world import ends

from vtl_tools.common.packet import build, icmp, ip, tcp

MASK = 0xFFFF_FFFF
ISS = {True: 1000, False: 0xFFFF_FF00}
POLICIES = [
    Rule("allow", "out", ["tcp"]), Rule("allow", "in", ["tcp"]), Rule("allow"), Rule("allow", "out", ["udp"]),
    Rule("allow", "in", ["udp"], dport=["53"]), Rule("reject", "in"), Rule("deny", "out", ["icmp"]),
    Rule("allow", "out", ["icmp"], types=["echo-request"]),
    Rule("allow", "in", ["icmp"], types=["unreachable"]),
    Rule("allow", "", ["tcp"], sport=["80"]), Rule("allow", "out", ["ip"], vlan=["5"]),
]  # fmt: skip

_FLAGS = st.sampled_from([2, 2, 18, 16, 16, 17, 4, 20, 0, 3, 6, 5, 1, 24, 48])
_STEP = st.sampled_from([0, 1, 1, 2, 101, -1, 9000, 1 << 31])
_TCP = st.tuples(st.just("tcp"), st.booleans(), _FLAGS, _STEP, _STEP, st.sampled_from([0, 1, 100]))
_UDP = st.tuples(st.just("udp"), st.booleans(), st.sampled_from([53, 54]), st.sampled_from([None, 5]))
_ECHO = st.tuples(st.just("echo"), st.booleans(), st.booleans(), st.sampled_from([7, 8]))
_QUOTED = st.sampled_from([24, 28, 60])
_ERROR = st.tuples(st.just("error"), st.integers(0, 11), st.sampled_from([3, 5, 11]), _QUOTED)
_HANDSHAKE = ("tcp", True, 2, 0, 0, 0), ("tcp", False, 18, 0, 1, 0), ("tcp", True, 16, 1, 1, 0)
_BEGUN = st.integers(0, 3).map(lambda done: list(_HANDSHAKE[:done]))
_STEPS = st.lists(st.one_of(_TCP, _TCP, _TCP, _UDP, _ECHO, _ERROR), min_size=1, max_size=12)
STEPS = st.tuples(_BEGUN, _STEPS).map(lambda both: both[0] + both[1])
"""Of TCP: whether out, the flags, the number and the acknowledgement behind each side's first, octets."""


_NAMES = {tcp.SYN | tcp.ACK: "syn-ack", tcp.RST | tcp.ACK: "rst-ack"}


def shots_of(steps):
    """Return the packets."""
    maker = Maker(Random(0), lambda _: True)
    maker.vlans = [None]
    for kind, *more in steps:
        _MAKE[kind](maker, *more)
    return maker.shots


def _tcp(maker, out, flags, seq, ack, size):
    ports = {"sport": 40000, "dport": 80} if out else {"sport": 80, "dport": 40000}
    number = (ISS[out] + seq) & MASK
    frame = build.tcp(
        **ends(out), **ports, seq=number, ack=(ISS[not out] + ack) & MASK if flags & 16 else 0, flags=flags,
        window=8000, payload=bytes(size),
    )  # fmt: skip
    label = f"tcp flags {flags:#x} {seq}+{size} ack {ack}"
    odd = {"lie", _NAMES.get(flags, "lie")}
    maker.emit(out, frame, label, ("tcp", False, 0, 0, 40000, 80, None), odd, segment=(flags, number))


def _udp(maker, out, port, vlan):
    maker.datagram(out, False, 0, 0, 40000, port, vlan, 1, odd={"as it is"})


def _echo(maker, out, reply, identifier):
    frame = build.icmp_echo(**ends(out), identifier=identifier, sequence=1, reply=reply)
    flow = ("echo", False, 0, 0, identifier, None)
    maker.emit(out, frame, f"echo {'reply' if reply else 'request'} {identifier}", flow, {"as it is"})


def _error(maker, which, kind, octets):
    """An error about one of the packets before, to its sender."""
    if which >= len(maker.sent):
        return
    was_out, quoted, flow, _ = maker.sent[which]
    side = ends(not was_out)
    l2 = build.ethernet(side["src_mac"], side["dst_mac"], 0x0800, flow[-1])
    head = icmp.ICMP.HEADER.pack(kind, 1, 0, 0)
    frame = build.over_ip(l2, side["src"], quoted[12:16], ip.ICMP, head, quoted[:octets])
    odd = {"error", *(["quote-short"] if octets < 28 else []), *(["order"] if kind == 5 else [])}
    maker.emit(not was_out, frame, f"icmp {kind} about {flow}", flow, odd)


_MAKE = {"tcp": _tcp, "udp": _udp, "echo": _echo, "error": _error}
