"""`make compose-test`: docker compose as its users start it, and what it survives."""
