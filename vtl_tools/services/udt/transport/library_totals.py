"""The totals that libudt and libsrt, its descendant, keep of a connection."""

import ctypes


class LibraryTotals(ctypes.Structure):
    """The beginning of struct CPerfMon of udt.h, and of struct CBytePerfMon of srt.h."""

    _fields_ = [
        ("time_ms", ctypes.c_int64),
        ("sent", ctypes.c_int64),
        ("received", ctypes.c_int64),
        ("send_loss", ctypes.c_int),
        ("receive_loss", ctypes.c_int),
        ("sent_again", ctypes.c_int),
        ("acks_sent", ctypes.c_int),
        ("acks_received", ctypes.c_int),
        ("naks_sent", ctypes.c_int),
        ("naks_received", ctypes.c_int),
        ("_rest", ctypes.c_char * 1024),  # room for what the libraries write behind
    ]
