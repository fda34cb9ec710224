"""What users run: one file an executable."""
