"""vtl-vnet: a layer 2 overlay of links and rules, of which a service may be a link. Paper section 2.2."""
