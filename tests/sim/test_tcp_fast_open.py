"""TCP fast open over networks of all sorts: what the SYN carries arrives once, or follows it."""

from random import Random

import pytest
from tcp_network import Network

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.state import State

EARLY = Config(fast_open=True, ecn="accurate")


class Early(Network):
    """A network between a client and a server that have cookies."""

    def __init__(self, rng, **faults):
        self.jars = [FastOpen(b"client"), FastOpen(b"server", pending_max=1)]
        super().__init__(rng, configs=(EARLY, EARLY), **faults)

    def renew(self, configs, version=4, iss=(None, None)):
        super().renew(configs, version, iss)
        for end, jar in zip(self.ends, self.jars, strict=True):
            end.fast_open = jar
        self.wire.clear()

    def ask(self, request):
        """Open and write at once; return what the server has when it has accepted."""
        client, server = self.ends
        server.listen()
        client.connect()
        client.write(request)
        self.run(lambda: server.asked)
        server.accept()
        return server.readable


@pytest.mark.parametrize("version", [4, 6])
def test_the_second_request_arrives_half_a_round_trip_after_it_was_written(version):
    net = Early(Random(1), version=version)
    assert net.ask(b"request") == 0
    net.run(lambda: net.ends[1].readable == 7)
    net.renew((EARLY, EARLY), version)
    began = net.now
    assert net.ask(b"request") == 7
    net.ends[1].write(b"answer")
    net.run(lambda: net.ends[0].readable == 6)
    assert net.now - began == pytest.approx(2 * net.delay_s), "the answer takes one round trip in all"


@pytest.mark.parametrize("seed", range(10))
def test_every_octet_arrives_once_whatever_the_network_does(seed):
    rng = Random(seed)
    net = Early(rng, loss=0.1, reorder=0.1, duplicate=0.1, corrupt=0.02)
    early = 0
    for number in range(6):
        if number:
            net.renew((EARLY, EARLY))
        request, answer = rng.randbytes(rng.choice((1, 500, 5000))), rng.randbytes(3000)
        early += net.ask(request) > 0
        assert net.transfer(b"", answer) == (answer, request)
        assert all(end.state in (State.CLOSED, State.TIME_WAIT) for end in net.ends)
        assert net.jars[1].pending == 0
        net.now += 3601  # what was lost is forgotten
    assert early > 1
