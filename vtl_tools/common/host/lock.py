"""The lock of an interface: one service per interface, within a network namespace.

The lock is an empty nftables table with `flags owner`. The kernel creates it for one netlink socket, knows it
in this network namespace only, and removes it with the socket, however its process ends. Creation takes
CAP_NET_ADMIN, so that no other user of the host can block a service. The table's name contains the
interface's index, which a rename does not change.
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
"""The directions of a VM's frames. Each has a lock of its own: two half-duplex bridges share an interface."""


class Holder(NamedTuple):
    """The holder of a lock. keeps: whether it keeps a guard there, and would raise it again."""

    service: str = ""
    pid: int = 0
    keeps: bool = False


class TakenError(VTLError):
    """Another service has the interface."""


class Lock:
    """Held from take() to release(). directions: the directions to lock; None: shared, with other uplinks."""

    def __init__(self, service: str, directions: Sequence[str] | None = BOTH, *, keeps: bool = False) -> None:
        self._holder = f"{_KEEPER if keeps else _BY}{encode(service)}_{os.getpid()}"
        self._directions = directions
        self._nft: NFT | None = None

    def take(self, index: int, name: str) -> None:
        """Take the lock of interface `index`, and release a previously held one.

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
                f"{name}: {other.service} (process {other.pid}) already serves this interface; stop it first"
            )

    def _take(self, nft: NFT, index: int) -> Holder | None:
        """Create the tables, all or none. Return the other holder if the interface is taken."""
        vm, uplink = rf"{_VM}{index}_\w+", rf"{_UPLINK}{index}_\S+"
        # A shared lock has another name. Each kind is created before the other kind is looked for: two
        # services that start at once may both be refused, but never both succeed.
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
        except OSError:  # EPERM: another socket owns one
            if other := _holder_of(nft, "|".join(tables)):
                return other
            raise
        return _holder_of(nft, others)

    def release(self) -> None:
        """Release the lock. Idempotent."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None


def holders() -> dict[int, Holder]:
    """Return the service and process that serves each VM's interface, by the interface's index.

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
    """Return the holder of the first table of such a name. Raises OSError."""
    tables = re.findall(rf"^table netdev ({pattern})$", nft.ask("list tables netdev"), re.M)
    for table in tables:
        try:
            listing = nft.ask(f"list table netdev {table}")
        except OSError:  # it was removed meanwhile
            continue
        if found := re.search(rf"^\tchain ({_KEEPER}|{_BY})(\S+)_(\d+) \{{", listing, re.M):
            return Holder(decode(found[2]), int(found[3]), found[1] == _KEEPER)
    return None
