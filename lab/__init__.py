"""The lab: hosts, wires and real guests for tests, demo and benchmarks, gone without trace at the end.

Not part of the installed package. `from lab.netns import Lab` is the way in.
"""
