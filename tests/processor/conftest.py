"""Little models in files, and a client that submits to the processors under test as a gateway would.

Everything here runs on uvloop, as the services do.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from itertools import islice
from pathlib import Path
from textwrap import dedent
from typing import Any

import orjson
import pytest
import uvloop
from redis import Redis

from common.settings import ProcessorSettings
from common.store import keys
from common.store.jobs import Submission
from common.store.states import JobState
from common.tracing import Tracing
from processor.service import Processor
from tests.conftest import eventually
from tests.processor.running import BLOCK_S, Running, Work
from tests.services import services, start_processor
from tests.store.store import Store

__all__ = ["services", "start_processor"]

WriteModel = Callable[[str], str]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    """`write_model(source)` writes a file that defines `Model`, and returns what MODEL must be."""

    def write(source: str) -> str:
        path = tmp_path / "little_model.py"
        path.write_text(dedent(source))
        return f"{path}:Model"

    return write


class Book:
    """How a little model tells the test what it does, and waits for its word: a file `book.py` beside the model.

    In the model: `from book import *`, then `note(text)`, `allow(name)`, `allowed(name)`, `wait_for(name)`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "book"
        self._folder.mkdir()
        self._notes = self._folder / "notes"
        (folder / "book.py").write_text(
            dedent(f"""
                import os, time
                def note(text):
                    with open({str(self._notes)!r}, "a") as notes: notes.write(f"{{text}}\\n")
                def path(name): return os.path.join({str(self._folder)!r}, str(name))
                def allow(name): open(path(name), "w").close()
                def allowed(name): return os.path.exists(path(name))
                def wait_for(name):
                    while not allowed(name): time.sleep(0.005)
            """)
        )

    def allow(self, name: str) -> None:
        (self._folder / name).touch()

    @property
    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    async def has(self, note: str, times: int = 1) -> None:
        """Wait until the model has noted it."""
        await eventually(lambda: self.notes.count(note) >= times, 30)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


class Client:
    """Submits inputs and reads what became of them."""

    def __init__(self, store: Store, raw: Any) -> None:
        self.store = store
        self.raw = raw

    async def submit(self, *inputs: Any) -> list[str]:
        """The ids of new predictions, in the order of the queue if there is one partition."""
        ids = list(islice(keys.new_ids(self.store.partitions), len(inputs)))
        submissions = [Submission(i, orjson.dumps(value)) for i, value in zip(ids, inputs, strict=True)]
        replies = await asyncio.gather(*map(self.store.jobs.submit, submissions))
        assert {reply.decision for reply in replies} == {"queued"}
        return ids

    async def state(self, prediction_id: str) -> JobState:
        state = await self.store.jobs.read(prediction_id)
        assert state is not None
        return state

    async def status(self, prediction_id: str) -> str:
        return (await self.state(prediction_id)).status

    async def end(self, prediction_id: str, timeout: float = 30.0) -> JobState:
        """Its final state."""

        async def final() -> JobState | None:
            state = await self.state(prediction_id)
            return state if state.final else None

        return await eventually(final, timeout)

    async def result(self, prediction_id: str) -> Any:
        """What the model returned, or the sentence why it did not."""
        return orjson.loads((await self.end(prediction_id)).payload)

    async def results(self, *inputs: Any) -> list[Any]:
        return [await self.result(i) for i in await self.submit(*inputs)]

    async def becomes(self, prediction_id: str, status: str, timeout: float = 30.0) -> None:
        async def there() -> bool:
            return await self.status(prediction_id) == status

        await eventually(there, timeout)

    def attempt(self, prediction_id: str) -> int:
        return int(self.raw.hget(keys.job(prediction_id, self.store.partitions), "attempt") or 0)

    def dead(self) -> list[dict[str, str]]:
        """What was given up."""
        streams = [keys.dead(p) for p in range(self.store.partitions)]
        return [fields for stream in streams for _, fields in self.raw.xrange(stream)]


@pytest.fixture
async def client(redis_url: str, partitions: int) -> AsyncIterator[Client]:
    store = Store(redis_url, name="test", partitions=partitions)
    await store.queue.prepare()
    with Redis.from_url(redis_url, decode_responses=True) as raw:
        yield Client(store, raw)
    await store.aclose()


@pytest.fixture
async def work(
    client: Client, redis_url: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Work]:
    """`await work(spec, max_attempts=1)` starts a worker; it is drained after the test."""
    monkeypatch.setattr("common.store.claims.BLOCK_S", BLOCK_S)
    started: list[Running] = []

    async def start(spec: str, **settings: Any) -> Running:
        given = {"redis_url": redis_url, "partitions": partitions, "model": spec} | settings
        processor = Processor(ProcessorSettings(**given), Tracing())
        await asyncio.gather(*(model.start() for model in processor.models))
        started.append(Running(processor))
        return started[-1]

    yield start
    await asyncio.gather(*(running.stop() for running in started))
