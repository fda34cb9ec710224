"""Drives a stage and its links: event loop, workers, control socket, state files, live tables."""
