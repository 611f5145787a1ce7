"""Set up the process that computes: its device, its rank, and requests to stop."""
