"""Properties of an endpoint's states, and the reasons why a connection ended or a segment was dropped."""

from enum import StrEnum
from typing import Final

from vtl_tools.common.packet import tcp_state
from vtl_tools.common.packet.tcp_state import State as State  # part of the endpoint's interface

# The states that each segment is compared with: to look one up in its class takes thirty times as long.
CLOSED: Final = State.CLOSED
LISTEN: Final = State.LISTEN
SYN_SENT: Final = State.SYN_SENT
SYN_RECEIVED: Final = State.SYN_RECEIVED
ESTABLISHED: Final = State.ESTABLISHED
FIN_WAIT_1: Final = State.FIN_WAIT_1
FIN_WAIT_2: Final = State.FIN_WAIT_2
TIME_WAIT: Final = State.TIME_WAIT

ON_FIN: Final = tcp_state.ON_FIN
ON_CLOSE: Final = tcp_state.ON_CLOSE
ON_FIN_ACKED: Final = tcp_state.ON_FIN_ACKED

TAKES_DATA: Final = frozenset(  # 3.10.7.4, seventh step; our peer has not sent its FIN
    (State.SYN_RECEIVED, State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)
)

SENDS_DATA: Final = frozenset(  # our FIN is not acknowledged: it or data may have to be sent
    (State.ESTABLISHED, State.FIN_WAIT_1, State.CLOSE_WAIT, State.CLOSING, State.LAST_ACK)
)

MAY_WRITE: Final = frozenset(  # 3.10.2; data written in LISTEN opens actively, and waits for the handshake
    (State.LISTEN, State.SYN_SENT, State.SYN_RECEIVED, State.ESTABLISHED, State.CLOSE_WAIT)
)


class Ended(StrEnum):
    """Why a connection is CLOSED."""

    CLOSED = "closed"  # orderly, by both ends
    REFUSED = "refused"  # a reset answered our SYN
    RESET = "reset"  # by the peer
    ABORTED = "aborted"  # by our user
    TIMED_OUT = "timed-out"  # the peer did not answer for the user timeout, or no keep-alive


class SegmentDrop(StrEnum):
    """Reason why a segment was dropped. The values appear in --json."""

    MALFORMED = "malformed"
    SOURCE_ROUTE = "source-route"  # it would permit spoofed senders
    CHECKSUM = "checksum"
    FOREIGN = "foreign"  # of another connection
    NOT_OPEN = "not-open"  # the connection does not exist
    OUT_OF_WINDOW = "out-of-window"
    OLD_TIMESTAMP = "old-timestamp"  # PAWS, RFC 7323 section 5.3
    UNSURE_RESET = "unsure-reset"  # RFC 5961 section 3.2
    UNEXPECTED_SYN = "unexpected-syn"  # RFC 5961 section 4.2
    NO_ACK = "no-ack"
    BAD_ACK = "bad-ack"  # an ACK of data never sent, or long ago: RFC 5961 section 5.2
    HELD = "held"  # a SYN while the first one waits for accept() or refuse()
    FULL = "full"  # out of order, but there are REASSEMBLY_SEGMENTS already, or no room
    SUPERSEDED = "superseded"  # a SYN that ended TIME-WAIT: pass it to a new endpoint
