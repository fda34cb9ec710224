"""The states of a connection (RFC 9293 section 3.3.2), and the part of the diagram that is a table."""

from enum import Enum, StrEnum
from typing import Final


class State(Enum):
    """Spelt like the RFC; the value is what logs and --json print."""

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
    State.FIN_WAIT_1: State.CLOSING,  # where our FIN is not acknowledged yet
    State.FIN_WAIT_2: State.TIME_WAIT,
}

ON_CLOSE: Final = {  # 3.10.4: when the user closes; the FIN itself waits for the data before it
    State.SYN_RECEIVED: State.FIN_WAIT_1,
    State.ESTABLISHED: State.FIN_WAIT_1,
    State.CLOSE_WAIT: State.LAST_ACK,
}

ON_FIN_ACKED: Final = {  # 3.10.7.4, fifth step: when all that we sent is acknowledged, our FIN included
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}

TAKES_DATA: Final = frozenset(  # 3.10.7.4, seventh step; our peer has not sent its FIN
    (State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
)

SENDS_DATA: Final = frozenset(  # our FIN is not acknowledged, so that data or it may have to be sent
    (State.ESTABLISHED, State.FIN_WAIT_1, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)
)

MAY_WRITE: Final = frozenset(  # 3.10.2; before the connection stands, what is written waits
    (State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED, State.CLOSE_WAIT)
)


class Ended(StrEnum):
    """Why a connection is CLOSED."""

    CLOSED = "closed"  # in order, by both ends
    REFUSED = "refused"  # a reset answered our SYN
    RESET = "reset"  # by the peer
    ABORTED = "aborted"  # by our user
    TIMED_OUT = "timed-out"  # the peer did not answer for the user timeout, or not to keep-alives


class Drop(StrEnum):
    """Why a segment went no further; the values are what --json prints."""

    MALFORMED = "malformed"
    CHECKSUM = "checksum"
    FOREIGN = "foreign"  # of another connection
    NOT_OPEN = "not-open"  # there is no connection that it could be of
    OUT_OF_WINDOW = "out-of-window"
    OLD_TIMESTAMP = "old-timestamp"  # PAWS, RFC 7323 section 5.3
    NO_TIMESTAMP = "no-timestamp"  # RFC 7323 section 3.2
    UNSURE_RESET = "unsure-reset"  # RFC 5961 section 3.2
    UNEXPECTED_SYN = "unexpected-syn"  # RFC 5961 section 4.2
    NO_ACK = "no-ack"
    BAD_ACK = "bad-ack"  # of what was never sent, or long ago: RFC 5961 section 5.2
    HELD = "held"  # a SYN while our user has not said yet whether to accept the first
    FULL = "full"  # out of order, and there are REASSEMBLY_SEGMENTS already, or no room
