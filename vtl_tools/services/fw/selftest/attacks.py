"""Attacks on connection tracking, fragment reassembly and rate limits; and the list of all attacks."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6EchoRequest
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vtl_tools.common.selftest import situations, traffic
from vtl_tools.common.selftest.host import MAC as HOST_MAC
from vtl_tools.common.selftest.packets import HELLO, IP4
from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.services.fw.selftest import disguised, fragments, spoofed
from vtl_tools.services.fw.selftest import identity as fw_identity
from vtl_tools.services.fw.selftest import packets as fw
from vtl_tools.services.fw.selftest.marked import Attacks, mark
from vtl_tools.services.fw.selftest.packets import FLOWS, SERVICE4, SERVICE6
from vtl_tools.services.fw.selftest.scene import Firewalled

Attack = Callable[[Firewalled], object]


def connect(play: Firewalled, sport: int, *, six: bool = False) -> None:
    """Open a connection from the guest to the service."""
    say = partial(fw.segment, sport, six=six)
    play.out(fw.called(sport, six=six), due=True)
    play.come(say("SA", out=False, seq=5000, ack=1001), due=True)
    play.out(
        say("A", out=True, seq=1001, ack=5001), say("PA", out=True, seq=1001, ack=5001, data=HELLO), due=True
    )
    play.come(say("PA", out=False, seq=5001, ack=1001 + len(HELLO), data=HELLO), due=True)


def admit(play: Firewalled, sport: int, *, six: bool = False) -> None:
    """Open a connection from a caller to the guest."""
    play.come(fw.from_caller(sport, "S", six=six), due=True)
    play.out(fw.to_caller(sport, "SA", six=six), due=True)
    play.come(fw.from_caller(sport, "A", seq=7001, ack=401, six=six), due=True)


def use(play: Firewalled) -> None:
    """Send traffic that the rules allow, to verify that it passes."""
    for six in False, True:
        connect(play, 41_000, six=six)
        admit(play, 42_000, six=six)
    play.out(fw.asked(41_001), due=True)
    play.come(fw.answered(41_001), due=True)


def call_in(play: Firewalled) -> None:
    """As a stranger, send packets of no connection that no rule allows."""
    for six in False, True:
        for port in 1, 21, 23, 80, 443, 8443, 65535:
            play.come(fw.from_caller(43_000, "S", port=port, six=six))
        for flags in "A", "SA", "PA", "F", "FA", "R", "RA", "", "SF", "SR", "FPU":
            play.come(fw.from_caller(43_001, flags, ack=5, six=six))
    for head in fw.inward(fw.CALLER4), fw.inward(fw.CALLER6):
        play.come(*(head / UDP(sport=53, dport=port) / HELLO for port in (53, 68, 137, 161, 41_002, 5353)))
    play.come(fw.inward() / ICMP(id=7) / HELLO, fw.inward(SERVICE6) / ICMPv6EchoRequest(id=7, data=HELLO))
    unknown = IP(src=IP4, dst=SERVICE4) / UDP(sport=44_000, dport=99)
    for kind, code in (3, 1), (3, 3), (3, 4), (4, 0), (5, 1), (11, 0), (12, 0):
        play.come(fw.inward() / ICMP(type=kind, code=code) / unknown)


def reach_in(play: Firewalled) -> None:
    """As a blind attacker, send segments and ICMP errors of a connection; the guest does so to a caller's."""
    connect(play, 44_001)
    blind = partial(fw.segment, 44_001, out=False)
    sent = 1001 + len(HELLO)
    for far in 100_000, 1 << 30, 1 << 31, (1 << 32) - 100_000:
        seq = (5001 + far) % (1 << 32)
        play.come(
            blind("PA", seq=seq, ack=sent, data=HELLO), blind("R", seq=seq, ack=0),
            blind("FA", seq=seq, ack=sent),
            blind("PA", seq=5001 + len(HELLO), ack=(sent + far) % (1 << 32), data=HELLO),
        )  # fmt: skip
        play.out(fw.segment(44_001, "PA", out=True, seq=(sent + far) % (1 << 32), ack=5001, data=HELLO))
        quoted = IP(src=IP4, dst=SERVICE4) / TCP(
            sport=44_001, dport=fw.SERVICE_PORT, seq=(sent + far) % (1 << 32)
        )
        play.come(fw.inward() / ICMP(type=3, code=1) / quoted, fw.inward() / ICMP(type=3, code=4) / quoted)
    play.come(blind("SA", seq=9000, ack=77), blind("S", seq=9000, ack=0))


def flush_fragments(play: Firewalled) -> None:
    """As many strangers, send fragments of incomplete packets. The guest's own must still be reassembled."""
    whole = fw.asked(46_000, b"?" * 1200)
    whole[IP].id = 777
    first, last = (Ether(src=whole.src, dst=whole.dst) / part for part in fragment(whole[IP], fragsize=800))
    play.out(first, may=[first])
    play.come(*(_first_part(_anybody(number)) for number in range(1500)))
    play.out(last, due=True)


def _first_part(src: str) -> Packet:
    part = fw.inward(src)
    part[IP].id, part[IP].flags, part[IP].proto = 7, "MF", 17
    return part / Raw(bytes(UDP(sport=53, dport=53, len=2000)) + bytes(56))


