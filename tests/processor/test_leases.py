"""Leases of a worker in this process: what is kept, what is lost, and what is taken over."""

from typing import Any

import pytest

from common.store.claims import Job, Outcome
from common.store.states import Fault, Status
from tests.conftest import eventually
from tests.processor.conftest import Book, Client, WriteModel
from tests.processor.running import Work, metric, taken_by_a_thief
from tests.store.store import Store


class TestLeases:
    async def test_a_long_prediction_is_kept(
        self, client: Client, work: Work, write_model: WriteModel, book: Book
    ) -> None:
        spec = write_model("""
            from book import *
            def Model(input):
                note("running")
                wait_for("go")
                return input
        """)
        await work(spec, lease_s=1)
        (prediction_id,) = await client.submit("long")
        await book.has("running")
        second = await work(spec, lease_s=1)
        reclaims = 0
        reclaim = second.worker.claims.reclaim

        async def counted(*args: Any, **more: Any) -> list[Job]:
            nonlocal reclaims
            reclaims += 1
            return await reclaim(*args, **more)

        second.worker.claims.reclaim = counted  # type: ignore[method-assign]
        partitions = client.store.partitions
        await eventually(lambda: reclaims >= 8 * partitions, 30)  # it tries every quarter of a lease
        book.allow("go")
        assert await client.result(prediction_id) == "long"
        assert book.notes == ["running"]
        assert client.attempt(prediction_id) == 1

    async def test_a_late_result_is_refused(
        self, client: Client, work: Work, write_model: WriteModel, book: Book, redis_url: str
    ) -> None:
        await work(
            write_model("""
                from book import *
                def Model(input):
                    note("running")
                    wait_for("go")
                    return "late"
            """)
        )
        (prediction_id,) = await client.submit("contested")
        await book.has("running")
        thief = Store(redis_url, name="thief", partitions=client.store.partitions)
        stolen = [
            job
            for reader in thief.claims.readers()
            for job in await thief.claims.reclaim(reader, 9, idle_s=0)
        ]
        assert [(job.id, job.attempt) for job in stolen] == [(prediction_id, 2)]
        refused = metric("predictions_total", status="refused")
        book.allow("go")
        await eventually(lambda: metric("predictions_total", status="refused") == refused + 1)
        assert await client.status(prediction_id) == Status.PROCESSING
        assert await thief.claims.finish([(stolen[0], Outcome(Status.SUCCEEDED, b'"in time"'))]) == [True]
        assert await client.result(prediction_id) == "in time"
        assert await client.results("next") == ["late"]
        await thief.claims.leave()
        await thief.aclose()

    async def test_a_lost_lease_stops_the_work(
        self,
        client: Client,
        work: Work,
        write_model: WriteModel,
        book: Book,
        redis_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("processor.flights.CANCEL_GRACE_S", 0.05)
        await work(
            write_model("""
                from book import *
                def Model(input):
                    if input == "next": return input
                    note("running")
                    time.sleep(3600)
            """),
            lease_s=0.5,
        )
        await client.submit("contested")
        await book.has("running")
        lost = metric("leases_lost_total")
        async with taken_by_a_thief(redis_url, client.store.partitions) as (thief, job):
            assert await client.results("next") == ["next"]  # on a new model process
            assert metric("leases_lost_total") == lost + 1
            assert await thief.claims.finish([(job, Outcome(Status.SUCCEEDED, b'"done"'))]) == [True]

    async def test_what_a_dead_processor_held_is_taken_over(
        self, client: Client, work: Work, write_model: WriteModel, redis_url: str
    ) -> None:
        dead = Store(redis_url, name="dead", partitions=client.store.partitions)
        ids = await client.submit(*range(10))
        held = [job for reader in dead.claims.readers() for job in await dead.claims.claim(reader, 100)]
        assert len(held) == 10
        await work(write_model("def Model(input): return 2 * input"), lease_s=0.5)
        assert [await client.result(i) for i in ids] == [2 * n for n in range(10)]
        assert {client.attempt(i) for i in ids} == {2}
        await dead.claims.leave()
        await dead.aclose()

    async def test_one_that_was_delivered_too_often_is_given_up(
        self, client: Client, work: Work, write_model: WriteModel, book: Book, redis_url: str
    ) -> None:
        (prediction_id,) = await client.submit("cursed")
        for n in range(2):
            dead = Store(redis_url, name=f"dead {n}", partitions=client.store.partitions)
            for reader in dead.claims.readers():
                await (dead.claims.claim(reader, 9) if n == 0 else dead.claims.reclaim(reader, 9, idle_s=0))
            await dead.aclose()
        await work(
            write_model("from book import *\ndef Model(input): note(input)"),
            lease_s=0.5,
            max_attempts=2,
        )
        end = await client.end(prediction_id)
        assert (end.status, end.fault) == (Status.FAILED, Fault.GIVEN_UP)
        assert [job["id"] for job in client.dead()] == [prediction_id]
        assert book.notes == []
        await client.store.claims.remove_dead_consumers(idle_s=0.001)
