"""The lock of an interface: one service in the way of it, in its network namespace.

A table of nftables with `flags owner` and nothing in it. The kernel makes it for one netlink socket alone,
knows it in this network namespace only, and removes it with the socket, however its process ends. To make one
takes CAP_NET_ADMIN, so that no other user of the host can keep a service out. The table's name has the
interface's index, which another name does not change.
"""

import os
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from vtl_tools.common.errors import PermissionNeededError, VTLError
from vtl_tools.common.host.nft import NFT, decode, encode

_VM: Final = "vtl_vm_"
_UPLINK: Final = "vtl_uplink_"
_BY: Final = "by_"
_KEEPER: Final = "kept_by_"

FROM, TO = "from", "to"
BOTH: Final = (FROM, TO)
"""The directions of a VM's frames, each of which one service may be in the way of: two half-duplex bridges
share an interface."""


class Holder(NamedTuple):
    """Who has a lock. keeps: whether it keeps a guard there, and would raise it anew."""

    service: str = ""
    pid: int = 0
    keeps: bool = False


class TakenError(VTLError):
    """Another service has the interface."""


class Lock:
    """Held from take() to release(). directions: to be in the way of; None: shared, with other uplinks."""

    def __init__(self, service: str, directions: Sequence[str] | None = BOTH, *, keeps: bool = False) -> None:
        self._holder = f"{_KEEPER if keeps else _BY}{encode(service)}_{os.getpid()}"
        self._directions = directions
        self._nft: NFT | None = None

    def take(self, index: int, name: str) -> None:
        """Take the lock of interface `index`, in the place of one that is held.

        Raises TakenError, PermissionNeededError.
        """
        self.release()
        try:
            self._nft = NFT()
            other = self._take(self._nft, index)
        except PermissionError:
            self.release()
            raise PermissionNeededError(
                f"{name}: not permitted to lock the interface; run as root or with CAP_NET_ADMIN"
            ) from None
        except OSError as e:
            self.release()
            raise VTLError(f"{name}: cannot be locked: {e}; needs Linux 5.16 and nft 1.0.1") from None
        if other is not None:
            self.release()
            raise TakenError(
                f"{name}: {other.service} (process {other.pid}) is in the way of it already; stop that first"
            )

    def _take(self, nft: NFT, index: int) -> Holder | None:
        """Make the tables, all or none; return who has the interface already."""
        vm, uplink = rf"{_VM}{index}_\w+", rf"{_UPLINK}{index}_\S+"
        # A shared one has a name of its own. Each is made before it is looked whether the other kind is
        # there: two services that come at once may both be refused, and never both get it.
        if self._directions is None:
            tables, others = [f"{_UPLINK}{index}_{os.getpid()}.{os.urandom(4).hex()}"], vm
        else:
            tables, others = [f"{_VM}{index}_{direction}" for direction in self._directions], uplink
        try:
            nft.run(
                "\n".join(
                    f"create table netdev {table} {{ flags owner; }}\n"
                    f"create chain netdev {table} {self._holder}"
                    for table in tables
                )
            )
        except OSError:  # EPERM: one is another socket's
            if other := _holder_of(nft, "|".join(tables)):
                return other
            raise
        return _holder_of(nft, others)

    def release(self) -> None:
        """Let go. Idempotent."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None


def holders() -> dict[int, Holder]:
    """Return the service that a VM's interface has in its way, and its process, by the interface's index.

    Raises PermissionError.
    """
    nft = NFT()
    try:
        indices = re.findall(rf"^table netdev {_VM}(\d+)_", nft.ask("list tables netdev"), re.M)
        found = {int(index): _holder_of(nft, rf"{_VM}{index}_\w+") for index in set(indices)}
    finally:
        nft.close()
    return {index: holder for index, holder in found.items() if holder is not None}


def _holder_of(nft: NFT, pattern: str) -> Holder | None:
    """Return who holds the first of the tables of such a name. Raises OSError."""
    tables = re.findall(rf"^table netdev ({pattern})$", nft.ask("list tables netdev"), re.M)
    for table in tables:
        try:
            listing = nft.ask(f"list table netdev {table}")
        except OSError:  # it has gone meanwhile
            continue
        if found := re.search(rf"^\tchain ({_KEEPER}|{_BY})(\S+)_(\d+) \{{", listing, re.M):
            return Holder(decode(found[2]), int(found[3]), found[1] == _KEEPER)
    return None
