"""State models (paper section 2.5): follow and rewrite somebody else's connection."""
