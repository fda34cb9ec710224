"""The kernel as the oracle: what it makes of a super-segment in software, octet for octet.

In a network namespace of the test's own, a frame is sent with its vnet header into a veth whose offloads are
off, so that the kernel has to finish and cut it; what comes out of the other end must be what we make of it.
"""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.wait import PATIENCE_S, until
from tests.supersegments import ACK, CWR, FIN, HOP_BY_HOP, MACS, PSH, octets, tcp, udp
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.offload import partial_to_full, segment
from vtl_tools.common.selftest import namespaces, raw_socket

pytestmark = pytest.mark.lab

SOL_PACKET = 263  # linux/socket.h and linux/if_packet.h
PACKET_VNET_HDR = 15
LAST = MACS + b"\x88\xb5the last one".ljust(48, b".")  # tells that the frames before it have arrived

V4_OPTIONS = bytes.fromhex("94040000")  # router alert


def is_up(interface):
    """Whether the kernel has seen the other end: until then it drops what is sent."""
    shown = subprocess.run(["ip", "link", "show", interface], check=True, capture_output=True, text=True)
    return "state UP" in shown.stdout


def cable():
    """Join two interfaces in a namespace of the calling thread; return a socket to send and one to receive.

    Nothing need be torn down: the namespace goes with the thread and the two sockets.
    """
    namespaces.unshare(namespaces.CLONE_NEWNET)
    for command in (
        "ip link add left type veth peer name right",
        "ethtool -K left tx off tso off gso off gro off",
        "ethtool -K right gro off",
        "ip link set left up",
        "ip link set right up",
    ):
        subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
    until(lambda: is_up("left") and is_up("right"), "a cable that carries frames")
    tx = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    tx.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    tx.bind(("left", 0))
    return tx, raw_socket.open_raw_socket("right")


@pytest.fixture(scope="module")
def ends():
    with ThreadPoolExecutor(1) as thread:  # so that only the worker moves to another namespace
        tx, rx = thread.submit(cable).result()
    with tx, rx:
        yield tx, rx


def receive(rx):
    """Return the next Ethernet frame of ours with its VLAN tag back in place."""
    rx.settimeout(PATIENCE_S)
    while True:
        frame = raw_socket.receive(rx)
        if frame.startswith(MACS):
            return frame


def kernels(ends, frame):
    """Return the Ethernet frames that the kernel makes of frame."""
    tx, rx = ends
    tx.send(frame)
    tx.send(bytes(vnet.VNET) + LAST)
    frames = []
    while (got := receive(rx)) != LAST:
        frames.append(got)
    return frames


def ours(frame):
    return [bytes(s[vnet.VNET :]) for s in segment(frame)]


