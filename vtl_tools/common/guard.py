"""The guard: what keeps the host's own network stack off the frames of an interface.

AF_PACKET only copies frames: the host still gets them, and answers, and forwards. An nftables table of the
netdev family drops them behind AF_PACKET's back on the way in, and on the way out all that does not carry
our mark, so that a service is the sole recipient, and sender, that section 2.1 of the paper asks for.

A guard in its *process* form vanishes with the process that raised it ("flags owner", held by the netlink
socket of a libnftables context); in its *kept* form it outlives even kill -9, until vtl-guard clears it.
"""

import ctypes
import os
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, Literal, Self

from vtl_tools.common import privilege
from vtl_tools.common.errors import DeviceError, PermissionNeededError, VTLError

MARK: Final = 0x56544C  # "VTL"
"""SO_MARK of the frames that a guarded interface lets out."""

Form = Literal["process", "kept"]

_KEPT: Final = "vtl_kept_"
_OWNED: Final = "vtl_pid"

_RULES: Final = """
add table netdev {table} {flags}
delete table netdev {table}
add table netdev {table} {flags}
add chain netdev {table} from_guest {{ type filter hook ingress device "{name}" priority -500; policy drop; }}
add rule netdev {table} from_guest counter drop
add chain netdev {table} to_guest {{ type filter hook egress device "{name}" priority -500; policy drop; }}
add rule netdev {table} to_guest meta mark {mark} accept
add rule netdev {table} to_guest counter drop
"""


class _NFT:
    """A libnftables context: one netlink socket, whose closing takes away the tables that it owns."""

    def __init__(self) -> None:
        if not privilege.permitted() >> privilege.NET_ADMIN & 1:
            raise PermissionError  # libnftables would say so too, on our standard error
        lib = _library()
        self._lib = lib
        self._ctx = ctypes.c_void_p(lib.nft_ctx_new(0))
        lib.nft_ctx_buffer_output(self._ctx)
        lib.nft_ctx_buffer_error(self._ctx)

    def run(self, commands: str) -> None:
        """Carry out commands, all or none. Raises OSError or PermissionError."""
        if self._lib.nft_run_cmd_from_buffer(self._ctx, commands.encode()):
            said = self._lib.nft_ctx_get_error_buffer(self._ctx).decode(errors="replace")
            line = next((s for s in said.splitlines() if "Error" in s), said.strip() or "refused")
            kind = PermissionError if "Operation not permitted" in said else OSError
            raise kind(line.partition("Error: ")[2] or line)

    def ask(self, command: str) -> str:
        """Return what a list command prints. As text: the JSON of nft 1.0.6 breaks on owned tables."""
        self.run(command)
        said: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
        return said.decode(errors="replace")

    def close(self) -> None:
        """Close the netlink socket; owned tables go. Idempotent."""
        if self._ctx:
            self._lib.nft_ctx_free(self._ctx)
            self._ctx = ctypes.c_void_p(None)


@cache
def _library() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libnftables.so.1")
    except OSError:
        raise VTLError("guard: libnftables is missing; install the package nftables") from None
    lib.nft_ctx_new.restype = ctypes.c_void_p
    lib.nft_ctx_get_output_buffer.restype = ctypes.c_char_p
    lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return lib


@dataclass(frozen=True, slots=True)
class Found:
    """A guard that stands. pid: of the process that it ends with; 0 for the kept form."""

    name: str
    form: Form
    pid: int
    kept_in: int
    """Frames from the guest that the host's stack did not get."""
    kept_out: int
    """Frames of the host's stack that the guest did not get."""
    table: str


