"""Measures how exactly this machine keeps the settings of a wide area, with a vtl-wan of its own.

The process under test has two channels for links, and this process both of their far ends: no privilege is
needed, and no other traffic is in the way.
"""

import math
import os
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host.process import end
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.services.wan.settings import Both, PathSettings

OCTETS: Final = 200
"""Of a frame that measures delay and loss."""
FLOOD_OCTETS: Final = 1000
FLOOD_S: Final = 2.0
LATE_S: Final = 1.0
"""How long after its time a frame is still waited for."""
DELAY_ERROR_S: Final = 1e-3
RATE_ERROR: Final = 0.02
_SIGMAS: Final = 4.0
_STAMP: Final = struct.Struct("=Qd")
_HEAD: Final = NONE + bytes(5) + b"\1\2" + bytes(5) + b"\x88\xb5"
_WAYS: Final = ("there", "back")


@dataclass(frozen=True, slots=True)
class Measured:
    """One quantity of one direction. unit: of all three. kept: whether the setting was kept."""

    way: str
    quantity: str
    wanted: float
    seen: float | None
    unit: str
    kept: bool
    p99_error_us: float | None = None

    def line(self) -> str:
        """Return the measurement as a line."""
        high = "" if self.p99_error_us is None else f"; p99 of the error {self.p99_error_us:,.0f} us"
        verdict = "kept" if self.kept else "NOT KEPT"
        if self.seen is None:
            return f"{self.way}: {self.quantity}: no frame came: {verdict}"
        seen = f"set {self.wanted:.6g}, seen {self.seen:.6g} {self.unit}{high}"
        return f"{self.way}: {self.quantity}: {seen}: {verdict}"


class Ends:
    """The far ends of the two links: what goes in at one comes out at the other."""

    def __init__(self, socks: Sequence[socket.socket]) -> None:
        self._socks = socks

    def send(self, way: int, number: int, octets: int) -> bool:
        """Send a frame with its number and the time. Return whether there was room."""
        frame = _HEAD + _STAMP.pack(number, time.monotonic())
        try:
            self._socks[way].send(frame + bytes(octets + VNET - len(frame)))
        except BlockingIOError:
            return False
        return True

    def receive(self, way: int) -> Iterator[tuple[int, float]]:
        """Yield number and delay, in seconds, of each frame that is there."""
        while True:
            try:
                frame = self._socks[1 - way].recv(1 << 16)
            except BlockingIOError:
                return
            if not frame:
                raise VTLError("verify: the vtl-wan under test ended; run it by hand to see why")
            if len(frame) >= len(_HEAD) + _STAMP.size:
                number, at = _STAMP.unpack_from(frame, len(_HEAD))
                yield number, time.monotonic() - at


@contextmanager
def under_test(program: Sequence[str], words: Sequence[str]) -> Iterator[Ends]:
    """Run a vtl-wan between two channels. Raises VTLError."""
    with tempfile.TemporaryDirectory(prefix="vtl-wan-") as name:
        place = Path(name)
        paths = [place / "there", place / "back"]
        links = [word for path in paths for word in ("--iface", f"channel:{path},server")]
        command = [*program, *links, *words, "--control", str(place / "control"), "--json"]
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        socks: list[socket.socket] = []
        try:
            assert child.stdout is not None
            assert child.stderr is not None
            if b'"ready"' not in child.stdout.readline():
                raise VTLError(f"verify: {child.stderr.read().decode(errors='replace').strip()}")
            for path in paths:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                socks.append(sock)
                sock.connect(str(path))
                sock.setblocking(False)
            yield Ends(socks)
        finally:
            for sock in socks:
                sock.close()
            end(child, 10.0)
            for stream in child.stdout, child.stderr:
                if stream is not None:
                    stream.close()


