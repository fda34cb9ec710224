"""Transports between the two modules of vtl-udt: connections of each library, and sessions over them."""
