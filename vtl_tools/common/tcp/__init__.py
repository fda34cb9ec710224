"""A TCP endpoint (RFC 9293): one end of a connection, without I/O, clock or randomness. See endpoint.py."""
