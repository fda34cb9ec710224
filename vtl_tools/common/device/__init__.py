"""Network Interface API (paper section 2.3): links opened by a spec, read and written in batches."""
