"""The sockets that services listen on. It stands apart from the server, which takes a tenth of a second to import."""

import socket

from common.errors import StartFault


def bind(host: str, port: int, *, variable: str) -> socket.socket:
    """A listening socket, or a StartFault that names the setting to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        shown = host if host == host.strip() else repr(host)
        raise StartFault(f"{variable} {port} on {shown} cannot be used: {error.strerror}.") from None
    listener.set_inheritable(False)
    return listener
