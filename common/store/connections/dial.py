"""One connection to one server: how it is made, written to and asked.

It must never try twice, choose among servers or limit a time: that is for those who call, each exchange within one
timeout of theirs.
"""

import math
from collections.abc import Sequence
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection
from redis.asyncio.connection import parse_url as connection_settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.store.connections.redis_url import Address

ASK_S = 1.0  # for one server to be reached and to answer, when there are others to ask

Command = Sequence[Any]


class Dial:
    """Makes connections the way we want them: redis-py's own timeouts and retries are off, because each exchange has
    one timeout of ours around all of it, connecting included."""

    def __init__(self, plain_url: str, **overrides: Any) -> None:
        settings: dict[str, Any] = {**connection_settings(plain_url), **overrides}
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
            if isinstance(error, Exception) and not isinstance(error, (exceptions.RedisError, OSError)):
                # redis-py trips over what is no server of ours
                raise exceptions.ConnectionError(f"{type(error).__name__}: {error}") from error
            raise
        return connection


async def send(connection: Connection, commands: Sequence[Command]) -> None:
    # hiredis packs five times faster than redis-py's own encoder
    packed = [pack_command(tuple(command)) for command in commands]
    await connection.send_packed_command(packed, check_health=False)


async def ask(connection: Connection, *command: Any) -> Any:
    """The reply to one command. Raises redis-py's errors."""
    await send(connection, [command])
    return await connection.read_response(disable_decoding=True, timeout=math.inf)


def address_of(connection: Connection) -> Address:
    return connection.host, int(connection.port)
