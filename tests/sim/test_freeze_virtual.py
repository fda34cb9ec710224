"""A VM that goes away and comes back, whenever and for how long it is: every octet arrives once, in order."""

from random import Random

import pytest
from freeze_network import PEER, VM, FreezeNetwork
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import State

HOUR_S = 3600.0
PATIENT = Config(user_timeout_s=None)


class Transfer:
    """Octets both ways, as much as there is room for; turn() goes on with it."""

    def __init__(self, net, up, down, slow=False):
        self.net, self.data, self.slow = net, (up, down), slow
        self.left = [memoryview(up), memoryview(down)]
        self.got = [bytearray(), bytearray()]

    def turn(self):
        for i, end in enumerate(self.net.ends):
            if i == VM and not self.net.runs:
                continue
            if self.left[i] is not None and end.state in (State.ESTABLISHED, State.CLOSE_WAIT):
                self.left[i] = self.left[i][end.write(self.left[i]) :]
                if not self.left[i]:
                    end.close()
                    self.left[i] = None
            while data := end.read(1 << 16):
                self.got[i] += data
                if self.slow and end.state is not State.CLOSED:
                    break
        return all(end.at_eof for end in self.net.ends)

    def until(self, octets):
        """Go on until one end has so many octets."""
        self.net.run(lambda: self.turn() or max(map(len, self.got)) >= octets)

    def finish(self):
        self.net.run(self.turn, limit_s=50_000.0)
        assert (bytes(self.got[VM]), bytes(self.got[PEER])) == self.data[::-1]


@pytest.mark.parametrize(
    ("moved", "one_in"), [(False, 1), (True, 1), (False, 16)], ids=["stays", "moves", "sampled"]
)
@pytest.mark.parametrize(("up", "down"), [(0, 300_000), (300_000, 0), (200_000, 200_000)])
@pytest.mark.parametrize("version", [4, 6])
def test_an_hour_of_absence_ends_no_transfer(version, up, down, moved, one_in):
    rng = Random(1)
    net = FreezeNetwork(rng, one_in=one_in, version=version, configs=(Config(), Config(user_timeout_s=300.0)))
    net.open()
    transfer = Transfer(net, rng.randbytes(up), rng.randbytes(down))
    transfer.until(60_000)
    net.freeze(HOUR_S, moved=moved)
    back = net.now
    before = len(transfer.got[VM]), len(transfer.got[PEER])
    net.run(lambda: transfer.turn() or (len(transfer.got[VM]), len(transfer.got[PEER])) != before)
    assert net.now - back <= 2 * 2 * net.delay_s + 0.05  # two round trips, and a delayed ACK
    transfer.finish()
    assert len(net.said) in (range(10, 200) if down else range(1))  # a peer that has all asks nothing


def test_without_it_the_peer_gives_up():
    net = FreezeNetwork(Random(1), configs=(Config(), Config(user_timeout_s=300.0)))
    net.open()
    transfer = Transfer(net, b"", bytes(300_000))
    transfer.until(60_000)
    net.suspend()
    net.run_for(HOUR_S)
    assert net.ends[PEER].state is State.CLOSED


def test_an_idle_connection_is_kept_by_its_keep_alives():
    net = FreezeNetwork(Random(1), configs=(Config(), Config(keep_alive_s=60.0, keep_alive_interval_s=10.0)))
    net.open()
    net.run_for(1.0)
    net.freeze(HOUR_S)
    assert len(net.said) > 50
    Transfer(net, bytes(1000), bytes(1000)).finish()


def test_an_idle_connection_from_before_is_learned_by_its_keep_alives():
    net = FreezeNetwork(Random(1), configs=(Config(), Config(keep_alive_s=60.0, keep_alive_interval_s=10.0)))
    net.watched = False
    net.open()
    net.run_for(1.0)
    net.freeze(HOUR_S)
    assert len(net.said) > 50
    Transfer(net, bytes(1000), bytes(1000)).finish()


def test_a_download_from_before_is_learned_by_what_comes_again():
    net = FreezeNetwork(Random(1), configs=(Config(), Config(user_timeout_s=300.0)))
    net.watched = False
    net.open()
    transfer = Transfer(net, b"", Random(2).randbytes(300_000))
    transfer.until(60_000)
    net.freeze(HOUR_S)
    transfer.finish()


