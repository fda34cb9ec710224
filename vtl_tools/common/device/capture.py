"""Reader of capture files. Uses scapy, imported only when a file is opened."""

import contextlib
import gzip
import logging
import struct
import warnings
from collections.abc import Iterator
from typing import Any, Final, Self

from vtl_tools.common.errors import DeviceError

_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
_GZIP: Final = b"\x1f\x8b"


@contextlib.contextmanager
def quiet_scapy() -> Iterator[None]:
    """Suppress scapy's log lines and the deprecation warnings of its imports, for an import of scapy."""
    for name in "scapy.runtime", "scapy.loading":  # they report damaged records and a missing libpcap
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _scapy() -> Any:
    with quiet_scapy():
        import scapy.utils
    return scapy.utils


class CaptureReader:
    """Iterates over the frames of a pcap or pcapng file, perhaps gzipped: (time in seconds, Ethernet frame).

    Raises DeviceError at once if the file is no capture. A damaged file ends at the damage.
    """

    def __init__(self, spec: str, path: str) -> None:
        utils = _scapy()
        try:
            self._file = open(path, "rb")  # noqa: PTH123, SIM115 - scapy leaves it open when it gives up
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be read") from None
        try:
            is_zipped = self._file.peek(2)[:2] == _GZIP  # scapy before 2.6 looks only if it opens the file
            self._reader = utils.RawPcapReader(gzip.GzipFile(fileobj=self._file) if is_zipped else self._file)
        except Exception as e:  # scapy's errors have no common base
            self.close()
            raise DeviceError(f"{spec}: {path}: {_one_line(e)}; name a pcap or pcapng file") from None
        self._nano = 1e9 if getattr(self._reader, "nano", False) else 1e6
        kind = getattr(self._reader, "linktype", _ETHERNET)
        if kind != _ETHERNET:
            self.close()
            raise DeviceError(f"{spec}: {path}: its frames are not Ethernet (link type {kind}); name another")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[float, bytes]:
        while not self._file.closed:
            try:
                data, about = self._reader._read_packet()
                if hasattr(about, "sec"):
                    return about.sec + about.usec / self._nano, data
                if about.linktype == _ETHERNET:
                    return ((about.tshigh or 0) << 32 | (about.tslow or 0)) / about.tsresol, data
            except (EOFError, OSError, struct.error, ValueError, ArithmeticError, LookupError, TypeError):
                self.close()
        raise StopIteration

    def close(self) -> None:
        """Close the file. Iteration then ends. Idempotent."""
        self._file.close()


def _one_line(e: object) -> str:
    return " ".join(str(e).split()).rstrip(" !.") or type(e).__name__
