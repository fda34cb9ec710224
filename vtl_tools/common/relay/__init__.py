"""TCP connections that end here, each carried over a stream that begins here (paper section 3.1)."""
