"""The job store: everything that talks to Redis, and nothing else does. The key map is in `keys.py`."""
