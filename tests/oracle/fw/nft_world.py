"""Who is there, and what a packet of a sequence is: a VM's side and a network's, with few hosts and ports."""

import struct
from collections import defaultdict
from dataclasses import dataclass, field

from vtl_tools.common.packet import address
from vtl_tools.common.packet.checksum import checksum
from vtl_tools.common.packet.vnet import VNET

VM_MACS = [address.mac("52:54:00:00:00:01")]
NET_MACS = [address.mac("52:54:00:00:01:01"), address.mac("52:54:00:00:01:02")]
STRANGE_MACS = [address.mac("52:54:00:00:00:09"), address.mac("52:54:00:00:01:09")]
VM4, VM6 = ["10.0.0.5", "10.0.0.6"], ["2001:db8::5", "2001:db8::6"]
NET4 = ["192.0.2.1", "192.0.2.130", "198.51.100.9"]
NET6 = ["2001:db8:1::1", "2001:db8:1:8000::1", "2001:db8:2::9"]
PORTS = [22, 53, 80, 443, 8080, 40000, 40001, 65535]
VLANS = [None, 0, 5, 7]
SENTINEL = STRANGE_MACS[0] + STRANGE_MACS[1] + b"\x88\xb5" + bytes(46)


@dataclass
class Shot:
    """A packet, as one frame or in fragments. label: what it is meant to be. flow: of what connection.

    odd: in what it is no ordinary packet, which the reasons of differences ask for. segment: of TCP, the
    flags and the number.
    """

    out: bool
    number: int
    frames: list[bytes]
    label: str
    flow: tuple = ()
    odd: set = field(default_factory=set)
    segment: tuple[int, int] | None = None

    def __str__(self):
        odd = f" [{' '.join(sorted(self.odd))}]" if self.odd else ""
        return f"#{self.number} {'out' if self.out else 'in'} {self.label}{odd}"


def ends(out, six=False, vm=0, net=0, net_mac=0):
    """MACs and addresses of a packet, as build takes them."""
    here = address.ip((VM6 if six else VM4)[vm])
    there = address.ip((NET6 if six else NET4)[net])
    if out:
        return {"src_mac": VM_MACS[0], "dst_mac": NET_MACS[net_mac], "src": here, "dst": there}
    return {"src_mac": NET_MACS[net_mac], "dst_mac": VM_MACS[0], "src": there, "dst": here}


def l3_at(frame):
    """Where behind the tags of a frame (without vnet header) is what it carries, and of what type."""
    at = 12
    while frame[at : at + 2] in (b"\x81\x00", b"\x88\xa8"):
        at += 4
    return at + 2, frame[at : at + 2]


def numbered(frame, number):
    """Return a frame without vnet header that has a number which the collector finds again."""
    frame = bytearray(frame[VNET:])
    at, kind = l3_at(frame)
    if kind == b"\x08\x00":
        good = checksum(frame[at : at + (frame[at] & 15) * 4]) == 0
        struct.pack_into("!H", frame, at + 4, number)
        if good:
            frame[at + 10 : at + 12] = b"\0\0"
            struct.pack_into("!H", frame, at + 10, checksum(frame[at : at + (frame[at] & 15) * 4]))
    elif kind == b"\x86\xdd":
        struct.pack_into("!H", frame, at + 2, number)  # of the flow label
    elif kind == b"\x08\x06":
        struct.pack_into("!4xH", frame, at + 18, number)  # of tha
    else:
        struct.pack_into("!H", frame, at, number)
    return bytes(frame)


def split(frame, cuts):
    """Return fragments of a numbered IP frame, as (start, octets of data, is last) of the cuts says.

    Where a cut reaches beyond the packet, zeros are there.
    """
    at, kind = l3_at(frame)
    out = []
    for start, size, last in cuts:
        if kind == b"\x08\x00":
            head_end = at + (frame[at] & 15) * 4
            head = bytearray(frame[:head_end])
            data = frame[head_end:][start : start + size].ljust(size, b"\0")
            struct.pack_into("!H", head, at + 2, head_end - at + size)
            struct.pack_into("!H", head, at + 6, start // 8 | (0 if last else 0x2000))
            head[at + 10 : at + 12] = b"\0\0"
            struct.pack_into("!H", head, at + 10, checksum(head[at:]))
        else:
            head_end = at + 40
            head = bytearray(frame[:head_end])
            (label,) = struct.unpack_from("!H", head, at + 2)
            data = frame[head_end:][start : start + size].ljust(size, b"\0")
            head += struct.pack("!BxHI", head[at + 6], start | (0 if last else 1), label)
            head[at + 6] = 44
            struct.pack_into("!H", head, at + 4, 8 + size)
        out.append(bytes(head + data))
    return out


def payload_octets(frame):
    at, kind = l3_at(frame)
    if kind == b"\x08\x00":
        return struct.unpack_from("!H", frame, at + 2)[0] - (frame[at] & 15) * 4
    return struct.unpack_from("!H", frame, at + 4)[0]


def came_out(to_net, to_vm):
    """Return the numbers of the packets that came out whole, with how often; and what came in pieces only."""
    passed, partly = defaultdict(int), set()
    for out, frames in (True, to_net), (False, to_vm):
        pieces = defaultdict(set)
        for frame in frames:
            at, kind = l3_at(frame)
            if kind == b"\x08\x00":
                number, bits = struct.unpack_from("!HH", frame, at + 4)
                start, more = (bits & 0x1FFF) * 8, bits & 0x2000
                size = struct.unpack_from("!H", frame, at + 2)[0] - (frame[at] & 15) * 4
            elif kind == b"\x86\xdd":
                (number,) = struct.unpack_from("!H", frame, at + 2)
                start = more = size = 0
                if frame[at + 6] == 44:
                    (bits,) = struct.unpack_from("!H", frame, at + 42)
                    start, more = bits & 0xFFF8, bits & 1
                    size = struct.unpack_from("!H", frame, at + 4)[0] - 8
            elif kind == b"\x08\x06":
                (number,) = struct.unpack_from("!4xH", frame, at + 18)
                start = more = size = 0
            else:
                (number,) = struct.unpack_from("!H", frame, at)
                start = more = size = 0
            if number == 0:
                continue  # a firewall's own word: a reset or an ICMP error
            if not start and not more:
                passed[out, number] += 1
            else:
                pieces[number].add((start, start + size, not more))
        for number, some in pieces.items():
            ordered, reached, ended = sorted(some), 0, False
            for start, end, last in ordered:
                if start <= reached:
                    reached, ended = max(reached, end), ended or last
            if ended and ordered[-1][1] == reached:
                passed[out, number] += 1
            else:
                partly.add((out, number))
    return dict(passed), partly
