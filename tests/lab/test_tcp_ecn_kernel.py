"""ECN of the endpoint with a real kernel. Both ends' packets are marked on their way."""

import socket
import struct
from random import Random

import pytest
from test_tcp_kernel import OCTETS, active, exchange, passive, wire  # noqa: F401 - a fixture

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config

pytestmark = pytest.mark.lab

CE = 3
_ECN, _ECN_SEEN = 8, 16  # tcp_info.tcpi_options


class MarkingDevice:
    """A device whose link marks each n-th ECN-capable frame, both ways."""

    def __init__(self, device, each=40):
        self.device, self.each, self.capable = device, each, [0, 0]

    def _pass(self, frame, to):
        net = Packet.at(frame).ip
        if net is not None and net.ecn in (1, 2):
            self.capable[to] += 1
            if not self.capable[to] % self.each:
                net.ecn = CE
        return frame

    def read(self):
        return [self._pass(bytearray(frame), 0) for frame in self.device.read()]

    def write(self, frames):
        self.device.write(Batch.of([self._pass(bytearray(frame), 1) for frame in frames]))

    def close(self):
        self.device.close()


def tcp_info(sock):
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)


@pytest.mark.parametrize("asks", ["kernel", "endpoint", "endpoint, for the accurate one"])
def test_a_kernel_and_the_endpoint_tell_each_other_of_marks(wire, asks):  # noqa: F811
    """This kernel has no accurate mode, so what is agreed is RFC 3168."""
    wire.host.sysctl("net.ipv4.tcp_ecn", 1)
    wire.device = MarkingDevice(wire.device)
    config = Config(ecn="accurate" if "accurate" in asks else "classic")
    with passive(wire) if asks == "kernel" else active(wire, config) as sock:
        assert wire.endpoint.info().ecn_mode == "classic"
        ours, theirs = Random(1).randbytes(OCTETS), Random(2).randbytes(OCTETS)
        assert exchange(wire, sock, ours, theirs) == (theirs, ours)
        told = tcp_info(sock)
        assert told[5] & _ECN
        assert told[5] & _ECN_SEEN, "our data is ECN-capable"
        assert min(wire.device.capable) > wire.device.each
        (threshold,) = struct.unpack_from("=I", told, 8 + 4 * 18)
        assert threshold < 1 << 20, "the kernel has reduced its window"
        assert wire.endpoint.info().ssthresh < 1 << 30, "we have reduced ours"


def test_a_kernel_that_does_not_ask_is_not_marked(wire):  # noqa: F811
    with passive(wire) as sock:
        assert wire.endpoint.info().ecn_mode == "none"
        assert not tcp_info(sock)[5] & _ECN
