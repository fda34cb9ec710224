"""A VM's TCP connections, followed while it runs, held while it is away (paper 3.5), without I/O."""