CASES = {
    "tcp4": tcp(4, octets(64_000), 1448),
    "tcp4-without-options": tcp(4, octets(14_600), 1460, options=b""),
    "tcp4-exact": tcp(4, octets(2896), 1448),
    "tcp4-odd": tcp(4, octets(4001), 1333),
    "tcp4-one-octet-more": tcp(4, octets(1449), 1448),
    "tcp4-all-flags": tcp(4, octets(5000), 1448, flags=FIN | PSH | ACK | CWR | 0x40, urgent=7),
    "tcp4-ecn": tcp(4, octets(5000), 1448, flags=ACK | CWR, gso_type=vnet.GSO_TCPV4 | vnet.GSO_ECN),
    "tcp4-wraps": tcp(4, octets(5000), 1000, seq=0xFFFF_FF00, ident=0xFFFE),
    "tcp4-ip-options": tcp(4, octets(5000), 1400, ip_options=V4_OPTIONS),
    "tcp4-vlan": tcp(4, octets(5000), 1448, tags=[(0x8100, 0x6005)]),
    "tcp4-qinq": tcp(4, octets(5000), 1444, tags=[(0x88A8, 7), (0x8100, 5)]),
    "tcp4-short-mss": tcp(4, octets(10_000), 36),
    "tcp4-length-0": tcp(4, octets(5000), 1448, length=0),
    "tcp6": tcp(6, octets(64_000), 1428),
    "tcp6-odd": tcp(6, octets(4001), 1333, flags=FIN | PSH | ACK | CWR),
    "tcp6-vlan": tcp(6, octets(5000), 1428, tags=[(0x8100, 5)]),
    "tcp6-qinq": tcp(6, octets(5000), 1424, tags=[(0x88A8, 7), (0x8100, 5)]),
    "tcp6-hop-by-hop": tcp(6, octets(5000), 1400, extensions=[(0, HOP_BY_HOP)]),
    "tcp6-two-extensions": tcp(6, octets(5000), 1400, extensions=[(0, HOP_BY_HOP), (60, HOP_BY_HOP)]),
    "tcp6-length-0": tcp(6, octets(5000), 1428, length=0),
    "udp4": udp(4, octets(60_000), 1400),
    "udp4-odd": udp(4, octets(4000), 1111),
    "udp4-vlan": udp(4, octets(5000), 1400, tags=[(0x8100, 5)]),
    "udp6": udp(6, octets(60_000), 1400),
    "udp6-odd": udp(6, octets(4000), 1111),
    "udp6-vlan": udp(6, octets(5000), 1400, tags=[(0x8100, 5)]),
    "ufo4": udp(4, octets(20_000), 1480, gso_type=vnet.GSO_UDP),
    "ufo4-vlan": udp(4, octets(3000), 1480, gso_type=vnet.GSO_UDP, tags=[(0x8100, 5)]),
    "small-tcp4": tcp(4, octets(1000), 1448),
    "partial-tcp4": tcp(4, octets(1001), 0),
    "partial-tcp6": tcp(6, octets(1000), 0),
    "partial-tcp4-vlan": tcp(4, octets(1000), 0, tags=[(0x8100, 5)]),
    "partial-udp4": udp(4, octets(1001), 0),
    "partial-udp6": udp(6, octets(1000), 0),
    "partial-empty": tcp(6, b"", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_makes_the_same_octets(ends, name):
    frame = CASES[name]
    theirs = kernels(ends, frame)
    assert ours(bytearray(frame)) == theirs


def test_the_kernel_sends_a_udp_checksum_of_zero_as_we_do(ends):
    frame = udp(4, b"\0\0", 0)
    trial = bytearray(frame)
    partial_to_full(trial)
    at = vnet.VNET + 14 + 20 + 6
    frame[-2:] = trial[at : at + 2]
    theirs = kernels(ends, frame)
    assert ours(frame) == theirs
    assert frame[at : at + 2] == b"\xff\xff"


def test_the_kernel_fragments_ipv6_alike_but_for_the_identification(ends):
    frame = udp(6, octets(20_000), 1448, gso_type=vnet.GSO_UDP)
    theirs = kernels(ends, frame)
    ident = slice(14 + 40 + 4, 14 + 40 + 8)
    mine = []
    for got, their in zip(ours(frame), theirs, strict=True):
        got = bytearray(got)
        got[ident] = their[ident]
        mine.append(bytes(got))
    assert mine == theirs


@pytest.mark.parametrize("name", ["gso_size", "csum_start", "csum_offset", "gso_type"])
def test_the_kernel_refuses_what_we_refuse(ends, name):
    names = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset")
    frame = tcp(4, octets(5000), 1448)
    fields = dict(zip(names, vnet.HEADER.unpack_from(frame), strict=True))
    fields[name] = {"gso_type": 2, "csum_start": 0xFFF0}.get(name, 0)
    frame[: vnet.VNET] = vnet.HEADER.pack(*fields.values())
    with pytest.raises(ValueError, match="malformed vnet"):
        segment(frame)
    with pytest.raises(OSError, match="Invalid argument"):
        ends[0].send(frame)
