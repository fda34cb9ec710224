"""The kinds of TCP segments, as their receiver judges them."""

from enum import Enum


class SegmentKind(Enum):
    """The kind of a segment.

    taken: whether its receiver accepts it, as opposed to a drop or a challenge ACK.
    """

    SYN = "syn", True
    DATA = "data", True  # moves RCV.NXT: the next octets, or a FIN
    ACK = "ack", True  # no data: an acknowledgement, a window
    OUT_OF_ORDER = "out-of-order", True  # there is a gap before it
    RETRANSMISSION = "retransmission", True  # no new data
    KEEP_ALIVE = "keep-alive", True  # an octet already acknowledged; Linux uses it as window probe, too
    PROBE = "probe", True  # data for a zero window
    RESET = "reset", True
    NOT_OPEN = "not-open", False  # the connection does not exist (yet)
    NO_ACK = "no-ack", False
    OUT_OF_WINDOW = "out-of-window", False
    OLD_TIMESTAMP = "old-timestamp", False  # PAWS
    OLD_ACK = "old-ack", False  # RFC 5961 section 5
    ACK_OF_UNSENT = "ack-of-unsent", False
    UNSURE_RESET = "unsure-reset", False  # in the window, not at its edge: challenge ACK, RFC 5961 section 3
    UNEXPECTED_SYN = "unexpected-syn", False  # challenge ACK, RFC 5961 section 4

    def __init__(self, text: str, taken: bool) -> None:
        self.text = text
        self.taken = taken