BOOLEANS = st.booleans()
PROBED = {"timestamps": False, "sack": True, "window_scaling": False}
OPTIONS = st.fixed_dictionaries({"timestamps": BOOLEANS, "sack": BOOLEANS, "window_scaling": BOOLEANS})


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.02, 0.1]),
    one_in=st.sampled_from([1, 1, 16]),
    watched=st.sampled_from(["always", "from the middle", "never"]),
    sizes=st.tuples(*[st.sampled_from([0, 3000, 60_000])] * 2),
    share=st.floats(0, 1),
    seconds=st.sampled_from([1.0, 10.0, 300.0]),
    guesses=st.integers(0, 40),
    moved=BOOLEANS,
    options=st.tuples(OPTIONS, OPTIONS),
)
@example(17, 0.1, 16, "always", (60_000, 60_000), 0.75, 300.0, 17, False, (PROBED, PROBED))
def test_a_blind_attacker_makes_no_octet_vanish_and_no_clock_run_ahead(
    seed, loss, one_in, watched, sizes, share, seconds, guesses, moved, options
):
    rng = Random(seed)
    configs = tuple(Config(user_timeout_s=None, syn_timeout_s=1e6, **one) for one in options)
    net = FreezeNetwork(rng, one_in=one_in, configs=configs, loss=loss, version=rng.choice((4, 6)))
    net.watched = watched == "always"
    net.open()
    net.run(lambda: all(end.state is State.ESTABLISHED for end in net.ends))
    transfer = Transfer(net, rng.randbytes(sizes[0]), rng.randbytes(sizes[1]))
    net.attacked = True
    for part in 0.5, 1.0:
        for _ in range(guesses // 4):
            net.spoof(0.1)
        transfer.until(int(share * part * max(sizes)))
        net.watched = watched != "never"
    if not transfer.turn():
        for _ in range(guesses):
            net.spoof(seconds)
        net.freeze(seconds, moved=moved)
    transfer.finish()


@settings(deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    loss=st.sampled_from([0.0, 0.02, 0.1, 0.25]),
    reorder=st.sampled_from([0.0, 0.1, 0.5]),
    one_in=st.sampled_from([1, 1, 4, 32]),
    watched=st.sampled_from([True, True, True, False]),
    sizes=st.tuples(*[st.sampled_from([0, 1, 3000, 60_000])] * 2),
    moments=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 0.3, 3.0, 100.0, HOUR_S])), max_size=3),
    late_s=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    early_s=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    moved=BOOLEANS,
    slow=BOOLEANS,
    options=st.tuples(OPTIONS, OPTIONS),
    delay_s=st.sampled_from([0.001, 0.01, 0.2]),
)
def test_whatever_happens_every_octet_arrives_once(
    seed, loss, reorder, one_in, watched, sizes, moments, late_s, early_s, moved, slow, options, delay_s
):
    rng = Random(seed)
    configs = tuple(
        Config(
            user_timeout_s=None, syn_timeout_s=1e6, receive_buffer=rng.choice((4000, 65_536, 1 << 20)), **one
        )
        for one in options
    )
    net = FreezeNetwork(
        rng, one_in=one_in, configs=configs, loss=loss, reorder=reorder, duplicate=reorder / 5,
        corrupt=loss / 5, version=rng.choice((4, 6)), delay_s=delay_s,
        iss=(rng.choice((None, 2**32 - 500)),) * 2,
    )  # fmt: skip
    net.watched = watched
    net.open()
    net.run(lambda: all(end.state is State.ESTABLISHED for end in net.ends))
    if rng.random() < 0.1:
        net.miss()
    transfer = Transfer(net, rng.randbytes(sizes[0]), rng.randbytes(sizes[1]), slow)
    total = max(sizes)
    for share, seconds in sorted(moments):
        transfer.until(int(share * total))
        if transfer.turn():
            break
        net.freeze(seconds, late_s=late_s, early_s=early_s, moved=moved)
    net.corrupt = 0.0
    transfer.finish()
