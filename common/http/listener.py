"""The sockets that services listen on. It stands apart from the server, which takes a tenth of a second to import."""

import errno
import socket

from common.errors import StartFault

ANY = "::"
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def bind(host: str, port: int, *, variable: str) -> socket.socket:
    """A listening socket, or a StartFault that names the setting to change.

    `::` is every address of this machine: IPv4 and IPv6, where it has both.
    """
    try:
        return _bind_any(port) if host == ANY else _bind_one(host, port)
    except OSError as error:
        shown = host if host == host.strip() else repr(host)
        raise StartFault(f"{variable} {port} on {shown} cannot be used: {error.strerror}.") from None


def local(host: str) -> tuple[str, ...]:
    """Where this machine reaches what listens on `host`: at one of these."""
    return {"0.0.0.0": ("127.0.0.1",), ANY: ("127.0.0.1", "::1")}.get(host, (host,))


def _bind_any(port: int) -> socket.socket:
    try:
        return _bind(socket.AF_INET6, (ANY, port))
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    return _bind(socket.AF_INET, ("0.0.0.0", port))


def _bind_one(host: str, port: int) -> socket.socket:
    """Of a name that has several addresses, it is that for IPv4."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    return _bind(family, address)


def _bind(family: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # whatever the system's default is
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != ANY)
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(False)
    return listener