class Guard:
    """A guard on one interface. Raise it before the link is opened, so that there is no gap."""

    def __init__(self, name: str, form: Form = "process") -> None:
        self.name, self.form = name, form
        self._table = f"{_OWNED}{os.getpid()}_" if form == "process" else _KEPT
        self._table += _encode(name)
        self._nft: _NFT | None = None
        self._index = 0

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.down()

    def check(self) -> None:
        """Raise the guard anew where the interface was deleted, which takes a guard along, and came back.

        Linux 6.16 and later do so by themselves. Raises as up() does.
        """
        with suppress(OSError):  # it is still away
            if socket.if_nametoindex(self.name) != self._index:
                self.up()

    def up(self) -> None:
        """Raise the guard.

        Raises DeviceError, PermissionNeededError, or VTLError where libnftables is missing.
        """
        if set(self.name) & set('"*\\'):
            raise DeviceError(f"{self.name}: nft cannot name this interface; give it another name")
        try:
            self._index = socket.if_nametoindex(self.name)
        except OSError:
            raise DeviceError(f"{self.name}: no such network interface; list them with 'ip link'") from None
        flags = "{ flags owner; }" if self.form == "process" else ""
        try:
            self._nft = self._nft or _NFT()
            self._nft.run(_RULES.format(table=self._table, flags=flags, name=self.name, mark=MARK))
        except PermissionError:
            raise PermissionNeededError(
                f"{self.name}: not permitted to raise the guard; run as root or with CAP_NET_ADMIN"
            ) from None
        except OSError as e:
            raise VTLError(
                f"{self.name}: the guard was refused: {e}; needs Linux 5.16 and nft 1.0.1"
            ) from None

    def down(self) -> None:
        """Let go: the process form vanishes, the kept form stays. Idempotent."""
        if self._nft is not None:
            self._nft.close()
            self._nft = None


def standing() -> list[Found]:
    """Return the guards that stand in this network namespace. Raises PermissionNeededError."""
    try:
        nft = _NFT()
        listing = nft.ask("list ruleset netdev")
        nft.close()
    except PermissionError:
        raise PermissionNeededError("guard: not permitted to list; run as root") from None
    found = []
    for table, body in re.findall(r"^table netdev (\S+) \{(.*?)^\}", listing, re.M | re.S):
        match = re.fullmatch(rf"{_OWNED}(\d+)_(.+)|{_KEPT}(.+)", table)
        if not match:
            continue
        chains = dict(re.findall(r"^\tchain (\w+) \{.*?counter packets (\d+)", body, re.M | re.S))
        found.append(
            Found(
                name=_decode(match[2] or match[3]),
                form="kept" if match[3] else "process",
                pid=int(match[1] or 0),
                kept_in=int(chains.get("from_guest", 0)),
                kept_out=int(chains.get("to_guest", 0)),
                table=table,
            )
        )
    return found


def _encode(name: str) -> str:
    """Interfaces are freer in their names than nft tables: other octets become .xx."""
    return "".join(
        chr(c) if (chr(c).isascii() and chr(c).isalnum()) or c == 0x5F else f".{c:02x}"
        for c in os.fsencode(name)
    )


def _decode(name: str) -> str:
    octets = re.sub(rb"\.([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), name.encode())
    return os.fsdecode(octets)


def clear(name: str) -> int:
    """Lift the kept guards of an interface, which need not exist any more; return how many there were.

    Raises VTLError where a guard belongs to a process that lives: end that instead.
    """
    kept = [g for g in standing() if g.name == name and g.form == "kept"]
    nft = _NFT()
    try:
        for guard in kept:
            nft.run(f"delete table netdev {guard.table}")
    except PermissionError:
        raise PermissionNeededError(f"{name}: not permitted to lift the guard; run as root") from None
    except OSError as e:
        raise VTLError(f"{name}: the guard could not be lifted: {e}") from None
    finally:
        nft.close()
    return len(kept)


def carries_default_route(name: str) -> bool:
    """Whether the host reaches the world through this interface, so that a guard would cut it off."""
    routes = []
    for path, column in (("/proc/self/net/route", 0), ("/proc/self/net/ipv6_route", 9)):
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        for fields in (line.split() for line in lines):
            if column == 0:
                default = len(fields) > 7 and fields[1] == "00000000" and fields[7] == "00000000"
            else:
                rejects = len(fields) > 9 and int(fields[8], 16) & 0x200  # RTF_REJECT
                default = len(fields) > 9 and fields[0] == "0" * 32 and fields[1] == "00" and not rejects
            if default:
                routes.append(fields[column])
    return name in routes
