"""What answers a request: one file for each resource."""
