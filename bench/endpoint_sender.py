"""Sends as fast as it may to a TCP server, by our endpoint: a process of endpoint_matrix.py.

usage: bench/endpoint_sender.py INTERFACE OUR_ADDRESS SERVER SERVER_MAC PORT CONGESTION

It has a real-time priority: the kernel's TCP runs before all processes, too.
"""

import contextlib
import secrets
import select
import sys
import time
from pathlib import Path as File

sys.path.insert(0, str(File(__file__).resolve().parent.parent))

from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.host.scheduling import take_realtime_priority
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.wire import Path

MAC = address.mac("02:00:00:00:00:77")
BUFFER = 16 << 20
PIECE = bytes(1 << 18)
TURN_S = 0.05


def main() -> None:
    interface, ours, server, server_mac, port, congestion = sys.argv[1:]
    path = Path(
        MAC, address.mac(server_mac), address.ip(ours), address.ip(server),
        secrets.randbelow(20_000) + 40_000, int(port),
    )  # fmt: skip
    take_realtime_priority()
    device = PacketDevice(interface)
    device.connect()
    config = Config(congestion=congestion, send_buffer=BUFFER, no_delay=True)
    end = Endpoint(path, secrets.token_bytes(16), time.monotonic(), config)
    end.connect()
    while end.state is not State.CLOSED:
        now = time.monotonic()
        if end.state is State.ESTABLISHED:
            while end.writable >= len(PIECE):
                end.write(PIECE)
        frames = end.transmit(now)
        for at in range(0, len(frames), 64):
            device.write(Batch.of(frames[at : at + 64]))
        due = end.deadline()
        wait_s = TURN_S if due is None else min(TURN_S, max(0.0, due - time.monotonic()))
        select.select([device.fileno()], [], [], wait_s)  # epoll waits for whole milliseconds
        now = time.monotonic()
        for frame in device.read():
            pkt = Packet.at(frame)
            if pkt.is_arp_request and pkt.arp is not None and pkt.arp.tpa == path.local:
                macs = {"src_mac": MAC, "dst_mac": path.remote_mac}
                reply = build.arp(
                    **macs, oper=2, sha=MAC, spa=path.local, tha=path.remote_mac, tpa=path.remote
                )
                device.write(Batch.of([reply]))
            elif pkt.tcp is not None and pkt.ip is not None and pkt.ip.dst == path.local:
                end.receive(frame, now)
        if (due := end.deadline()) is not None and due <= now:
            end.wake(now)
    device.close()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
