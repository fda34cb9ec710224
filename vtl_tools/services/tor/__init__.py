"""vtl-tor: Tor as a stream for each connection of a guest. Paper section 3.1."""
