"""Terminates TCP connections and carries each over a stream (paper section 3.1)."""
