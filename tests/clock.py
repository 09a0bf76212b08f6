"""Servers whose clock a test can move, by libfaketime (Debian: libfaketime): real ones, in every other way."""

import shlex
import time
from pathlib import Path

import pytest
from redis import Redis

from tests.conftest import PUNCTUAL, wait_until
from tools.embedded_server import EmbeddedServer, binary_of_the_wheel

_LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class MovableClock:
    """The clock of the servers that `binary` starts. What they measure with a clock that never steps stays as it is."""

    def __init__(self, folder: Path) -> None:
        if not _LIBRARIES:
            pytest.skip("libfaketime is not installed (Debian: libfaketime)")
        self._offset = folder / "offset"
        self.binary = folder / "server-with-another-clock"
        self._servers: list[EmbeddedServer] = []
        self.step(0)
        settings = {
            "LD_PRELOAD": _LIBRARIES[0],
            "FAKETIME_TIMESTAMP_FILE": self._offset,
            "FAKETIME_NO_CACHE": 1,
            "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        }
        exports = "\n".join(f"export {name}={shlex.quote(str(value))}" for name, value in settings.items())
        self.binary.write_text(f'#!/bin/sh\n{exports}\nexec {shlex.quote(str(binary_of_the_wheel()))} "$@"\n')
        self.binary.chmod(0o700)

    def step(self, seconds: int) -> None:
        """From now on it is so many seconds ahead of the true time."""
        new = self._offset.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        new.replace(self._offset)
        for server in self._servers:
            with Redis.from_url(server.url) as client:
                wait_until(lambda client=client: abs(client.time()[0] - time.time() - seconds) < 60)

    def server(self, folder: Path) -> EmbeddedServer:
        """Not started yet."""
        self._servers.append(EmbeddedServer(folder, aof=False, extra=PUNCTUAL, binary=self.binary))
        return self._servers[-1]
