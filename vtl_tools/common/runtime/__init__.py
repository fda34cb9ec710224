"""Runs a stage with its links: event loop, workers, control socket, state files, live tables."""
