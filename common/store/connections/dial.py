"""One connection to one server: how it is made, written to and asked.

It must never try twice, choose among servers or limit a time: that is for those who call, each exchange within one
timeout of theirs.
"""

import asyncio
import math
import socket
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.connection import parse_url as connection_settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.addresses import host_port
from common.store.connections.errors import in_words, refused
from common.store.connections.redis_url import Address, RedisUrl
from common.store.connections.url_options import check_files

LARGE_BYTES = 1 << 16
ASK_S = 1.0  # for one server to be reached and to answer, when there are others to ask

_IN_CONNECTING = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ResponseError,
    OSError,
)

Command = Sequence[Any]


class Dial:
    """Makes connections the way we want them: redis-py's own timeouts and retries are off, because each exchange has
    one timeout of ours around all of it, connecting included."""

    def __init__(self, url: RedisUrl, **overrides: Any) -> None:
        """Raises StoreMisconfigured for a file of the TLS options that cannot be used."""
        settings: dict[str, Any] = {**connection_settings(url.plain), **url.options, **overrides}
        check_files(url.options)
        self._kind = settings.pop("connection_class", Connection)
        defaults = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0), "legacy_responses": False}
        self._settings = defaults | settings

    async def __call__(self, address: Address | None = None, *, protocol: int = 3) -> Connection:
        where = {"host": address[0], "port": address[1]} if address else {}
        connection: Connection = self._kind(**self._settings | where, protocol=protocol)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, Exception) and not isinstance(error, _IN_CONNECTING):
                error = exceptions.ConnectionError(in_words(error))  # no Redis speaks here
            say_where(error, connection, _hint(connection, error))
            raise error
        return connection


async def send(connection: Connection, commands: Sequence[Command]) -> None:
    packed = [piece for command in commands for piece in _packed(command)]
    await connection.send_packed_command(packed, check_health=False)


def _packed(command: Command) -> list[bytes]:
    """What the command is on the wire. hiredis packs small ones five times faster than redis-py's own encoder, but copies
    a large argument again and again: 450 ms for 40 MB, so those are sent from where they are."""
    for part in command:  # in half the time that any() takes, for each command of each prediction
        if isinstance(part, bytes) and len(part) > LARGE_BYTES:
            break
    else:
        return [pack_command(tuple(command))]
    pieces = [b"*%d\r\n" % len(command)]
    for part in command:
        data = part if isinstance(part, bytes) else str(part).encode()
        pieces += (b"$%d\r\n" % len(data), data, b"\r\n")
    return pieces


async def ask(connection: Connection, *command: Any) -> Any:
    """The reply to one command. Raises redis-py's errors."""
    try:
        await send(connection, [command])
        return await connection.read_response(disable_decoding=True, timeout=math.inf)
    except BaseException as error:
        say_where(error, connection)
        raise


def say_where(error: BaseException, connection: Connection, hint: str = "") -> None:
    """Put the address into an error that lacks it. A cancellation keeps it for the TimeoutError that it becomes."""
    place = place_of(connection)
    if isinstance(error, asyncio.CancelledError):
        error.args = (f"no answer from {place}{hint}",)
    elif type(error) in (exceptions.ConnectionError, exceptions.TimeoutError) and not refused(error):
        words = in_words(error)
        error.args = (f"{words}{hint}" if place in words else f"{words} ({place}){hint}",)


def _hint(connection: Connection, error: BaseException) -> str:
    """What to look at when a port answers, but not to a connection of this kind."""
    if isinstance(error.__context__, (ConnectionRefusedError, FileNotFoundError, socket.gaierror)):
        return ""
    if not isinstance(connection, SSLConnection):
        return (
            "" if hasattr(connection, "path") else ": is it a port for TLS? Then use rediss:// in REDIS_URL"
        )
    if "CERTIFICATE_VERIFY_FAILED" in in_words(error):
        return ": ssl_ca_certs in REDIS_URL may name the file of another CA"
    return ": is it a port for TLS, and does it ask for a certificate of ours (ssl_certfile in REDIS_URL)?"


def place_of(connection: Connection) -> str:
    """Where it leads, for people."""
    return getattr(connection, "path", "") or host_port(*address_of(connection))


def address_of(connection: Connection) -> Address:
    return connection.host, int(connection.port)
