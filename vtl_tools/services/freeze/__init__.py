"""vtl-freeze: follows a VM's TCP connections and holds them while it is away (paper section 3.5)."""
