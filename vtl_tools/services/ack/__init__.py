"""vtl-ack: acknowledges the data of TCP beside its sender, and delivers it (paper section 3.3)."""
