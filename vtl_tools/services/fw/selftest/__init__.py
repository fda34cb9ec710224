"""Self-test of vtl-fw: attacks of a guest on its network, and of the network on a guest."""
