"""nftables through libnftables, called by ctypes, so that our process owns the netlink socket of its tables.

The command `nft` would close that socket when it exits, and the kernel would remove the table with it.
"""

import ctypes
import os
import re
from functools import cache

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import privilege


class NFT:
    """A libnftables context: one netlink socket. Closing it removes the tables that it owns.

    Raises PermissionError without CAP_NET_ADMIN, VTLError if libnftables is missing.
    """

    def __init__(self) -> None:
        if not privilege.permitted() >> privilege.NET_ADMIN & 1:
            raise PermissionError  # libnftables would print this on our standard error, too
        lib = _library()
        self._lib = lib
        self._ctx = ctypes.c_void_p(lib.nft_ctx_new(0))
        lib.nft_ctx_buffer_output(self._ctx)
        lib.nft_ctx_buffer_error(self._ctx)

    def run(self, commands: str) -> None:
        """Execute commands, all or none. Raises OSError or PermissionError."""
        if self._lib.nft_run_cmd_from_buffer(self._ctx, commands.encode()):
            said = self._lib.nft_ctx_get_error_buffer(self._ctx).decode(errors="replace")
            line = next((s for s in said.splitlines() if "Error" in s), said.strip() or "refused")
            kind = PermissionError if "Operation not permitted" in said else OSError
            raise kind(line.partition("Error: ")[2] or line)

    def ask(self, command: str) -> str:
        """Return the output of a list command, as text: the JSON of nft 1.0.6 breaks on owned tables."""
        self.run(command)
        said: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
        return said.decode(errors="replace")

    def close(self) -> None:
        """Close the netlink socket; owned tables vanish. Idempotent."""
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
    """Return an interface's name in the form that nft accepts: other octets become .xx."""
    return "".join(
        chr(c) if (chr(c).isascii() and chr(c).isalnum()) or c == 0x5F else f".{c:02x}"
        for c in os.fsencode(name)
    )


def decode(name: str) -> str:
    """Return the name that was given to encode()."""
    octets = re.sub(rb"\.([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), name.encode())
    return os.fsdecode(octets)
