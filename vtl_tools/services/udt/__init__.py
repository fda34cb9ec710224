"""vtl-udt: TCP of a guest goes over another transport to a second module, and becomes TCP again there."""
