"""Self-tests of services: a real service between a hostile guest and our own networks; nothing may leak."""
