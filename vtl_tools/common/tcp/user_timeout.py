"""The user timeout option (RFC 5482): each end tells for how long it keeps data that is not acknowledged."""

from typing import Final

from vtl_tools.common.packet.tcp import encode_options
from vtl_tools.common.tcp.tcb import TCB

OPTION_SIZE: Final = 4
_MINUTES: Final = 0x8000  # the granularity bit
_MOST: Final = 0x7FFF


def option(tcb: TCB) -> bytes:
    """Return the option with our user timeout (ADV_UTO); if that has no limit, with the greatest."""
    ours_s = tcb.config.user_timeout_s
    value = _MINUTES | _MOST
    if ours_s is not None and ours_s <= _MOST:
        value = max(1, round(ours_s))  # zero is reserved
    elif ours_s is not None and ours_s < _MOST * 60:
        value = _MINUTES | int(ours_s // 60)
    return encode_options(user_timeout=value)


def heed(tcb: TCB, value: int) -> None:
    """Adapt our user timeout to the peer's (section 3.1), unless the user has set it since the start.

    value: the option's field. The lower limit is above the RTO.
    """
    config = tcb.config
    theirs_s = (value & _MOST) * 60 if value & _MINUTES else value
    ours_s = config.user_timeout_s
    if not (config.user_timeout_option and theirs_s) or tcb.is_timeout_fixed or ours_s is None:
        return
    least_s = max(config.user_timeout_min_s, tcb.rtt.timeout_s)
    tcb.user_timeout_s = min(config.user_timeout_max_s, max(ours_s, float(theirs_s), least_s))
