"""The Packet Access API (paper section 2.4): octets to named fields and back, in place."""
