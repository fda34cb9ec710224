"""A connection to a gRPC server over HTTP/2, without I/O. The library h2 speaks HTTP/2.

A message is prefixed by an octet that tells of compression, of which there is none, and by its length.
"""

from typing import Final, NamedTuple

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from vtl_tools.common.errors import Malformed

MESSAGE_MAX: Final = 64 << 20
"""Octets of a message that is received: a table of a hundred thousand routes comes as one."""
_PREFIX: Final = 5


class GrpcMessage(NamedTuple):
    """A message that came on a call."""

    call: int
    octets: bytearray


class GrpcEnd(NamedTuple):
    """The server ended a call. why: its words, of an error; "": there was none."""

    call: int
    why: str


class GrpcConnection:
    """The client's end. Octets that are to be sent are in `outbox`."""

    def __init__(self, authority: str) -> None:
        self._authority = authority.encode()
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=True, header_encoding=None)
        )
        self._partial: dict[int, bytearray] = {}
        self.outbox = bytearray()
        self._h2.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        self.outbox += self._h2.data_to_send() or b""

    def call(self, method: str, message: bytes | None, *, more: bool = False) -> int:
        """Begin a call, and return its number. more: other messages follow."""
        call = self._h2.get_next_available_stream_id()
        head = (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", method.encode()),
            (b":authority", self._authority), (b"te", b"trailers"), (b"content-type", b"application/grpc"),
        )  # fmt: skip
        self._h2.send_headers(call, head)
        self._partial[call] = bytearray()
        if message is not None:
            self._h2.send_data(call, _prefixed(message), end_stream=not more)
        self._flush()
        return call

    def room(self, call: int) -> int:
        """Return the octets of a message that the server takes now."""
        return int(self._h2.local_flow_control_window(call)) - _PREFIX

    def send(self, call: int, message: bytes, *, last: bool = False) -> None:
        """Send another message on a call, no longer than there is room for."""
        octets, step = _prefixed(message), self._h2.max_outbound_frame_size
        for at in range(0, len(octets), step):
            self._h2.send_data(call, octets[at : at + step], end_stream=last and at + step >= len(octets))
        self._flush()

    def receive(self, octets: bytes) -> list[GrpcMessage | GrpcEnd]:
        """Take octets of the server, and return what they tell. Raises Malformed."""
        told: list[GrpcMessage | GrpcEnd] = []
        try:
            for event in self._h2.receive_data(octets):
                told += self._on_event(event)
        except h2.exceptions.ProtocolError as e:
            raise Malformed(f"HTTP/2: {e}") from None
        self._flush()
        return told

    def _on_event(self, event: h2.events.Event) -> list[GrpcMessage | GrpcEnd]:
        if isinstance(event, h2.events.DataReceived):
            call = event.stream_id or 0
            self._h2.acknowledge_received_data(event.flow_controlled_length or 0, call)
            return self._on_data(call, event.data or b"")
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            found = {bytes(name): bytes(value) for name, value in event.headers or ()}
            status = found.get(b"grpc-status", b"0" if found.get(b":status", b"200") == b"200" else b"-1")
            if status != b"0":
                words = found.get(b"grpc-message", b"").decode("ascii", "replace")
                return [GrpcEnd(event.stream_id or 0, words[:200] or f"gRPC status {status[:8].decode()!r}")]
        elif isinstance(event, h2.events.StreamEnded):
            self._partial.pop(event.stream_id or 0, None)
            return [GrpcEnd(event.stream_id or 0, "")]
        elif isinstance(event, h2.events.StreamReset):
            return [GrpcEnd(event.stream_id or 0, "reset the call")]
        elif isinstance(event, h2.events.ConnectionTerminated):
            return [GrpcEnd(0, "ends")]
        return []

    def _on_data(self, call: int, octets: bytes) -> list[GrpcMessage | GrpcEnd]:
        held = self._partial.setdefault(call, bytearray())
        held += octets
        told: list[GrpcMessage | GrpcEnd] = []
        while len(held) >= _PREFIX:
            size = int.from_bytes(held[1:_PREFIX])
            if held[0] or size > MESSAGE_MAX:
                raise Malformed("grpc.prefix")
            if len(held) < _PREFIX + size:
                break
            told.append(GrpcMessage(call, held[_PREFIX : _PREFIX + size]))
            del held[: _PREFIX + size]
        return told


def _prefixed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4) + message
