"""A TCP proxy between one service and Redis, for what networks do: delay, cut, fall silent without a word, and lead to
something that is no Redis."""

import asyncio
from contextlib import suppress


class Proxy:
    """`delay_s` holds every chunk for so long; while `mute` is set, nothing passes and nobody is told. `nonsense` is what
    new connections hear instead of Redis, whatever they ask."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.delay_s = 0.0
        self.nonsense = b""

    async def start(self) -> int:
        """Returns its port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def mute(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self.delay_s = 0.0
        self.nonsense = b""
        self._open.set()

    def cut(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def aclose(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while self.nonsense and await reader.read(1 << 16):
                writer.write(self.nonsense)
                await writer.drain()
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._copy(reader, other_writer))
                    group.create_task(self._copy(other_reader, writer))
            finally:
                other_writer.close()
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._connections.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._open.wait()
            writer.write(data)
            with suppress(ConnectionError):
                await writer.drain()
        raise ConnectionResetError  # one side has closed: end the other
