"""The self-test of vtl-tor: nothing of a guest's may leave but through the proxy."""
