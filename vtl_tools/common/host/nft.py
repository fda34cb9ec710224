"""nftables by way of libnftables, called by ctypes: the netlink socket that owns a table is in our process.

`nft` run as a command would close that socket at once, and the kernel would take the table along.
"""

import ctypes
import os
import re
from functools import cache

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import privilege


class NFT:
    """A libnftables context: one netlink socket, whose closing takes away the tables that it owns.

    Raises PermissionError without CAP_NET_ADMIN, VTLError where libnftables is missing.
    """

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


def encode(name: str) -> str:
    """Return a name as nft takes it: interfaces are freer in theirs, other octets become .xx."""
    return "".join(
        chr(c) if (chr(c).isascii() and chr(c).isalnum()) or c == 0x5F else f".{c:02x}"
        for c in os.fsencode(name)
    )


def decode(name: str) -> str:
    """Return the name that encode() was given."""
    octets = re.sub(rb"\.([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), name.encode())
    return os.fsdecode(octets)
