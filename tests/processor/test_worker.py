"""The worker's loop in this process, with real model processes and a real server: what it claims and what it leaves to
others. What needs a whole processor is in test_service.py.
"""

import asyncio

import pytest

from common.store.states import Status
from tests.processor.conftest import Book, Client, WriteModel
from tests.processor.running import BLOCK_S, Work


class TestSharing:
    """Predictions here wait for one another: they end only if they run at the same time."""

    MEETING = """
        from book import *
        def Model(input):
            note(input)
            if isinstance(input, list):
                mine, other = input
                allow(mine)
                wait_for(other)
                return os.getpid()
            time.sleep(input)
    """

    async def test_model_processes_work_at_the_same_time(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(write_model(self.MEETING), model_processes=2)
        first, second = await client.results(["a", "b"], ["b", "a"])
        assert first != second

    async def test_a_slow_model_leaves_work_to_an_idle_processor(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model(self.MEETING)
        first = await work(spec)
        await client.results(0.12)  # it has shown to be slow
        alone = await client.submit(["a", "b"])
        await book.has("['a', 'b']")
        held = await client.submit(["b", "a"])
        await asyncio.sleep(4 * BLOCK_S)  # time for a wrong claim
        assert await client.status(held[0]) == Status.QUEUED
        second = await work(spec)
        pids = [await client.result(i) for i in alone + held]
        assert pids == [r.models[0]._process.pid for r in (first, second) if r.models[0]._process]

    async def test_a_quick_model_collects_while_it_is_busy(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        await work(
            write_model("""
                from book import *
                class Model:
                    def predict_batch(self, inputs):
                        if "hold" in inputs:
                            note("holding")
                            wait_for("go")
                        return [len(inputs)] * len(inputs)
            """),
            max_batch_size=4,
        )
        await client.results(1)
        (hold,) = await client.submit("hold")
        await book.has("holding")
        ids = [i for n in range(4) for i in await client.submit(n)]
        for prediction_id in ids:
            await client.becomes(prediction_id, "processing")
        book.allow("go")
        assert [await client.result(i) for i in ids] == [4, 4, 4, 4]
        assert await client.result(hold) == 1


async def test_a_model_does_not_see_our_secrets(
    client: Client, work: Work, write_model: WriteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "redis_url", "API_KEYS", "ADMIN_API_KEYS", "ITS_OWN"):
        monkeypatch.setenv(name, "the secret")
    await work(
        write_model("""
            import os
            def Model(input): return [name for name, text in os.environ.items() if text == "the secret"]
        """)
    )
    assert await client.results("which") == [["ITS_OWN"]]
