"""Self-test of vtl-tor: no traffic of a guest may leave except through the proxy."""
