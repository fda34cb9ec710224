"""Congestion control: how much data may be in flight, and how fast it may leave. One file an algorithm."""
