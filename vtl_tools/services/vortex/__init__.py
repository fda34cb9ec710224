"""vortex-client: traffic to a volunteer's unused ports goes to a backend, and its answers come back."""
