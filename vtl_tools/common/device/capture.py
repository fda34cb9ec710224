"""Capture files, through scapy: the one place that imports it for them, and only when one is opened."""

import contextlib
import logging
import struct
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, Final

from vtl_tools.common.errors import DeviceError

_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
INBOUND: Final = 1  # pcapng's epb_flags
OUTBOUND: Final = 2


@contextlib.contextmanager
def quiet_scapy() -> Iterator[None]:
    """Import scapy in here: without the deprecation warnings of what it imports, nor its own log lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)  # it warns of each damaged record


def _scapy() -> Any:
    with quiet_scapy():
        import scapy.utils
    return scapy.utils


def read_frames(spec: str, path: str) -> Iterator[tuple[float, bytes]]:
    """Yield time in seconds and octets of each Ethernet frame in a pcap or pcapng file, also gzipped.

    Raises DeviceError at once for what is no capture. A file that is cut off ends where it is cut.
    """
    utils = _scapy()
    try:
        reader = utils.RawPcapReader(path)
    except PermissionError as e:
        raise DeviceError(f"{spec}: {path}: {e.strerror}; make it readable") from None
    except OSError as e:
        raise DeviceError(f"{spec}: {path}: {e.strerror}; check the name") from None
    except Exception as e:  # scapy has no base class that all of its errors share
        raise DeviceError(f"{spec}: {path}: {_one_line(e)}; name a pcap or pcapng file") from None
    if getattr(reader, "linktype", _ETHERNET) != _ETHERNET:
        reader.close()
        raise DeviceError(
            f"{spec}: {path}: its frames are not Ethernet (link type {reader.linktype}); capture anew"
        )
    return _frames(reader)


def _frames(reader: Any) -> Iterator[tuple[float, bytes]]:
    nano = 1e9 if getattr(reader, "nano", False) else 1e6
    with reader:
        while True:
            try:
                data, about = reader._read_packet()
                if hasattr(about, "sec"):
                    yield about.sec + about.usec / nano, data
                elif about.linktype == _ETHERNET:
                    ticks = (about.tshigh or 0) << 32 | (about.tslow or 0)
                    yield ticks / about.tsresol, data
            except EOFError:
                return
            except (struct.error, ValueError, ArithmeticError, IndexError, TypeError):
                return  # damaged beyond here


def _one_line(e: object) -> str:
    return " ".join(str(e).split()).rstrip(" !.") or type(e).__name__


class _Captured(bytes):
    """Octets with what scapy's writer looks for on its own packets."""

    sniffed_on: str
    direction: int


class CaptureWriter:
    """A pcapng file that several devices write to, flushed every FLUSH_OCTETS and when closed."""

    FLUSH_OCTETS: Final = 1 << 16

    def __init__(self, spec: str, path: str) -> None:
        try:
            self._writer = _scapy().RawPcapNgWriter(path)
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be written") from None
        self._writer.linktype = _ETHERNET
        self._unflushed = 0
        self._closed = False

    def write(self, interface: str, frames: Iterable[memoryview], direction: int, now: float) -> None:
        """Append Ethernet frames. now: seconds since 1970. interface: by name, described on first use."""
        if self._closed:
            return
        for frame in frames:
            captured = _Captured(frame)
            captured.sniffed_on, captured.direction = interface, direction
            if not self._writer.header_present:
                self._writer.write_header(captured)
            self._writer.write_packet(captured, sec=now, usec=0)
            self._unflushed += len(captured)
        if self._unflushed > self.FLUSH_OCTETS:
            self.flush()

    def flush(self) -> None:
        """Give everything to the system, so that other programs see it."""
        self._unflushed = 0
        if not self._closed:
            self._writer.flush()

    def close(self) -> None:
        """End the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._writer.close()
