"""The job store when its server is wrong, away, empty, silent or out of memory."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from common.errors import StoreFull, StoreMisconfigured, StoreUnavailable
from common.store import keys, queue
from common.store.claims import Job, Outcome
from common.store.jobs import Submission
from common.store.states import Status
from tests.store.conftest import MakeStore
from tests.store.store import Processor, Store
from tools.embedded_server import EmbeddedServer

pytestmark = pytest.mark.leaves_jobs("what counts here is what the store says while its server fails")

DONE = Outcome(Status.SUCCEEDED, b'"done"')
SUBMISSION = Submission(next(keys.new_ids(1)), b"1")


async def everything(gateway: Store, processor: Processor) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Each method of the store that asks the server, on a job that `processor` has."""
    assert (await gateway.jobs.submit(SUBMISSION)).decision in ("queued", "known")
    return calls(gateway, processor, await processor.claim_one())


def calls(gateway: Store, processor: Processor, job: Job) -> dict[str, Callable[[], Awaitable[Any]]]:
    store = processor.store
    return {
        "submit": lambda: gateway.jobs.submit(SUBMISSION),
        "watch": lambda: gateway.jobs.watch(SUBMISSION.id),
        "read": lambda: gateway.jobs.read(SUBMISSION.id),
        "claim": processor.claim,
        "reclaim": lambda: processor.reclaim(idle_s=60),
        "extend": lambda: store.claims.extend([job]),
        "finish": lambda: store.claims.finish([(job, DONE)]),
        "release": lambda: store.claims.release([job]),
        "retry": lambda: store.claims.retry([(job, 0.0)]),
        "ring": gateway.queue.ring,
        "dead": lambda: gateway.dead_letters.list(10),
        "revive": lambda: gateway.dead_letters.revive(SUBMISSION.id),
        "forget": lambda: gateway.dead_letters.forget(SUBMISSION.id),
        "cancel": lambda: gateway.jobs.cancel(SUBMISSION.id, "Prediction cancelled."),
        "remove_dead_consumers": lambda: gateway.claims.remove_dead_consumers(idle_s=60),
        "leave": store.claims.leave,
        "prepare": gateway.queue.prepare,
        "subscription": lambda: subscribed(gateway),
    }


async def subscribed(store: Store) -> None:
    async with store.subscription():
        pass


class TestAServerThatForgets:
    async def test_its_scripts(self, gateway: Store, a: Processor, raw: Any) -> None:
        for call in (await everything(gateway, a)).values():
            raw.script_flush()
            await call()
        state = await gateway.jobs.read(SUBMISSION.id)
        assert state is not None
        assert state.status == Status.SUCCEEDED

    @pytest.mark.parametrize("new", [False, True], ids=["empty", "with a new job"])
    async def test_everything(self, gateway: Store, a: Processor, raw: Any, new: bool) -> None:
        """Nothing but StoreUnavailable comes out, whatever is called first, and nothing pretends to have worked."""
        for name, call in (await everything(gateway, a)).items():
            raw.flushall()
            if new:  # its stream is there again, without the group
                await gateway.jobs.submit(Submission(next(keys.new_ids(1)), b"1"))
            try:
                reply = await call()
            except StoreUnavailable:
                continue
            if name == "extend":
                assert [job.id for job in reply] == [SUBMISSION.id]
            elif name == "finish":
                assert reply == [False]
            elif name == "cancel":
                assert reply == "unknown"
            elif name in ("read", "watch"):
                assert reply is None

    @pytest.mark.parametrize("how", ["claim", "reclaim"])
    async def test_its_groups_which_are_made_again(
        self, gateway: Store, a: Processor, raw: Any, how: str
    ) -> None:
        raw.flushall()
        ids = list(islice(keys.new_ids(gateway.partitions), 8))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        for reader in a.readers:
            with pytest.raises(StoreUnavailable, match="group"):
                await (
                    a.store.claims.claim(reader, 1)
                    if how == "claim"
                    else a.store.claims.reclaim(reader, 1, idle_s=0)
                )
        assert sorted(job.id for job in await a.claim()) == sorted(ids)


