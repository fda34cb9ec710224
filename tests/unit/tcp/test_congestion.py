"""Congestion controls by themselves: an acknowledgement goes in, a window and a pacing rate come out."""

import pytest

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.congestion.base import UNLIMITED, Sample
from vtl_tools.common.tcp.congestion.bbr import Bbr, Phase
from vtl_tools.common.tcp.congestion.choice import CONTROLS
from vtl_tools.common.tcp.congestion.cubic import Cubic
from vtl_tools.common.tcp.congestion.newreno import NewReno

MSS = 1000


def told(**facts):
    sample = Sample()
    sample.advanced = sample.limited = True
    for name, value in facts.items():
        setattr(sample, name, value)
    return sample


def rounds(control, count, rtt_s=0.1, now=0.0, una=0):
    """Acknowledge a full window, segment by segment, so many times. Return the time and the position."""
    for _ in range(count):
        now += rtt_s
        nxt = una + control.cwnd
        for _ in range(control.cwnd // MSS):
            una += MSS
            control.acked(told(now=now, delivered=MSS, rtt_s=rtt_s, una=una, nxt=nxt))
    return now, una


def test_a_control_that_does_not_exist_is_refused_by_the_names_of_those_that_do():
    with pytest.raises(ValueError, match="newreno, cubic, bbr"):
        Config(congestion="vegas")


@pytest.mark.parametrize("name", ["newreno", "cubic"])
def test_slow_start_doubles_and_a_window_that_is_not_used_stays(name):
    control = CONTROLS[name](MSS, 10)
    rounds(control, 1)
    assert control.cwnd == 20 * MSS
    control.acked(told(delivered=5000, limited=False))
    control.acked(told(delivered=5000, advanced=False))
    assert control.cwnd == 20 * MSS


def test_newreno_grows_by_a_segment_a_window_and_halves():
    control = NewReno(MSS, 10)
    control.timed_out(0.0, 0, 20 * MSS, again=False)
    assert (control.cwnd, control.ssthresh) == (MSS, 5 * MSS)
    now, una = rounds(control, 4)
    assert control.cwnd == 6 * MSS
    rounds(control, 3, now=now, una=una)
    assert control.cwnd == 9 * MSS


@pytest.mark.parametrize("name", ["newreno", "cubic"])
def test_a_window_that_a_mark_reduces_restarts_after_an_idle_time(name):
    """The mark came with the ACK of all data, so no ACK has ended the reduction."""
    control = CONTROLS[name](MSS, 10)
    now, una = rounds(control, 4)
    control.marked(told(now=now, delivered=MSS, flight=160 * MSS, una=una, nxt=una))
    assert control.ssthresh >= 80 * MSS
    control.idle(20)
    assert control.cwnd == 10 * MSS
    control.acked(told(now=now + 9.0, delivered=MSS, rtt_s=0.1, una=una + MSS, nxt=una + 10 * MSS))
    assert control.cwnd == 11 * MSS


def test_a_timeout_of_the_same_data_keeps_the_threshold():
    control = NewReno(MSS, 10)
    control.timed_out(0.0, 0, 10 * MSS, again=False)
    control.timed_out(1.0, 0, MSS, again=True)
    assert control.ssthresh == 5 * MSS


def reduced(control, now, una=0):
    """Lose a segment of a full window, and recover."""
    control.lost(now, control.cwnd - MSS, control.cwnd)
    control.recovered(now + 0.1, 0)
    return control.cwnd


def test_cubic_returns_to_the_window_of_the_loss_after_k_seconds():
    control = Cubic(MSS, 100)
    assert reduced(control, 0.0) == 70 * MSS
    after = {}
    now, una = 0.0, 0
    k_s = (30 / 0.4) ** (1 / 3)
    while now < 2 * k_s:
        now, una = rounds(control, 1, rtt_s=0.2, now=now, una=una)
        after[round(now, 1)] = control.cwnd / MSS
    assert after[round(k_s, 1)] == pytest.approx(100, abs=4), "the plateau"
    assert after[2.0] - 70 > 3 * (after[4.2] - after[3.2]), "concave before it"
    assert max(after.values()) > 105, "convex behind it"


def test_cubic_is_not_slower_than_reno_would_be():
    """RFC 9438 section 4.3: with a small window and a short round trip the cubic function is too slow."""
    control = Cubic(MSS, 10)
    reduced(control, 0.0)
    rounds(control, 60, rtt_s=0.01)
    assert control.cwnd >= (7 + 0.5 * 60 * 0.53) * MSS


def test_cubic_releases_bandwidth_to_newcomers():
    """RFC 9438 section 4.7: a flow that loses before it is back remembers less."""
    control = Cubic(MSS, 100)
    reduced(control, 0.0)
    now, una = rounds(control, 2)
    reduced(control, now)
    _, una = rounds(control, 1, now=now, una=una)
    assert control._w_max == pytest.approx(70 * 1.7 / 2, rel=0.05)


def test_cubic_reverts_a_spurious_reduction():
    control = Cubic(MSS, 100)
    reduced(control, 0.0)
    control.undo()
    assert (control.cwnd, control.ssthresh) == (100 * MSS, UNLIMITED)


def test_hystart_ends_slow_start_when_the_round_trip_has_grown():
    """RFC 9406: conservative for five rounds, then congestion avoidance, without a loss."""
    control = Cubic(MSS, 10)
    now, una = rounds(control, 3, rtt_s=0.05)
    assert control.cwnd == 80 * MSS
    now, una = rounds(control, 1, rtt_s=0.07, now=now, una=una)
    assert 80 * MSS < control.cwnd < 115 * MSS, "eight samples at full pace, then a quarter"
    now, una = rounds(control, 6, rtt_s=0.07, now=now, una=una)
    assert control.ssthresh < UNLIMITED


def test_hystart_goes_on_when_it_was_no_queue():
    control = Cubic(MSS, 10)
    now, una = rounds(control, 3, rtt_s=0.05)
    now, una = rounds(control, 1, rtt_s=0.07, now=now, una=una)
    cwnd = control.cwnd
    now, una = rounds(control, 2, rtt_s=0.05, now=now, una=una)
    assert control.cwnd > 3 * cwnd
    assert control.ssthresh == UNLIMITED


class Pipe:
    """A path of a rate and a round trip, in rounds, to a BBR that always has data."""

    def __init__(self, octet_s=1e6, rtt_s=0.1, loss=0.0):
        self.octet_s, self.rtt_s, self.loss = octet_s, rtt_s, loss
        self.now, self.total = 0.0, 0
        self.control = Bbr(MSS, 10)
        self.control.opened(0.0, rtt_s)

    def round(self):
        """Deliver what window, pacing and path let through in a round trip, in ten acknowledgements."""
        control, product = self.control, int(self.octet_s * self.rtt_s)
        sent = min(control.cwnd, int(control.pacing_rate * self.rtt_s))
        carried = min(sent, product)
        queue_s = max(0, min(control.cwnd, sent) - product) / self.octet_s
        lost = int(carried * self.loss)
        prior = self.total
        for _ in range(10):
            self.now += self.rtt_s / 10
            self.total += (carried - lost) // 10
            control.acked(
                told(
                    now=self.now, delivered=(carried - lost) // 10, lost=lost // 10, total=self.total,
                    prior=prior, rate=carried / self.rtt_s, before=control.cwnd,
                    in_flight=sent, tx_in_flight=sent, lost_since=lost, rtt_s=self.rtt_s + queue_s,
                    interval_s=self.rtt_s,
                )
            )  # fmt: skip

    def phases(self, seconds):
        seen = []
        until = self.now + seconds
        while self.now < until:
            self.round()
            if not seen or self.control.phase is not seen[-1]:
                seen.append(self.control.phase)
        return seen


def test_bbr_finds_the_rate_drains_its_queue_and_cycles():
    pipe = Pipe()
    seen = pipe.phases(12.0)
    assert seen[0] is Phase.STARTUP
    assert {Phase.CRUISE, Phase.REFILL, Phase.UP} <= set(seen)
    assert Phase.PROBE_RTT in seen
    assert pipe.control.model.max_bw == pytest.approx(1e6, rel=0.05)
    assert pipe.control.model.min_rtt_s == pytest.approx(0.1)
    assert pipe.control.cwnd <= 3 * 100_000


def test_bbr_probes_a_long_round_trip_every_twenty_of_them():
    pipe = Pipe(rtt_s=1.0)
    assert Phase.PROBE_RTT not in pipe.phases(19.0)
    assert Phase.PROBE_RTT in pipe.phases(5.0)


def test_bbr_paces_the_initial_window_over_the_round_trip():
    control = Bbr(MSS, 10)
    control.opened(0.0, 0.1)
    assert control.pacing_rate == pytest.approx(2.77 * 10 * MSS / 0.1)
    assert control.quantum == 2 * MSS


def test_bbr_is_not_slowed_down_by_loss_without_a_queue():
    pipe = Pipe(loss=0.05)
    pipe.phases(15.0)
    assert pipe.control.model.inflight_lo == UNLIMITED
    assert pipe.control.model.loss_share == pytest.approx(0.05, abs=0.01)
    assert pipe.control.pacing_rate > 0.9e6


def test_bbr_bounds_what_is_in_flight_where_a_buffer_overflows():
    """A probe that loses 20 % is beyond the path."""
    pipe = Pipe()
    pipe.phases(1.5)
    control = pipe.control
    pipe.loss = 0.2
    pipe.phases(6.0)
    assert control.model.inflight_hi < UNLIMITED


def test_bbr_takes_loss_among_the_last_holes_of_a_window_for_no_bound():
    pipe = Pipe()
    while pipe.control.phase is not Phase.UP:
        pipe.round()
    control = pipe.control
    facts = {
        "now": pipe.now, "delivered": MSS, "total": pipe.total, "prior": pipe.total - MSS, "rtt_s": 0.1,
        "lost_since": 26 * MSS, "before": MSS, "in_flight": MSS,
    }  # fmt: skip
    control.acked(told(tx_in_flight=50 * MSS, **facts))
    assert control.model.inflight_hi == UNLIMITED
    control.acked(told(tx_in_flight=110 * MSS, **facts))
    assert control.model.inflight_hi == 110 * MSS


def test_bbr_forgets_a_timeout_that_was_not_due():
    pipe = Pipe()
    pipe.phases(3.0)
    cwnd = pipe.control.cwnd
    pipe.control.timed_out(pipe.now, 0, cwnd, again=False)
    assert pipe.control.cwnd == MSS
    pipe.control.undo()
    assert pipe.control.cwnd == cwnd
