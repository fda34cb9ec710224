"""Common code of links with one message per frame: batches in by recvmmsg and out by sendmmsg."""

import ctypes
import errno
import os
from typing import Final

from vtl_tools.common.device import mmsg
from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.packet.vnet import VNET

GONE: Final = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EPIPE,
        errno.ENOTCONN,
        errno.ENOENT,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
    )
)
"""Errors caused by the link or the peer, not by the frame."""

NAME_SIZE: Final = 32
"""Octets stored of a sender's address: a struct sockaddr_in6, padded with zeros."""


class Inbox:
    """Receives messages into a batch's slots, `at` octets after the start of a frame's virtio_net_hdr.

    minimum: octets of the shortest message that is a frame.
    names: the senders' addresses, NAME_SIZE octets each, if `named`.
    """

    def __init__(self, batch: Batch, at: int, minimum: int, *, named: bool = False) -> None:
        self._batch, self._at, self._minimum = batch, at, minimum
        self._address, self._msgs = mmsg.words(mmsg.WORDS * SLOTS)
        self._msgs[:] = batch.msgs
        iov_address, self._iov = mmsg.words(2 * SLOTS)
        batch.clear()
        batch.count = SLOTS
        self._iov[0::2] = mmsg.column(start + at for start in batch.addresses)
        self._iov[1::2] = mmsg.column([FRAME_MAX - at] * SLOTS)
        batch.clear()
        self._msgs[mmsg.IOV :: mmsg.WORDS] = mmsg.column(iov_address + 16 * i for i in range(SLOTS))
        names_address, names = mmsg.words(NAME_SIZE // 8 * SLOTS)
        self.names = names.cast("B")
        self._name_sizes = mmsg.column([NAME_SIZE if named else 0] * SLOTS)
        if named:
            starts = (names_address + NAME_SIZE * i for i in range(SLOTS))
            self._msgs[mmsg.NAME :: mmsg.WORDS] = mmsg.column(starts)

    def receive(self, fd: int) -> dict[int, Drop]:
        """Fill the batch with the waiting messages.

        Return the indices of messages that are no frames, with reason.
        Raises OSError, except when nothing waits.
        """
        batch, msgs = self._batch, self._msgs
        batch.clear()
        msgs[mmsg.NAMELEN :: mmsg.WORDS] = self._name_sizes
        n = mmsg.recvmmsg(fd, mmsg.pointer(self._address), SLOTS, mmsg.MSG_DONTWAIT, None)
        if n < 0:
            code = mmsg.errno()
            if code in (errno.EAGAIN, errno.EINTR):
                return {}
            raise OSError(code, os.strerror(code))
        batch.count = n
        lengths = msgs[mmsg.LEN : mmsg.WORDS * n : mmsg.WORDS].tolist()
        batch.lengths[:] = mmsg.column([length + self._at for length in lengths])
        bad = {}
        if n and min(lengths) < self._minimum:
            bad.update({i: Drop.RUNT for i, length in enumerate(lengths) if length < self._minimum})
        flags = msgs[mmsg.FLAGS : mmsg.WORDS * n : mmsg.WORDS].tolist()
        if any(flags):
            bad.update({i: Drop.TOO_BIG for i, flag in enumerate(flags) if flag & mmsg.MSG_TRUNC})
        return bad


def drop_frames(device: Device, batch: Batch, bad: dict[int, Drop]) -> None:
    """Remove the frames at these indices from a batch, and count them."""
    if bad:
        device.drops.update(bad.values())
        batch.pick(batch, [i for i in range(batch.count) if i not in bad])


class Outbox:
    """Sends frames without their first `skip` octets, each after `prefix`, to `name` (a struct sockaddr)."""

    def __init__(self, skip: int, prefix: bytes = b"", name: bytes = b"") -> None:
        self._skip = skip
        self._prefix = ctypes.create_string_buffer(prefix, len(prefix))  # the kernel reads both:
        self._name = ctypes.create_string_buffer(name, len(name))  # they live as long as the arrays
        self._address, msgs = mmsg.words(mmsg.WORDS * SLOTS)
        self._parts = parts = 2 if prefix else 1
        iov_address, self._iov = mmsg.words(2 * parts * SLOTS)
        if prefix:
            self._iov[0::4] = mmsg.column([ctypes.addressof(self._prefix)] * SLOTS)
            self._iov[1::4] = mmsg.column([len(prefix)] * SLOTS)
        msgs[mmsg.IOV :: mmsg.WORDS] = mmsg.column(iov_address + 16 * parts * i for i in range(SLOTS))
        msgs[mmsg.IOVLEN :: mmsg.WORDS] = mmsg.column([parts] * SLOTS)
        if name:
            msgs[mmsg.NAME :: mmsg.WORDS] = mmsg.column([ctypes.addressof(self._name)] * SLOTS)
            msgs[mmsg.NAMELEN :: mmsg.WORDS] = mmsg.column([len(name)] * SLOTS)
        self._msgs = msgs

    def aim(self, name: bytes) -> None:
        """Send to another address from now on, one of the same family."""
        self._name.raw = name

    def send(self, device: Device, fd: int, batch: Batch) -> int:
        """Send a batch of at most SLOTS frames, each longer than skip. See send_messages()."""
        skip, step, end = self._skip, 2 * self._parts, 2 * self._parts * batch.count
        self._iov[step - 2 : end : step] = mmsg.column(
            [address + skip for address in batch.addresses.tolist()]
        )
        self._iov[step - 1 : end : step] = mmsg.column([length - skip for length in batch.lengths.tolist()])
        return send_messages(device, fd, batch, self._address)


def send_messages(device: Device, fd: int, batch: Batch, address: int) -> int:
    """Send the messages at address, one for each frame of a batch. Return how many were taken.

    The rest is counted. If the peer is gone, the device is down afterwards: see device.up.
    """
    count, done, lost, lost_octets = batch.count, 0, 0, 0
    flags = mmsg.MSG_DONTWAIT | mmsg.MSG_NOSIGNAL
    while done < count:
        n = mmsg.sendmmsg(fd, mmsg.pointer(address + done * mmsg.MSGHDR_SIZE), count - done, flags)
        if n > 0:
            done += n
            continue
        code = mmsg.errno()
        if code == errno.EINTR:
            continue
        if code in (errno.EAGAIN, errno.ENOBUFS):
            reason, bad = Drop.QUEUE_FULL, count - done
        elif code in GONE:
            device.went_down(os.strerror(code))
            reason, bad = Drop.LINK_DOWN, count - done
        else:  # one frame is the cause, not the link: continue after it
            reason, bad = Drop.TOO_BIG if code == errno.EMSGSIZE else Drop.REFUSED, 1
        device.drops[reason] += bad
        lost_octets += sum(len(batch[i]) for i in range(done, done + bad))
        lost += bad
        done += bad
    return device.sent(batch, lost, lost_octets - lost * VNET)
