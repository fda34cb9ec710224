"""The limit for open files: a descriptor for each connection, and some for everything else."""

import resource
from typing import Final

_RESERVED: Final = 2048
"""Descriptors for everything but connections, above all look-ups, of which 1024 may be under way."""
_UNLIMITED: Final = 1 << 20


def raise_limit(reserved: int = _RESERVED) -> int:
    """Raise the soft limit of this process to the hard one; return how many connections that allows.

    reserved: descriptors for everything else; fewer, if they would be more than half of all.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most == resource.RLIM_INFINITY:
        return _UNLIMITED
    return max(most - reserved, most // 2)
