"""Packet Access API (paper section 2.4): reads and writes the fields of a frame by name, in place."""
