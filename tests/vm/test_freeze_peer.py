"""A peer with Linux 6.1, which takes no window that shrinks to nothing from a segment that is no newer."""

import socket
import threading
import time
from functools import partial

import pytest

from lab.netns import Lab
from lab.wait import PATIENCE_S, until
from tests.lab.test_freeze import cut, freezing, held, mend
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.vm

NUMBERS = 400_000
AWAY_S = 7.0
"""With tcp_retries2=4 a peer gives up after some five seconds."""


def test_an_older_kernel_is_made_to_believe_that_the_window_is_shut(lab: Lab) -> None:
    vm, cable, host = lab.host("vm"), lab.host("cable", ipv6=False), lab.host("host")
    lab.veth(vm, "eth0", cable, "left")
    lab.veth(host, "vnet0", cable, "right")
    lab.bridge(cable, "both", ["left", "right"])
    host.tap("vmnet1")
    lab.bridge(host, "br0", ["vnet0", "vmnet1"])
    vm.addr("eth0", "10.9.0.1/24")
    peer = lab.guest("peer", on=host, tap="vmnet1", address="10.9.0.2/24")
    got = bytearray()
    with vm.call(partial(socket.create_server, ("10.9.0.1", 80))) as server, freezing(lab, host) as running:
        peer.sh(f"(seq {NUMBERS} | nc 10.9.0.1 80) >/dev/null 2>&1 &")
        end, _ = server.accept()

        def receive() -> None:
            while octets := end.recv(1 << 14):
                got.extend(octets)
                time.sleep(0.002)  # so that the transfer is not over before the VM is away

        reader = threading.Thread(target=receive)
        with end:
            reader.start()
            until(lambda: len(got) > 200_000, "data")
            cut(cable)
            control.ask(running.socket, "start")
            peer.sh("echo 4 >/proc/sys/net/ipv4/tcp_retries2", check=True)
            time.sleep(AWAY_S)
            assert held(running)["held"] == 1
            before = len(got)
            mend(cable)
            control.ask(running.socket, "stop")
            until(lambda: len(got) > before, "data to flow again")
            reader.join(PATIENCE_S)
    assert got == "".join(f"{i}\n" for i in range(1, NUMBERS + 1)).encode()