def _anybody(number: int) -> str:
    return f"198.18.{number >> 8}.{number & 255}"


def flood_in(play: Firewalled) -> None:
    """As many strangers, send allowed SYNs. The guest's connections must continue, and new ones succeed."""
    connect(play, 47_000)
    admit(play, 47_001)
    questions = range(47_100, 47_120)
    play.out(*map(fw.asked, questions), due=True)
    syns = [
        bytes(fw.inward(_anybody(n)) / TCP(sport=1024, dport=22, seq=n, flags="S", window=8000))
        for n in range(3 * FLOWS)
    ]
    play.come(*syns, may=syns)
    play.come(*map(fw.answered, questions), due=True)
    play.out(fw.segment(47_000, "A", out=True, seq=1001 + len(HELLO), ack=5001 + len(HELLO)), due=True)
    play.come(fw.from_caller(47_001, "A", seq=7001, ack=401), due=True)
    connect(play, 47_002)


def flood_out(play: Firewalled) -> None:
    """As the guest, send allowed SYNs. Callers must still get in, and stay connected."""
    admit(play, 48_000)
    play.come(fw.from_caller(48_001, "S"), due=True)
    syns = [bytes(fw.called(1024 + number)) for number in range(3 * FLOWS)]
    play.out(*syns, may=syns)
    play.out(fw.to_caller(48_001, "SA"), due=True)
    play.come(fw.from_caller(48_001, "A", seq=7001, ack=401), due=True)
    play.come(fw.from_caller(48_000, "A", seq=7001, ack=401), due=True)
    admit(play, 48_002)


NOT_ONLY_DENIED: Final = frozenset(
    {"tcp", "names", "dns over tcp", "dot, doh", "stun over tcp", "names of the host", "dhcp", "ipv6 routers",
     "arp and neighbours"}
)  # fmt: skip
"""Kinds of traffic without frames, or of which a part passes; other attacks replace them here."""


def _traffic(kind: traffic.TrafficKind) -> Attack:
    return lambda play: play.out(*kind.frames(HOST_MAC))


def _marked(family: Callable[[], Attacks]) -> Attack:
    return lambda play: play.out(*(frame for _, frames in family() for frame in frames))


def pad_with_data(play: Firewalled) -> None:
    """Send data behind packets that the rules allow: at most zeros arrive in its place."""
    for name, frames in disguised.padded():
        for octets in map(bytes, frames):
            bare = octets.removesuffix(mark(name))
            play.out(
                octets,
                may=(bare, bare.ljust(fw_identity.FRAME_OCTETS, b"\0"), bare.ljust(len(octets), b"\0")),
            )


BY_RULES: Final = {
    "spoofed senders": spoofed.senders,
    "arp spoofing": spoofed.arp,
    "neighbour discovery spoofing": spoofed.neighbours,
    "data in neighbour discovery": spoofed.neighbour_data,
    "rogue router": spoofed.routers,
    "dhcp as another client": spoofed.dhcp_clients,
    "rogue dhcp server": spoofed.dhcp_servers,
    "tagged frames": disguised.tagged,
    "disguised packets": disguised.disguised,
    "denied, in fragments": fragments.denied,
}
"""Attacks that a firewall without identity whose rules allow everything lets pass."""

ALWAYS: Final = {
    "malformed fragments": fragments.malformed,
    "source routes": disguised.source_routes,
    "broken packets": disguised.broken,
    "data in padding": disguised.padded,
}
"""Attacks that no rule lets pass."""

_MARKED: Final = {name: _marked(family) for name, family in (BY_RULES | ALWAYS).items()}


ATTACKS: Final[tuple[tuple[str, Attack], ...]] = (
    ("lease and neighbours", fw_identity.settle_in),
    ("allowed connections", use),
    *(_MARKED | {"dhcp as another client": fw_identity.dhcp, "data in padding": pad_with_data}).items(),
    ("data behind arp and nd", fw_identity.behind_arp),
    ("dhcp in an answer", fw_identity.dhcp_in_answer),
    ("ipv6 address of another", fw_identity.claim),
    ("ipv6 address taken away", fw_identity.lock_out),
    ("strangers", call_in),
    ("blind segments", reach_in),
    ("flood of fragments", flush_fragments),
    ("spoofed flood", flood_in),
    ("flood of the guest", flood_out),
    *((kind.name, _traffic(kind)) for kind in traffic.KINDS if kind.name not in NOT_ONLY_DENIED),
)
"""Names and functions of all attacks, in order: the others need the first."""


def run(program: Sequence[str], options: Sequence[str] = ()) -> Iterator[TrialResult]:
    """Start a service, and yield the result of each attack.

    program: a command that takes vtl-fw's options. Raises PermissionNeededError without root, and VTLError if
    the service does not start, ends, or passes nothing.
    """
    with contextlib.closing(Firewalled(program, options)) as scene:
        yield from scene.run(ATTACKS)
    for situation in situations.ALL:
        with contextlib.closing(Firewalled(program, options)) as scene:
            yield situations.tried(scene, situation)