def measure(
    program: Sequence[str], words: Sequence[str], settings: Both, frames: int, per_second: int
) -> Iterator[Measured]:
    """Yield what was measured of both directions. words: the settings, as options. Raises VTLError."""
    for way, path in enumerate(settings):
        with under_test(program, words) as ends:
            delays = _paced(ends, way, path, frames, per_second)
        yield from _judged(_WAYS[way], path, delays, frames)
        if path.rate_bps:
            with under_test(program, words) as ends:
                seen = _flooded(ends, way, path)
            kept = abs(seen / path.rate_bps - 1) <= RATE_ERROR + path.loss
            yield Measured(_WAYS[way], "rate", path.rate_bps / 1e6, seen / 1e6, "Mbit/s", kept)


def _transmission_s(path: PathSettings, octets: int) -> float:
    return octets * 8 / path.rate_bps if path.rate_bps else 0.0


def _paced(ends: Ends, way: int, path: PathSettings, frames: int, per_second: int) -> dict[int, float]:
    """Send frames evenly, at most at half of the rate; return the delays, in seconds, of those that came."""
    gap_s = max(1 / per_second, 2 * _transmission_s(path, OCTETS))
    delays: dict[int, float] = {}
    due, number = time.monotonic(), 0
    last = due + frames * gap_s + path.delay_s + 8 * path.jitter_s + LATE_S
    while (now := time.monotonic()) < last and len(delays) < frames:
        while number < frames and due <= now and ends.send(way, number, OCTETS):
            number, due = number + 1, due + gap_s
        before = len(delays)
        for seen, delay_s in ends.receive(way):
            delays.setdefault(seen, delay_s)
        if len(delays) == before:
            os.sched_yield()
    return delays


def _flooded(ends: Ends, way: int, path: PathSettings) -> float:
    """Send more than the rate; return the bits a second that came while the bottleneck was busy."""
    gap_s = _transmission_s(path, FLOOD_OCTETS) / 1.5
    began = due = time.monotonic()
    arrivals: list[float] = []
    number = 0
    while (now := time.monotonic()) < began + FLOOD_S + path.delay_s:
        while due <= now < began + FLOOD_S and ends.send(way, number, FLOOD_OCTETS):
            number, due = number + 1, due + gap_s
        arrivals += [time.monotonic() for _ in ends.receive(way)]
    if len(arrivals) < 3:
        return 0.0
    first = len(arrivals) // 4  # the queue has filled
    return (len(arrivals) - 1 - first) * FLOOD_OCTETS * 8 / (arrivals[-1] - arrivals[first])


def _judged(way: str, path: PathSettings, delays: Mapping[int, float], frames: int) -> Iterator[Measured]:
    wanted_s = path.delay_s + _transmission_s(path, OCTETS)
    errors = sorted(delay_s - wanted_s for delay_s in delays.values())
    if errors:
        middle, high = errors[len(errors) // 2], errors[int(len(errors) * 0.99)]
        kept = bool(path.jitter_s) or (abs(middle) < DELAY_ERROR_S / 2 and abs(high) < DELAY_ERROR_S)
        yield Measured(
            way, "delay", wanted_s * 1e3, (wanted_s + middle) * 1e3, "ms", kept, round(high * 1e6, 1)
        )
    else:
        yield Measured(way, "delay", wanted_s * 1e3, None, "ms", kept=False)
    lost, expected = 1 - len(delays) / frames, mean_loss(path)
    runs = 1 / path.to_good if path.to_bad else 1.0
    deviation = math.sqrt(max(expected * (1 - expected), 1e-9) * (2 * runs - 1) / frames)
    yield Measured(way, "loss", expected * 100, lost * 100, "%", abs(lost - expected) <= _SIGMAS * deviation)


def mean_loss(path: PathSettings) -> float:
    """Return the share of frames that are lost on average (Elliott 1963)."""
    if not path.to_bad:
        return path.loss
    bad = path.to_bad / (path.to_bad + path.to_good)
    return bad * path.loss_bad + (1 - bad) * path.loss
