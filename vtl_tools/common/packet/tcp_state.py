"""The states of a TCP connection (RFC 9293 section 3.3.2) and their transitions as tables."""

from enum import Enum
from typing import Final


class State(Enum):
    """State of a connection. The value appears in logs and --json. A model cannot tell LISTEN from CLOSED."""

    __hash__ = object.__hash__  # Enum's own is Python code, and a connection hashes thirty times

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
    State.FIN_WAIT_1: State.CLOSING,  # if its own FIN is not acknowledged yet
    State.FIN_WAIT_2: State.TIME_WAIT,
}

ON_CLOSE: Final = {  # 3.10.4: the user closes; the FIN follows the data written before
    State.SYN_RECEIVED: State.FIN_WAIT_1,
    State.ESTABLISHED: State.FIN_WAIT_1,
    State.CLOSE_WAIT: State.LAST_ACK,
}

ON_FIN_ACKED: Final = {  # 3.10.7.4, fifth step: all it sent is acknowledged, FIN included
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}
