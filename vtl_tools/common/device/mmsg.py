"""recvmmsg and sendmmsg: many frames per system call, and no Python per frame.

The arrays of struct mmsghdr and struct iovec (64-bit Linux) are ctypes arrays for the kernel and
memoryviews of 64-bit words for us, so that one strided slice reads or writes a whole column.
"""

import ctypes
import mmap
from array import array
from collections.abc import Iterable
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

# Without argtypes a call is 0.5 us quicker, but an address must be passed as a c_void_p.
recvmmsg = _libc.recvmmsg
"""recvmmsg(fd, msgs: c_void_p, count, flags, None): number of messages received, or -1; see errno()."""
sendmmsg = _libc.sendmmsg
"""sendmmsg(fd, msgs: c_void_p, count, flags): number of messages sent, or -1; see errno()."""
errno = ctypes.get_errno
pointer = ctypes.c_void_p

MSGHDR_SIZE: Final = 64
"""sizeof(struct mmsghdr) where pointers are 64 bits wide."""

# Words of one struct mmsghdr.
NAME: Final = 0
NAMELEN: Final = 1
IOV: Final = 2
IOVLEN: Final = 3
CONTROL: Final = 4
CONTROLLEN: Final = 5
FLAGS: Final = 6  # an int, and four octets of padding that stay zero
LEN: Final = 7  # msg_len, an unsigned int, and its padding
WORDS: Final = 8

MSG_TRUNC: Final = 0x20
MSG_DONTWAIT: Final = 0x40
MSG_NOSIGNAL: Final = 0x4000

if ctypes.sizeof(ctypes.c_void_p) != 8:
    raise ImportError("vtl_tools needs a 64-bit system")


def room(octets: int) -> mmap.mmap:
    """Return zeroed memory for messages. It takes a page only when something is written there."""
    return mmap.mmap(-1, octets, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def words(count: int) -> tuple[int, memoryview]:
    """Return the address of, and a view of, `count` zeroed 64-bit words that live as long as the view."""
    block = (ctypes.c_uint64 * count)()
    return ctypes.addressof(block), memoryview(block).cast("B").cast("Q")


def column(values: Iterable[int]) -> memoryview:
    """Return 64-bit words that can be assigned to a strided slice."""
    return memoryview(array("Q", values))
