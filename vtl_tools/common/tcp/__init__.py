"""One end of a TCP connection (RFC 9293), without input, output, clock or chance. Enter by endpoint.py."""
