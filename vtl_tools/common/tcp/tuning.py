"""Sizes the buffers of a connection for the bandwidth-delay product of its path, as it shows itself."""

from typing import Final

from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.tcb import NEVER

_INTERVAL_MIN_S: Final = 0.01
"""Time between two measurements, where a round trip is shorter."""
_RTT_S: Final = 0.1
"""The round-trip time that is assumed before there is a sample."""
_RTT_MIN_S: Final = 0.002
"""A shorter one counts as this: in a turn of the driver (TURN_S of the runner) nothing else is taken in."""
_ROUNDS: Final = 4
"""Windows that a buffer holds after it grew: in slow start the window doubles before that has an effect."""


def tune(endpoint: Endpoint, now: float, *, may_grow: bool) -> None:
    """Enlarge the buffers, where less than two windows fit; call it at `tune_at`.

    The send buffer is held against the congestion window, the receive buffer against the octets that the user
    has read in a round trip, so a user that does not read makes nothing grow. Buffers do not shrink, since
    only used memory counts. may_grow: memory permits it.
    """
    config, rcv = endpoint.config, endpoint.rcv
    most = config.buffer_max
    if most is None:
        endpoint.tune_at = NEVER
        return
    rtt_s = max(endpoint.rtt.srtt_s or _RTT_S, _RTT_MIN_S)
    read = rcv.received - rcv.readable
    before, since = endpoint.tuned
    window, elapsed_s = read - before, now - since
    if elapsed_s > rtt_s:
        window = int(window * rtt_s / elapsed_s)
    endpoint.tuned, endpoint.tune_at = (read, now), now + max(rtt_s, _INTERVAL_MIN_S)
    if not may_grow:
        return
    changes = {}
    for name, product in ("receive_buffer", window), ("send_buffer", endpoint.snd.cc.cwnd):
        size = getattr(config, name)
        if size < min(2 * product, most):
            changes[name] = min(_ROUNDS * product, most)
    if changes:
        endpoint.configure(**changes)
