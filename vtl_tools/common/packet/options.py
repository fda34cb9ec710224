"""The options of TCP and IPv4, which have one form."""

from collections.abc import Iterator


def walk_options(buf: bytes | bytearray | memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Iterate over IPv4 or TCP options as (kind, offset in buf, size in octets).

    No-operations are skipped. Stops at the end-of-list option, at end, and at an invalid length, after which
    nothing has a meaning.
    """
    while at < end:
        kind = buf[at]
        if kind == 0:
            return
        if kind == 1:
            at += 1
            continue
        if at + 2 > end:
            return
        length = buf[at + 1]
        if length < 2 or at + length > end:
            return
        yield kind, at, length
        at += length
