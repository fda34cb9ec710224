"""A running bridge whose peers lie: about lengths, offload, checksums, everything. It lives, and counts."""

import os
import socket
from pathlib import Path
from random import Random

import pytest

from tests.running import bridge
from vtl_tools.common.packet import build
from vtl_tools.common.packet.address import ip
from vtl_tools.services.bridge import STATIONS_MAX

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MACS = {"src_mac": b"\2\0\0\0\0\1", "dst_mac": b"\2\0\0\0\0\2"}
V4 = {"src": ip("10.0.0.1"), "dst": ip("10.0.0.2"), "sport": 1, "dport": 2}
V6 = V4 | {"src": ip("fd00::1"), "dst": ip("fd00::2")}
HONEST = [
    bytes(
        build.tcp(
            **MACS, **V4, seq=1, ack=1, flags=0x10, window=9, payload=bytes(n), partial=True, gso_size=g
        )
    )
    for n, g in ((10, 0), (3000, 1448), (60_000, 1448))
] + [bytes(build.udp(**MACS, **V6, payload=bytes(n), partial=True)) for n in (10, 1000)]


def lie(rng: Random) -> bytes:
    """Return a frame with its virtio_net_hdr, more or less wrong."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randint(1, 1600))
    frame = bytearray(rng.choice(HONEST))
    for _ in range(rng.randint(0, 4)):
        frame[rng.randrange(min(len(frame), 90))] = rng.randrange(256)
    if rng.random() < 0.3:
        del frame[rng.randrange(1, len(frame)) :]
    return bytes(frame)


def test_a_switch_survives_peers_that_lie(lab):
    rng = Random(5)
    middle, far = lab.host("middle"), lab.host("far")
    lab.veth(middle, "eth0", far, "eth0")
    links = (f"channel:{lab.dir}/c,server", "eth0", f"qemu:unix:{lab.dir}/q,server")
    arguments = [word for link in links for word in ("--iface", link)]

    def qemu() -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(f"{lab.dir}/q")
        stream.setblocking(False)
        return stream

    with bridge(lab, middle, *arguments) as running:
        stream = qemu()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
            channel.connect(f"{lab.dir}/c")
            for round_ in range(300):
                for _ in range(200):
                    channel.send(lie(rng))
                try:
                    while stream.recv(1 << 20):
                        pass
                except BlockingIOError:
                    pass
                except OSError:
                    stream = qemu()
                try:
                    frame = rng.randbytes(60)
                    honest = round_ % 30
                    stream.send(len(frame).to_bytes(4, "big") + frame if honest else rng.randbytes(100))
                except BlockingIOError:
                    pass
                except OSError:
                    stream.close()
                    stream = qemu()
        stream.close()
        status = running.status()
        assert status["links"][0]["rx_frames"] > 10_000
        assert status["links"][0]["drops"]["malformed"] > 1000
        assert status["links"][1]["tx_frames"] > 1000
        assert status["links"][2]["losses"] > 1, "a stream that lies about a length is closed"
        assert len(status["stations"]) <= STATIONS_MAX
        resident = Path(f"/proc/{running.process.pid}/statm").read_text().split()[1]
        assert int(resident) * os.sysconf("SC_PAGESIZE") < 100 << 20
