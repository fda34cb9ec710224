"""DNS over TCP: messages behind their lengths (RFC 1035 section 4.2.2, RFC 7766)."""

from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.dns_message import QUERY_MAX

HEADER_SIZE: Final = 12
_LENGTH: Final = 2


class DNSFramer:
    """Splits what one connection brings into messages; many may be under way at once (RFC 7766 6.2.1.1)."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def kept(self) -> int:
        """Octets of a message that is not whole yet."""
        return len(self._held)

    def receive(self, octets: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the messages that are whole now. At most QUERY_MAX octets are kept between calls.

        Malformed: a length that no query has; the connection should be closed.
        """
        held, messages, at = self._held, [], 0
        held += octets
        while at + _LENGTH <= len(held):
            size = held[at] << 8 | held[at + 1]
            if not HEADER_SIZE <= size <= QUERY_MAX:
                held.clear()
                raise Malformed("dns.length", at)
            if at + _LENGTH + size > len(held):
                break
            messages.append(bytes(held[at + _LENGTH : at + _LENGTH + size]))
            at += _LENGTH + size
        del held[:at]
        return messages


def framed(message: bytes) -> bytes:
    """Return a message behind its length."""
    return len(message).to_bytes(_LENGTH, "big") + message
