"""Examines the machine: what each executable needs of it, whether it is there, and how to get it."""
