"""State models (paper section 2.5): follow and rewrite a connection between two others."""
