"""mount(2), which the standard library of Python lacks."""

import ctypes

from vtl_tools.common.selftest.namespaces import call

MS_BIND = 0x1000
MS_REC_PRIVATE = 0x4000 | 0x40000


def mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    """Mount, in the mount namespace of the calling thread. data: options of the file system."""
    kind_octets = None if kind is None else kind.encode()
    call("mount", source.encode(), target.encode(), kind_octets, ctypes.c_ulong(flags), data.encode())
