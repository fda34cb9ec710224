"""The services, one package or module each. None imports another."""
