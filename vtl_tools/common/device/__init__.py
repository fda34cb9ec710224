"""The Network Interface API (paper section 2.3): links named by a spec, read and written in batches."""
