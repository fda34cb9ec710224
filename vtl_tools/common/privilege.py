"""As little privilege as possible: give up what the kernel granted and the service no longer needs."""

import ctypes
import os
from collections.abc import Iterable
from typing import Final

DAC_OVERRIDE: Final = 1
"""CAP_DAC_OVERRIDE: to connect again to another user's unix socket."""
NET_ADMIN: Final = 12
"""CAP_NET_ADMIN: to raise a guard, or make a tap, anew."""
NET_RAW: Final = 13
"""CAP_NET_RAW: to open an AF_PACKET socket anew."""

BPF: Final = 39
"""CAP_BPF: to run a program that is loaded already, where the kernel asks for it even then."""

_libc = ctypes.CDLL(None, use_errno=True)
_VERSION_3: Final = 0x20080522
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


def keep_only(capabilities: Iterable[int]) -> None:
    """Keep of this process's capabilities only these, for good, also across exec (capabilities(7))."""
    held = sum(1 << c for c in capabilities) & permitted()
    # EPERM or EINVAL: no right to narrow the bounding set; the steps below do without.
    for capability in range(64):
        if not held >> capability & 1:
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    low, high = held & 0xFFFFFFFF, held >> 32
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def permitted() -> int:
    """Return the capabilities that this process may use, a bit each."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(data[1] | data[4] << 32)
