"""Loopback ports for what tests start.

Between the look at a port and the bind of the server that gets it, nobody else may be given the same. So each test
process owns a block of ports, by holding the first one, and hands out the others. They lie below those that the system
gives to outgoing connections: a client that tries to reach a killed server may not end up on the port itself.
"""

import socket
from collections.abc import Iterator
from functools import cache
from itertools import cycle

FIRST, LAST, BLOCK = 11_000, 31_000, 500


def free_port() -> int:
    """A port that nobody has at this moment, and that no other test process will be given."""
    return next(port for port in _ours() if _is_free(port))


def free_ports(count: int) -> list[int]:
    """So many different ones."""
    return [free_port() for _ in range(count)]


@cache
def _ours() -> Iterator[int]:
    """The ports of a block, for ever: one comes again after all others."""
    for first in range(FIRST, LAST, BLOCK):
        with socket.socket() as holder:
            try:
                holder.bind(("127.0.0.1", first))
            except OSError:
                continue
            holder.detach()  # it stays open as long as this process lives
            return cycle(range(first + 1, first + BLOCK))
    raise RuntimeError(f"Every block of ports from {FIRST} to {LAST} is taken: end other test runs first.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
