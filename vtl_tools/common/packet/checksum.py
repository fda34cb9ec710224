"""The Internet checksum (RFC 1071), its incremental update (RFC 1624), and pseudo-headers.

The checksum field of a frame has one of two forms. A *full* checksum is the complement of the sum, as the
RFCs define it. A *partial* checksum, in a frame whose virtio_net_hdr says NEEDS_CSUM, is the sum of the
pseudo-header alone, not complemented: the kernel or the card adds the rest.
"""

from typing import Final

_MAX: Final = 0xFFFF


def ones_sum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """Return the 16-bit ones' complement sum of data, not complemented. An odd last octet counts as high.

    initial: a sum of any size to start from. The result is 0 only if every octet and initial are 0. Any other
    input gives 1..0xFFFF, as addition with end-around carry does.
    """
    # 2**16 is 1 modulo 65535, so one big number's remainder is the folded sum of its 16-bit digits:
    # 3 us for 1,460 octets, a fifth of what summing a memoryview cast to 'H' takes.
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    total += initial
    return total % _MAX or (_MAX if total else 0)


def fold(total: int) -> int:
    """Fold a sum of a few 16-bit values to 16 bits by end-around carry."""
    while total > _MAX:
        total = (total & _MAX) + (total >> 16)
    return total


def checksum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """Return the full checksum of data: the complement of ones_sum."""
    return ~ones_sum(data, initial) & _MAX


def update(full: int, old: int, new: int) -> int:
    """Return a full checksum after a change of the covered data (RFC 1624 equation 3).

    old, new: the 16-bit words, or the ones_sum of several, before and after.
    """
    return ~fold((~full & _MAX) + (~old & _MAX) + new) & _MAX


def update_partial(partial: int, old: int, new: int) -> int:
    """Return a partial checksum after a change of the pseudo-header. Like update(), but not complemented."""
    return fold(partial + (~old & _MAX) + new)


def pseudo_sum(src: bytes, dst: bytes, protocol: int, length: int) -> int:
    """Return the sum of the pseudo-header, which is the partial checksum (RFC 9293 3.1, RFC 8200 8.1).

    src, dst: 4 or 16 octets each. length: transport header and payload in octets.
    """
    return fold(ones_sum(src + dst) + protocol + (length >> 16) + (length & _MAX))
