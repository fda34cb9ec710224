"""Services under traffic and faults for a long time: cells, their flows, their faults. See bench/soak.py."""
