"""The states of a connection (RFC 9293 section 3.3.2), and the part of the diagram that is a table."""

from enum import Enum
from typing import Final


class State(Enum):
    """The value is what logs and --json print. From outside, LISTEN and CLOSED look alike."""

    __hash__ = object.__hash__  # Enum's own is Python, and a connection asks for it thirty times

    CLOSED = "CLOSED"
    LISTEN = "LISTEN"
    SYN_SENT = "SYN-SENT"
    SYN_RECEIVED = "SYN-RECEIVED"
    ESTABLISHED = "ESTABLISHED"
    FIN_WAIT_1 = "FIN-WAIT-1"
    FIN_WAIT_2 = "FIN-WAIT-2"
    CLOSE_WAIT = "CLOSE-WAIT"
    CLOSING = "CLOSING"
    LAST_ACK = "LAST-ACK"
    TIME_WAIT = "TIME-WAIT"


ON_FIN: Final = {  # 3.10.7.4, eighth step; elsewhere a FIN changes nothing
    State.SYN_RECEIVED: State.CLOSE_WAIT,
    State.ESTABLISHED: State.CLOSE_WAIT,
    State.FIN_WAIT_1: State.CLOSING,  # where its own FIN is not acknowledged yet
    State.FIN_WAIT_2: State.TIME_WAIT,
}

ON_CLOSE: Final = {  # 3.10.4: when its user closes; the FIN itself waits for the data before it
    State.SYN_RECEIVED: State.FIN_WAIT_1,
    State.ESTABLISHED: State.FIN_WAIT_1,
    State.CLOSE_WAIT: State.LAST_ACK,
}

ON_FIN_ACKED: Final = {  # 3.10.7.4, fifth step: when all that it sent is acknowledged, its FIN included
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}