class TestAServerThatIsWrong:
    @pytest.fixture
    def config(self, raw: Any) -> Iterator[Callable[[str, Any], None]]:
        """CONFIG SET, put back after the test."""
        before = raw.config_get("maxmemory*")
        yield raw.config_set
        for name in ("maxmemory", "maxmemory-policy"):
            raw.config_set(name, before[name])

    async def test_one_that_would_evict_jobs_is_refused(
        self, gateway: Store, config: Callable[[str, Any], None]
    ) -> None:
        config("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreMisconfigured, match=r"allkeys-lru.*set maxmemory-policy noeviction"):
            await gateway.queue.prepare()
        with pytest.raises(StoreMisconfigured):
            await gateway.queue.prepare_when_up(asyncio.Event())

    async def test_one_that_is_too_old_is_refused(
        self, gateway: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue, "MIN_VERSION", (99, 0))
        with pytest.raises(StoreMisconfigured, match="is too old"):
            await gateway.queue.prepare()

    async def test_out_of_memory_it_takes_no_jobs_and_finishes_those_it_has(
        self, gateway: Store, a: Processor, raw: Any, config: Callable[[str, Any], None]
    ) -> None:
        ids = list(islice(keys.new_ids(1), 4))
        for i in ids:
            await gateway.jobs.submit(Submission(i, b"1", watch=True))
        running, given_back = await a.claim(2)
        config("maxmemory", 1)
        with pytest.raises(StoreFull, match="memory"):
            await gateway.jobs.submit(SUBMISSION)
        raw.script_flush()  # as after a restart: they are sent whole
        with pytest.raises(StoreFull):
            await gateway.jobs.submit(SUBMISSION)
        await gateway.queue.prepare()
        assert await gateway.jobs.cancel(ids[3], "Prediction cancelled.") == "cancelled"
        (queued,) = await a.claim()
        await a.store.claims.retry([(given_back, 0.0)])
        assert await a.store.claims.extend([running, queued]) == []
        assert await a.store.claims.finish([(running, DONE), (queued, DONE)]) == [True, True]
        assert await a.store.claims.finish([(await a.claim_one(), DONE)]) == [True]
        assert (await gateway.queue.ring()).unfinished == 0
        config("maxmemory", 0)
        assert await gateway.jobs.read(SUBMISSION.id) is None
        assert (await gateway.jobs.submit(SUBMISSION)).decision == "queued"

    @pytest.fixture
    def url_of(self, raw: Any, redis_url: str) -> Iterator[Callable[[str], str]]:
        """The server's address with another user and password; "limited" may do next to nothing."""
        raw.acl_setuser("limited", enabled=True, passwords=["+secret"], commands=["+ping", "+hello"])
        yield lambda user: redis_url.replace("unix://", f"unix://{user}@")
        raw.acl_deluser("limited")

    @pytest.mark.parametrize(
        ("user", "sentence"),
        [
            ("limited:wrong", "check the user and password in REDIS_URL"),
            ("nobody:secret", "check the user and password in REDIS_URL"),
            ("limited:secret", "give the user in REDIS_URL those of docs/operations.md"),
        ],
    )
    async def test_one_that_refuses_us_says_where_to_look(
        self, url_of: Callable[[str], str], open_store: MakeStore, user: str, sentence: str
    ) -> None:
        gateway = open_store(url_of(user), name="gate")
        for call in (gateway.queue.prepare, lambda: gateway.jobs.submit(SUBMISSION), gateway.queue.ring):
            with pytest.raises(StoreMisconfigured, match=sentence):
                await call()

    async def test_one_without_such_a_database_says_so(self, redis_url: str, open_store: MakeStore) -> None:
        gateway = open_store(redis_url.replace("db=0", "db=999"), name="gate")
        with pytest.raises(StoreMisconfigured, match="check the number at the end of REDIS_URL"):
            await gateway.queue.prepare()

    @pytest.mark.parametrize("kind", ["string", "list"])
    async def test_what_somebody_else_put_under_a_job_s_key_keeps_nobody_up(
        self, gateway: Store, a: Processor, raw: Any, kind: str
    ) -> None:
        ids = list(islice(keys.new_ids(1), 3))
        for i in ids:
            await gateway.jobs.submit(Submission(i, b"1", deadline_us=3600_000_000))
        key = keys.job(ids[0], gateway.partitions)
        raw.delete(key)
        raw.set(key, "1") if kind == "string" else raw.lpush(key, "1")
        jobs = await a.claim()
        assert [job.id for job in jobs] == ids[1:]
        stolen = keys.job(ids[1], gateway.partitions)
        raw.delete(stolen)
        raw.set(stolen, "1")
        assert [job.id for job in await a.store.claims.extend(jobs)] == [ids[1]]
        assert await a.store.claims.finish([(job, DONE) for job in jobs]) == [False, True]
        assert await gateway.jobs.read(ids[0]) is None
        await gateway.queue.ring()
        await gateway.queue.measure()


class TestAServerThatTalksNonsense:
    """A proxy in between, another program at that port, a server that is not what it seems: an outage, no more."""

    @pytest.fixture(
        params=[
            b"-DENIED Redis is running in protected mode\r\n",
            b"-ERR unknown command\r\n",
            b"-\r\n",
            b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
            b"+OK\r\n" * 4,
            b":1\r\n" * 4,
            b"$-1\r\n" * 4,
            b"*0\r\n" * 4,
            b"*2\r\n+a\r\n:2\r\n" * 4,
            b"-\xff\xfe \x00\r\n",
            b"\x15\x03\x01\x00\x02\x02",
            b"",
        ],
        ids=lambda reply: repr(reply[:12]),
    )
    async def nonsense(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
        """The address of something that answers whatever it is asked in this way."""

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while request.param and await reader.read(1 << 16):
                    writer.write(request.param)
            writer.close()

        path = tmp_path / "nonsense.sock"
        async with await asyncio.start_unix_server(answer, path):
            yield f"unix://{path}?db=0"

    async def test_every_call_says_that_it_is_away(
        self, nonsense: str, open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.store.connections.link.COMMAND_TIMEOUT_S", 0.3)
        store = open_store(nonsense, name="gate")
        job = Job(SUBMISSION.id, 0, b"1-1", 1, b"1", 0)
        for name, call in calls(store, Processor(store), job).items():
            try:
                await call()
            except StoreUnavailable:
                continue
            # where nothing is returned or looked at, nothing is claimed either
            assert name not in (
                "submit",
                "watch",
                "read",
                "claim",
                "extend",
                "finish",
                "prepare",
                "subscription",
            )


class TestAServerThatIsAway:
    @pytest.fixture
    async def own(self, tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
        """A server that only this test has, and may stop."""
        with EmbeddedServer(tmp_path, extra=["--appendfsync", "always"]) as server:
            yield server

    async def test_every_call_says_so_and_all_goes_on_once_it_is_back(
        self, own: EmbeddedServer, open_store: MakeStore
    ) -> None:
        gateway = open_store(own.url, name="gate")
        await gateway.queue.prepare()
        a = Processor(open_store(own.url, name="proc-a"))
        calls = await everything(gateway, a)
        own.kill()
        for call in calls.values():
            with pytest.raises(StoreUnavailable):
                async with asyncio.timeout(2):
                    await call()
        own.start()
        assert (await calls["submit"]()).decision == "known"
        assert await calls["extend"]() == []
        assert await calls["finish"]() == [True]
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_a_start_waits_for_it(self, own: EmbeddedServer, open_store: MakeStore) -> None:
        gateway = open_store(own.url, name="gate")
        own.stop()
        stop = asyncio.Event()
        waiting = asyncio.create_task(gateway.queue.prepare_when_up(stop))
        await asyncio.sleep(0)
        own.start()
        assert await waiting is True
        assert (await gateway.jobs.submit(SUBMISSION)).decision == "queued"

    async def test_a_start_that_waits_can_be_stopped(
        self, own: EmbeddedServer, open_store: MakeStore
    ) -> None:
        own.stop()
        stop = asyncio.Event()
        waiting = asyncio.create_task(open_store(own.url, name="gate").queue.prepare_when_up(stop))
        await asyncio.sleep(0)
        stop.set()
        assert await waiting is False

    async def test_a_silent_one_is_away_and_a_repeat_is_harmless(
        self, own: EmbeddedServer, open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = open_store(own.url, name="gate")
        await gateway.queue.prepare()
        monkeypatch.setattr("common.store.connections.link.COMMAND_TIMEOUT_S", 0.1)
        impatient = open_store(own.url, name="gate")
        await impatient.jobs.read(SUBMISSION.id)
        own.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreUnavailable):
            await impatient.jobs.submit(SUBMISSION)
        own.send_signal(signal.SIGCONT)
        assert (await gateway.jobs.submit(SUBMISSION)).decision in ("queued", "known")
        assert (await gateway.queue.ring()).unfinished == 1


async def test_a_small_job_takes_little_memory(gateway: Store, raw: Any) -> None:
    input_ = b'"%s"' % (b"x" * 98)

    async def submit(count: int) -> None:
        ids = islice(keys.new_ids(gateway.partitions), count)
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, input_)) for i in ids])

    await submit(100)
    before = raw.info("memory")["used_memory_dataset"]
    await submit(4000)
    # about 130 of it for its place among the unfinished
    assert (raw.info("memory")["used_memory_dataset"] - before) / 4000 < 480
