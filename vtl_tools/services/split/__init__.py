"""vtl-split: ends each TCP connection of the guest, and continues it as a second one (paper section 3.3)."""
