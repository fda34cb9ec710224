"""A capture that a service writes: frames go to a queue, and another process writes the file."""

import errno
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from vtl_tools.common.device.pcapng import (
    INBOUND,
    description,
    descriptions,
    file_header,
    put_frames,
    whole_blocks,
)
from vtl_tools.common.errors import DeviceError
from vtl_tools.common.host.record_file import CaptureFiles
from vtl_tools.common.host.scribe import Scribe
from vtl_tools.common.packet.vnet import VNET

log = logging.getLogger(__name__)

QUEUE: Final = 1 << 24
"""Octets of frames that wait for the disk, in each process of the service."""
GUEST_SIZE: Final = 64 << 20
GUEST_FILES: Final = 4
"""Limits of a capture of which a guest decides how fast it grows."""
_LINKS_MAX: Final = 8192
"""Links of one capture; the frames of further ones are not recorded."""


class CaptureLimits(NamedTuple):
    """The values of --pcap-size, in octets, --pcap-files and --pcap-overwrite. 0: no limit."""

    size: int = 0
    files: int = 0
    overwrite: bool = False

    def of_guest(self) -> "CaptureLimits":
        """Return the limits of a capture that a guest decides about, unless others were given."""
        return CaptureLimits(self.size or GUEST_SIZE, self.files or GUEST_FILES, self.overwrite)


class Recording:
    """A capture of some links. option: what it is for, in messages. producers: processes that write to it.

    recorded, unrecorded: frames that were taken, and those that were not, as the disk was full or too slow.
    Raises DeviceError if the file cannot be opened, or if one is there already.
    """

    def __init__(
        self, option: str, path: Path, links: Sequence[str], limits: CaptureLimits, producers: int = 1
    ) -> None:
        self.option = option
        self.recorded = self.unrecorded = 0
        try:
            files = CaptureFiles(
                path, file_header(links), whole_blocks, lasting=descriptions,
                size_max=limits.size, files_max=limits.files, overwrite=limits.overwrite,
            )  # fmt: skip
        except FileExistsError:
            remedy = "give --pcap-overwrite" if option.startswith("--") else "remove it"
            raise DeviceError(
                f"{option}: {path}: there is a file already; name another, or {remedy}"
            ) from None
        except OSError as e:
            remedy = "start its reader first" if e.errno == errno.ENXIO else "name a file that can be written"
            raise DeviceError(f"{option}: {path}: {e.strerror}; {remedy}") from None
        self._scribe = Scribe(files, QUEUE, producers)
        self._scribe.status = self.status
        self._numbers = {name: number for number, name in enumerate(links)}

    def write_as(self, name: str, frames: Sequence[memoryview], direction: int, now: float) -> None:
        """Record frames of a link by its name, which may be one that comes while the service runs.

        To be called only in a service of one process.
        """
        number = self._numbers.get(name)
        if number is None:
            if len(self._numbers) >= _LINKS_MAX or not self._scribe.put(description(name)):
                self.unrecorded += len(frames)
                return
            number = self._numbers[name] = len(self._numbers)
        self.write(number, frames, direction, now)

    def write(self, link: int, frames: Iterable[memoryview], direction: int, now: float) -> None:
        """Record Ethernet frames of a link, by its number, unless there is no room. now: s since 1970."""
        queue = self._scribe.queue
        if queue is None:
            return
        recorded, lost = put_frames(queue, link, frames, direction, now)
        self.recorded += recorded
        if lost:
            if self._scribe.is_writing:
                log.warning(
                    "%s: frames come faster than the disk takes them; some are not recorded", self.option
                )
            self.unrecorded += lost

    def keep(self, frame: memoryview, now: float) -> None:
        """Record one frame of the first link, with its virtio_net_hdr, as received now."""
        self.write(0, (frame[VNET:],), INBOUND, time.time())

    def status(self) -> dict[str, object]:
        """Return the recording's part of a status."""
        return {
            "option": self.option,
            "file": self._scribe.name,
            "recording": self._scribe.is_writing,
            "recorded": self.recorded,
            "unrecorded": self.unrecorded,
        }

    def close(self) -> None:
        """Write the rest, and close the file. Idempotent."""
        self._scribe.close()
