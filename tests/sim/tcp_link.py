"""A link with a rate, a queue, a delay and loss, and how fast a transfer goes over it, in virtual time."""

from typing import NamedTuple

from tcp_network import Network

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import State


class Link(Network):
    """Loss falls on the way from end 0 to end 1; what finds the queue full is lost as well."""

    def __init__(self, rng, *, mbit_s=50.0, delay_s=0.01, loss=0.0, queue_s=0.05):
        super().__init__(rng, delay_s=delay_s)
        self.octet_s, self.queue_s, self.forward_loss = 8 / (mbit_s * 1e6), queue_s, loss
        self.free = [0.0, 0.0]  # when each direction has sent what waits

    def send(self, to, frame):
        free = max(self.free[to], self.now)
        if free - self.now > self.queue_s:
            return
        self.free[to] = free + (len(frame) - 10 + 24) * self.octet_s  # preamble, gap, checksum
        if to and self.rng.random() < self.forward_loss:
            return
        self.frames += 1
        self.put(self.free[to] + self.delay_s, to, frame)


class Run(NamedTuple):
    """One transfer's goodput, and the segments that were sent again."""

    mbit_s: float
    retransmits: int


def measure(link, buffer, octets, congestion="newreno"):
    """Send octets from end 0 to end 1, which has so large a buffer and whose user reads at once."""
    config = Config(
        receive_buffer=buffer, send_buffer=2 * buffer, congestion=congestion,
        no_delay=True,  # Nagle would hold the end back
    )  # fmt: skip
    link.renew((config, config))
    link.open()
    sender, receiver = link.ends
    start, left, got = link.now, octets, 0
    data = bytes(buffer)

    def turn():
        nonlocal left, got
        if left:
            left -= sender.write(data[:left])
        while piece := receiver.read():
            got += len(piece)
        return got == octets

    link.run(turn)
    assert sender.state is State.ESTABLISHED
    return Run(octets * 8 / (link.now - start) / 1e6, sender.info().retransmits)
