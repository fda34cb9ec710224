"""Secure sessions between two daemons: keys, handshake, sealed records, and connections of kernel TCP."""
