"""The delivery rate, for controls that need it (draft-cheng-iccrg-delivery-rate-estimation)."""

from typing import Final

from vtl_tools.common.tcp.congestion.base import Sample
from vtl_tools.common.tcp.flight import Run
from vtl_tools.common.tcp.snd import Sender

_NONE: Final = float("inf")  # no round trip was measured yet


def newest(fresh: list[Run]) -> Run | None:
    """Return the run that was sent last."""
    last = None
    for run in fresh:
        if run.stamp is not None and (last is None or run.is_after(last.sent_at, last.end)):
            last = run
    return last


def measure_rate(snd: Sender, sample: Sample, run: Run | None, now: float) -> None:
    """Make the rate sample (section 3.3), from the run of those delivered that was sent last."""
    sample.rate = sample.interval_s = 0.0
    snd.delivered += sample.delivered
    sample.total = snd.delivered
    if snd.starved_to and snd.delivered > snd.starved_to:
        snd.starved_to = 0
    if run is None or run.stamp is None:
        sample.prior = -1
        return
    stamp = run.stamp
    snd.delivered_at, snd.first_at = now, run.sent_at
    sample.prior, sample.app_limited = stamp.delivered, stamp.app_limited
    sample.tx_in_flight, sample.lost_since = stamp.in_flight, snd.missing - stamp.missing
    interval_s = max(run.sent_at - stamp.first_at, now - stamp.delivered_at)
    least_s = snd.rack.min_rtt_s
    if interval_s > 0 and (interval_s >= 0.999 * least_s or least_s == _NONE):
        sample.interval_s = interval_s
        sample.rate = (snd.delivered - stamp.delivered) / interval_s
        if sample.rate >= snd.rate or not stamp.app_limited:
            snd.rate = sample.rate
