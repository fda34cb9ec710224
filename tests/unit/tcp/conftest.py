"""A fixture for each state, reached by speaking. Each gives the endpoint, and its peer to speak for."""

import pytest
from talk import PLAIN, Talk


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def fresh(request):
    """A function that makes a conversation of some configuration, in CLOSED."""
    return lambda config=PLAIN: Talk(config, request.param)


def offering(config):
    return {
        "mss": 1000,
        "sack_permitted": config.sack,
        "window_scale": 2 if config.window_scaling else None,
        "timestamps": (500, 0) if config.timestamps else None,
    }


@pytest.fixture
def make(fresh):
    """A function that makes a conversation in ESTABLISHED."""

    def opened(config=PLAIN, win=10_000):
        peer = fresh(config)
        peer.tcp.listen()
        peer.inject("S", 0, win=win, **offering(config))
        peer.tcp.accept()
        peer.expect("S.", seq=0, ack=1)
        stamps = {"timestamps": (500, 0)} if config.timestamps else {}
        peer.inject(".", 1, ack=1, win=win, **stamps)
        peer.expect_nothing()
        return peer.tcp, peer

    return opened


@pytest.fixture
def closed(fresh):
    peer = fresh()
    return peer.tcp, peer


@pytest.fixture
def listen(closed):
    closed[0].listen()
    return closed


@pytest.fixture
def syn_sent(closed):
    tcp, peer = closed
    tcp.connect()
    peer.expect("S", seq=0)
    return closed


@pytest.fixture
def syn_received(listen):
    tcp, peer = listen
    peer.inject("S", 0, mss=1000)
    tcp.accept()
    peer.expect("S.", seq=0, ack=1)
    return listen


@pytest.fixture
def established(make):
    return make()


@pytest.fixture
def fin_wait_1(established):
    tcp, peer = established
    tcp.close()
    peer.expect("F.", seq=1, ack=1)
    return established


@pytest.fixture
def fin_wait_2(fin_wait_1):
    fin_wait_1[1].inject(".", 1, ack=2)
    return fin_wait_1


@pytest.fixture
def closing(fin_wait_1):
    fin_wait_1[1].inject("F.", 1, ack=1)
    fin_wait_1[1].expect(".", seq=2, ack=2)
    return fin_wait_1


@pytest.fixture
def time_wait(fin_wait_2):
    fin_wait_2[1].inject("F.", 1, ack=2)
    fin_wait_2[1].expect(".", seq=2, ack=2)
    return fin_wait_2


@pytest.fixture
def close_wait(established):
    established[1].inject("F.", 1, ack=1)
    established[1].expect(".", seq=1, ack=2)
    return established


@pytest.fixture
def last_ack(close_wait):
    close_wait[0].close()
    close_wait[1].expect("F.", seq=1, ack=2)
    return close_wait
