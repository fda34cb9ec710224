"""Frames, and ways to wait for a link without a clock."""

import select
import struct

from vtl_tools.common.packet.vnet import HEADER, NONE, VNET

MACS = bytes.fromhex("020000000002020000000001")


def ether(n=0, size=60):
    """An Ethernet frame of its own experimental type, told from others by n."""
    return (MACS + b"\x88\xb5" + n.to_bytes(4, "big")).ljust(size, bytes([n & 255]))


def plain(n=0, size=60):
    """The same as devices give and take it."""
    return NONE + ether(n, size)


def tcp(payload, gso_size=0, flags=1, gso_type=1):
    """A TCP frame over IPv4 with a partial checksum, and a super-segment if gso_size."""
    size = 40 + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 7, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    segment = struct.pack("!HHIIBBHHH", 1000, 2000, 1, 1, 0x50, 0x10, 512, 0, 0) + payload
    header = HEADER.pack(flags, gso_type if gso_size else 0, 54, gso_size, 34, 16)
    return header + MACS + b"\x08\0" + ip + segment


def octets(batch):
    """The Ethernet frames of a batch, kept."""
    return [bytes(frame[VNET:]) for frame in batch]


def ready(device, timeout_s=10.0):
    """Whether the device says that read() has something to do; waits, and gives up after timeout_s."""
    return bool(select.select([device], [], [], timeout_s)[0])


def read_all(device, count):
    """Read, whenever the device says so, until `count` frames came."""
    got = []
    while len(got) < count:
        assert ready(device), f"{len(got)} of {count} frames came"
        got += octets(device.read())
    return got


def until(condition, *devices):
    """Read the devices whenever they say so, dropping what comes, until the condition holds."""
    while not condition():
        readable, _, _ = select.select(devices, [], [], 10.0)
        assert readable, "nothing more happens"
        for device in readable:
            device.read()
