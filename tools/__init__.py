"""What developers run around the two services: everything on one machine, a server for tests. Never imported by them."""
