"""What a guest expects of its network: neighbours, a router, addresses, names. No I/O, no clock."""
