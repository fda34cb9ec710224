"""DNS over TCP: framing of messages by their lengths (RFC 1035 section 4.2.2, RFC 7766)."""

from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.dns_message import QUERY_MAX

HEADER_SIZE: Final = 12
_LENGTH: Final = 2


class DNSFramer:
    """Splits the octets of one connection into messages; several may be pending (RFC 7766 6.2.1.1)."""

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def kept(self) -> int:
        """Octets buffered of an incomplete message."""
        return len(self._held)

    def receive(self, octets: bytes | bytearray | memoryview) -> list[bytes]:
        """Return the messages that are now complete. Buffers at most QUERY_MAX octets between calls.

        Raises Malformed for a length that no query has; the caller should close the connection.
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
    """Return a message with its length in front."""
    return len(message).to_bytes(_LENGTH, "big") + message
