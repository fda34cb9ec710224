"""Drops privileges: changes to an unprivileged user, and keeps only the capabilities that are needed."""

import ctypes
import os
import pwd
from collections.abc import Iterable
from functools import cache
from typing import Final, NamedTuple

from vtl_tools.common.errors import PermissionNeededError, SpecError

NET_ADMIN: Final = 12
"""CAP_NET_ADMIN: to raise a guard again, or create a tap again."""
NET_RAW: Final = 13
"""CAP_NET_RAW: to open an AF_PACKET socket again."""

BPF: Final = 39
"""CAP_BPF: to run a loaded program, if the kernel requires it even then."""

USERS: Final = ("vtl", "nobody")
"""Default user of a service that root starts: the first of these that the host has."""

_libc = ctypes.CDLL(None, use_errno=True)
_VERSION_3: Final = 0x20080522
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4


class Account(NamedTuple):
    """The user that a service started by root changes to."""

    name: str
    uid: int
    gid: int


@cache  # a service asks twice, and a directory server of users may be slow
def account(user: str | None) -> Account | None:
    """Return the account that this process should change to. None: no change.

    user: a name, or None for the first of USERS. A service of an ordinary user does not change, and neither
    does one that root runs as root explicitly. Raises SpecError for an unknown user, and
    PermissionNeededError.
    """
    if os.geteuid() != 0:
        if user is not None and user != _own_name():
            raise PermissionNeededError(f"--user: only root's services can run as {user}; leave it out")
        return None
    for name in USERS if user is None else (user,):
        try:
            found = pwd.getpwnam(name)
        except (KeyError, ValueError):
            continue
        return Account(name, found.pw_uid, found.pw_gid) if found.pw_uid else None
    wanted = " or ".join(USERS) if user is None else user
    raise SpecError(f"--user: there is no user {wanted}; name another, or root to keep root's rights")


def _own_name() -> str | None:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return None


def drop_privileges(capabilities: Iterable[int], become: Account | None) -> None:
    """Change to another user, without groups, and keep only these capabilities. Irreversible.

    Raises PermissionNeededError if the kernel refuses, or if verification shows that it had no effect.
    """
    held = sum(1 << c for c in capabilities) & permitted()
    if become is None:
        keep_only(capabilities)
        return
    try:
        os.setgroups([])
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setresgid(become.gid, become.gid, become.gid)
        _drop_bounding(held)  # takes CAP_SETPCAP, and the groups took CAP_SETGID
        os.setresuid(become.uid, become.uid, become.uid)
        _libc.prctl(_PR_SET_KEEPCAPS, 0, 0, 0, 0)
    except OSError as e:
        raise PermissionNeededError(
            f"--user: cannot become {become.name}: {e.strerror}; name another, or root to stay root"
        ) from None
    keep_only(capabilities)
    ids = {*os.getresuid(), *os.getresgid()}
    if ids != {become.uid, become.gid} or os.getgroups() or permitted() != held:
        raise PermissionNeededError(f"--user: the change to {become.name} could be undone; use --user root")


def keep_only(capabilities: Iterable[int]) -> None:
    """Keep only these capabilities, irreversibly, also across exec (capabilities(7))."""
    held = sum(1 << c for c in capabilities) & permitted()
    _drop_bounding(held)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    low, high = held & 0xFFFFFFFF, held >> 32
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)  # effective, permitted, inheritable
    if _libc.capset(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _drop_bounding(held: int) -> None:
    """Narrow the bounding set. If that is not permitted (EPERM), no_new_privs has the same effect."""
    for capability in range(64):
        if not held >> capability & 1 and _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            return  # it is not permitted for the others either, or this kernel has no more (EINVAL)


def permitted() -> int:
    """Return the permitted capabilities of this process as a bit mask."""
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _libc.capget(header, data):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(data[1] | data[4] << 32)
