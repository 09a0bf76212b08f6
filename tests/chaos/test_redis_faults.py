"""Redis killed, empty, full, read-only, silent, paused or wrong, under real services: what was accepted ends once, who
waits is told, and nobody has to do anything. `docs/reliability.md` names these tests row by row."""

import asyncio
import json
import re
import signal
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from redis import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from common.store import keys
from common.store.connections.link import COMMAND_TIMEOUT_S
from tests.conftest import PUNCTUAL, eventually, leftovers, wait_until
from tests.services import MOODY, MOODY_BATCH, ROOT, Service, Services, running_services
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

PATIENT = f"{ROOT}/tests/contract/models.py:Patient"
LEASE_S = 1
PATIENCE_S = 60.0
NOT_FOUND = {"error": "Prediction ID not found."}
pytestmark = pytest.mark.slow


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that only this test has, and may kill: what it answered is on the disk."""
    extra = [*PUNCTUAL, "--appendfsync", "always"]
    with EmbeddedServer(tmp_path / "server", port=free_port(), extra=extra) as server:
        yield server


@pytest.fixture
def forgetful(tmp_path: Path) -> Iterator[EmbeddedServer]:
    """The same without its append-only file: it comes back empty."""
    with EmbeddedServer(tmp_path / "server", port=free_port(), aof=False, extra=PUNCTUAL) as server:
        yield server


@pytest.fixture
def raw(own: EmbeddedServer) -> Iterator[Any]:
    """Its operator."""
    with Redis.from_url(own.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def world(own: EmbeddedServer, tmp_path: Path, partitions: int) -> Iterator[Services]:
    """Services on `own`; all work they were given is done when they stop."""
    with running_services(own.url, tmp_path, partitions=partitions) as services:
        yield services
    assert_nothing_left(own)


def assert_nothing_left(server: EmbeddedServer) -> None:
    with Redis.from_url(server.url, decode_responses=True) as client:
        assert not leftovers(client)


def slow(value: Any, seconds: float) -> dict[str, Any]:
    return {"mood": "slow", "seconds": seconds, "value": value}


@asynccontextmanager
async def clients(gateway: Service) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=PATIENCE_S) as client:
        yield client


def url_of(prediction_id: str) -> str:
    return f"/predict/{prediction_id}"


async def put(
    client: httpx2.AsyncClient, prediction_id: str, input_: Any, mode: str = "true"
) -> httpx2.Response:
    return await client.put(url_of(prediction_id), json={"input": input_}, headers={"Async-Mode": mode})


async def put_until_accepted(client: httpx2.AsyncClient, prediction_id: str, input_: Any) -> None:
    """What a careful client does: the same request again until it is told that it was taken."""
    while (answer := await put(client, prediction_id, input_)).status_code != 202:
        assert_refused(answer)
        await asyncio.sleep(0.1)


def assert_refused(answer: httpx2.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert set(answer.json()) <= {"error", "prediction_id"}


async def result(client: httpx2.AsyncClient, prediction_id: str) -> Any:
    """Its result, once it has succeeded."""
    answer = await client.get(url_of(prediction_id), params={"wait": PATIENCE_S / 2})
    assert answer.headers["Prediction-Status"] == "succeeded", answer.text
    return answer.json()["output"]["result"]


def attempts(server: EmbeddedServer, ids: list[str], partitions: int) -> set[str]:
    with Redis.from_url(server.url, decode_responses=True) as client:
        return {client.hget(keys.job(i, partitions), "attempt") for i in ids}


async def all_ready(*services: Service) -> None:
    await eventually(lambda: all(service.is_ready() for service in services), PATIENCE_S)


@dataclass
class Waiters:
    """A client of each kind, each waiting for a running prediction of its own."""

    ids: list[str]
    sync: "asyncio.Task[httpx2.Response]"
    long_poll: "asyncio.Task[httpx2.Response]"
    follower: "asyncio.Task[tuple[list[Any], int | None]]"

    async def are_told(self) -> None:
        assert (await self.sync).json()["result"] == {"value": "sync"}
        polled = await self.long_poll
        assert polled.headers["Prediction-Status"] == "succeeded"
        assert polled.json()["output"]["result"] == {"value": "long poll"}
        frames, code = await self.follower
        assert frames[-1]["status"] == "succeeded"
        assert frames[-1]["output"]["result"] == {"value": "follower"}
        assert code == 1000

    async def are_told_it_is_lost(self) -> None:
        answer = await self.sync
        assert_refused(answer)
        assert answer.json() == {
            "error": "The prediction was lost with the job store's data: send it again.",
            "prediction_id": self.ids[0],
        }
        polled = await self.long_poll
        assert (polled.status_code, polled.json()) == (404, NOT_FOUND)
        frames, code = await self.follower
        assert (frames[-1], code) == (NOT_FOUND, 4404)


async def follow(gateway: Service, prediction_id: str) -> tuple[list[Any], int | None]:
    """The frames of a WebSocket, and how it was closed."""
    frames = []
    async with connect(f"{gateway.url.replace('http', 'ws')}/ws/predict/{prediction_id}") as socket:
        with suppress(ConnectionClosed):
            while True:
                frames.append(json.loads(await socket.recv()))
    return frames, socket.close_code


@asynccontextmanager
async def waiting(
    server: EmbeddedServer, gateway: Service, partitions: int, *, seconds: float = 0.0, go: Path | None = None
) -> AsyncIterator[Waiters]:
    """Waiters for predictions that take so many seconds each, or until `go` exists, once all three run."""
    ids = [str(uuid.uuid4()) for _ in range(3)]

    def input_(value: str) -> dict[str, Any]:
        return {"after": str(go), "value": value} if go else slow(value, seconds)

    async with clients(gateway) as client, asyncio.TaskGroup() as group:
        sync = group.create_task(put(client, ids[0], input_("sync"), "false"))
        for prediction_id, value in zip(ids[1:], ("long poll", "follower"), strict=True):
            assert (await put(client, prediction_id, input_(value))).status_code == 202
        long_poll = group.create_task(client.get(url_of(ids[1]), params={"wait": PATIENCE_S / 2}))
        follower = group.create_task(follow(gateway, ids[2]))
        with Redis.from_url(server.url, decode_responses=True) as raw:

            def all_run_and_are_watched() -> bool:
                jobs = [raw.hmget(keys.job(i, partitions), "status", "watchers") for i in ids]
                return all(status == "processing" and watchers for status, watchers in jobs)

            await eventually(all_run_and_are_watched)
            for prediction_id in ids:  # behind it on the same connection: the gateway has heard so, too
                await client.get(url_of(prediction_id))
        yield Waiters(ids, sync, long_poll, follower)


# -- killed, and back


@pytest.mark.parametrize("away_s", [0.0, 4.0 * LEASE_S], ids=["a moment", "longer than the lease"])
async def test_killed_and_back(own: EmbeddedServer, world: Services, partitions: int, away_s: float) -> None:
    """503 meanwhile, nothing accepted is lost, who waits is told, nobody takes a running prediction from the living."""
    gateway = world.gateway()
    processors = [world.processor(MOODY, LEASE_S=LEASE_S, MODEL_PROCESSES=2) for _ in range(2)]
    services = [gateway, *processors]
    queued = [str(uuid.uuid4()) for _ in range(10)]
    refused = str(uuid.uuid4())
    async with clients(gateway) as client, waiting(own, gateway, partitions, seconds=away_s + 1) as waiters:
        for i, prediction_id in enumerate(queued):
            await put_until_accepted(client, prediction_id, slow(i, 0.01))
        own.kill()
        until = time.monotonic() + away_s
        await eventually(lambda: not any(service.is_ready() for service in services))
        assert {service.answers("/livez") for service in services} == {200}
        assert_refused(await put(client, refused, 1))
        assert_refused(await put(client, refused, 1, "false"))
        assert_refused(await client.post("/predict", json={"input": 1}))
        assert_refused(await client.get(url_of(queued[0])))
        await asyncio.sleep(until - time.monotonic())
        own.start()
        await all_ready(*services)
        await waiters.are_told()
        assert [await result(client, i) for i in queued] == [{"value": i} for i in range(10)]
        assert (await client.get(url_of(refused))).status_code == 404
        assert (await put(client, refused, {"value": 2}, "false")).json()["result"] == {"value": 2}
    assert attempts(own, [*waiters.ids, *queued], partitions) == {"1"}
    with Redis.from_url(own.url) as raw:
        assert raw.info("stats")["total_connections_received"] < 20 * len(services) * partitions


async def test_killed_at_once_after_the_202_with_durability_fsync(tmp_path: Path, partitions: int) -> None:
    """The server's file is written behind its answers; what was accepted is in it."""
    with (
        EmbeddedServer(tmp_path / "server", port=free_port(), extra=PUNCTUAL) as own,
        running_services(own.url, tmp_path, partitions=partitions) as world,
    ):
        gateway = world.gateway(DURABILITY="fsync")
        ids = [str(uuid.uuid4()) for _ in range(50)]
        async with clients(gateway) as client:
            answers = await asyncio.gather(*(put(client, i, {"value": i}) for i in ids))
            assert {answer.status_code for answer in answers} == {202}
            own.kill()
            own.start()
            await asyncio.to_thread(world.processor, MOODY)
            await all_ready(gateway)
            assert [await result(client, i) for i in ids] == [{"value": i} for i in ids]


@pytest.fixture
def replica(own: EmbeddedServer, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A replica of `own` that has all of it."""
    extra = [*PUNCTUAL, "--replicaof", f"127.0.0.1 {urlsplit(own.url).port}"]
    with EmbeddedServer(tmp_path / "replica", port=free_port(), extra=extra) as server:
        with Redis.from_url(server.url) as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        yield server


async def test_durability_replicated(
    own: EmbeddedServer, replica: EmbeddedServer, world: Services, partitions: int
) -> None:
    """What was accepted is on the replica when the primary dies; without a replica the 503 says what is the matter."""
    gateway = world.gateway(DURABILITY="replicated")
    ids = [str(uuid.uuid4()) for _ in range(50)]
    async with clients(gateway) as client:
        answers = await asyncio.gather(*(put(client, i, {"value": i}) for i in ids))
        assert {answer.status_code for answer in answers} == {202}
        own.kill()
        with Redis.from_url(replica.url) as raw:
            assert all(raw.exists(keys.job(i, partitions)) for i in ids)
        replica.stop()
        own.start()
        await all_ready(gateway)
        alone = str(uuid.uuid4())
        answer = await put(client, alone, {"value": alone})
        assert_refused(answer)
        assert answer.json()["prediction_id"] == alone
        assert "not yet as safe as DURABILITY asks" in answer.json()["error"]
        world.processor(MOODY)  # it is queued nevertheless, as the 503 says
        assert [await result(client, i) for i in (*ids, alone)] == [{"value": i} for i in (*ids, alone)]


@pytest.mark.parametrize("service", ["gateway", "processor"])
def test_no_storm_of_connections(
    own: EmbeddedServer, world: Services, service: str, partitions: int, tmp_path: Path
) -> None:
    """Against what hangs up at once, the worst kind of being away: refused connections cost it nothing."""
    gateway, processor = world.gateway(), world.processor(MOODY)
    port = urlsplit(own.url).port
    assert port
    with httpx2.Client(base_url=gateway.url) as client:
        answer = client.post("/predict", json={"input": slow(1, 1)}, headers={"Async-Mode": "true"})
        prediction_id = answer.json()["prediction_id"]
        wait_until(lambda: processor.metrics()["foretell_in_hand"])
        frozen = processor if service == "gateway" else gateway
        frozen.send_signal(signal.SIGSTOP)  # only the other one is counted
        own.kill()
        seconds, count = 3.0, 0
        with socket.create_server(("127.0.0.1", port)) as listener:
            until = time.monotonic() + seconds
            while (left := until - time.monotonic()) > 0:
                listener.settimeout(left)
                with suppress(TimeoutError):
                    listener.accept()[0].close()
                    count += 1
        own.start()
        frozen.send_signal(signal.SIGCONT)
        gateway.ready()
        processor.ready()
        answer = client.get(url_of(prediction_id), params={"wait": 30}, timeout=PATIENCE_S)
        assert answer.json()["output"]["result"] == {"value": 1}
    assert 0 < count / seconds < 25 * partitions


# -- back, and empty


@pytest.mark.parametrize("how", ["restarted", "flushed"])
async def test_back_and_empty(forgetful: EmbeddedServer, tmp_path: Path, partitions: int, how: str) -> None:
    """Who waits is told that it is lost, the groups are made again, and service goes on in the same processes."""
    with running_services(forgetful.url, tmp_path, partitions=partitions) as world:
        gateway, processor = world.gateway(), world.processor(MOODY, LEASE_S=LEASE_S, MODEL_PROCESSES=3)
        async with clients(gateway) as client:
            async with waiting(forgetful, gateway, partitions, seconds=8) as waiters:
                if how == "flushed":
                    with Redis.from_url(forgetful.url) as raw:
                        raw.flushall()
                else:
                    forgetful.kill()
                    forgetful.start()
                await waiters.are_told_it_is_lost()
            await all_ready(gateway, processor)
            answer = await client.post("/predict", json={"input": {"value": 1}})
            assert answer.json()["result"] == {"value": 1}
            lost = waiters.ids[0]  # "send it again" is good advice
            assert (await put(client, lost, {"value": 2}, "false")).json()["result"] == {"value": 2}
    assert_nothing_left(forgetful)


@pytest.mark.parametrize("how", ["deleted", "trimmed"])
async def test_a_queue_emptied_by_hand(
    own: EmbeddedServer, raw: Any, world: Services, partitions: int, how: str
) -> None:
    """What waits is found and queued again; what runs goes on where it runs, or again if its processor dies too."""
    gateway = world.gateway()
    processors = [world.processor(MOODY, LEASE_S=LEASE_S) for _ in range(2)]
    async with clients(gateway) as client:
        ids = [str(uuid.uuid4()) for _ in range(20)]
        for n, prediction_id in enumerate(ids):
            await put_until_accepted(client, prediction_id, slow(n, 0.5))
        await eventually(lambda: all(one.metrics()["foretell_in_hand"] for one in processors), PATIENCE_S)
        for p in range(partitions):
            raw.delete(keys.jobs(p)) if how == "deleted" else raw.xtrim(
                keys.jobs(p), maxlen=0, approximate=False
            )
        processors[0].kill()
        assert [(await result(client, i))["value"] for i in ids] == list(range(20))
    assert processors[1].metrics()["foretell_places_lost_total"]
    assert "lost their place in the queue" in processors[1].log


# -- there, and refusing writes


async def test_out_of_memory(own: EmbeddedServer, raw: Any, world: Services, partitions: int) -> None:
    """Nothing new is taken; what was accepted runs, is recorded and told; then all goes on."""
    gateway, processor = world.gateway(), world.processor(MOODY, MODEL_PROCESSES=3)
    async with clients(gateway) as client:
        async with waiting(own, gateway, partitions, seconds=1) as waiters:
            queued = str(uuid.uuid4())
            await put_until_accepted(client, queued, {"value": "queued"})
            raw.config_set("maxmemory", 1)
            assert_refused(await put(client, str(uuid.uuid4()), 1))
            assert_refused(await client.post("/predict", json={"input": 1}))
            await waiters.are_told()
        assert await result(client, queued) == {"value": "queued"}
        assert_refused(await put(client, str(uuid.uuid4()), 1))
        raw.config_set("maxmemory", 0)
        answer = await client.post("/predict", json={"input": {"value": 1}})
        assert answer.json()["result"] == {"value": 1}
        await all_ready(gateway, processor)
    assert attempts(own, [*waiters.ids, queued], partitions) == {"1"}


@pytest.mark.parametrize("how", ["a replica", "too few replicas"])
async def test_read_only(
    own: EmbeddedServer, raw: Any, world: Services, partitions: int, tmp_path: Path, how: str
) -> None:
    """As after a failover that left us with the old primary, until it is put right."""
    gateway, processor = world.gateway(), world.processor(PATIENT, MODEL_PROCESSES=3)
    go = tmp_path / "go"
    async with clients(gateway) as client:
        async with waiting(own, gateway, partitions, go=go) as waiters:
            if how == "a replica":
                raw.replicaof("127.0.0.1", free_port())  # nobody is there
            else:
                raw.config_set("min-replicas-to-write", 1)
            refused = str(uuid.uuid4())
            assert_refused(await put(client, refused, 1))
            assert_refused(await client.post("/predict", json={"input": 1}))
            assert not gateway.is_ready()
            assert not processor.is_ready()
            go.touch()
            await eventually(lambda: processor.metrics()["foretell_predict_seconds_count"] == 3)
            assert processor.metrics()["foretell_in_hand"] == 3  # they have ended, and none can be recorded
            if how == "a replica":
                raw.replicaof("NO", "ONE")
            else:
                raw.config_set("min-replicas-to-write", 0)
            await waiters.are_told()
        assert (await client.get(url_of(refused))).status_code == 404
        answer = await client.post("/predict", json={"input": {"value": 1}})
        assert answer.json()["result"] == {"value": 1}
    assert attempts(own, waiters.ids, partitions) == {"1"}


# -- there, and silent


class HalfOpenProxy:
    """Stands before a server. Connections can be muted for ever in both directions without being closed, the
    subscriptions alone too; new ones are fine."""

    def __init__(self, server: EmbeddedServer) -> None:
        self._server_port = urlsplit(server.url).port
        self._connections: list[Connection] = []
        self._pumps: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "HalfOpenProxy":
        self._listener = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def mute(self, *, only_subscriptions: bool) -> int:
        """Those of now; returns how many."""
        chosen = [c for c in self._connections if c.subscribed or not only_subscriptions]
        for connection in chosen:
            connection.muted = True
        return len(chosen)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        connection = Connection()
        self._connections.append(connection)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            self._pumps.add(asyncio.create_task(connection.pump(source, sink)))


class Connection:
    """One through the proxy."""

    def __init__(self) -> None:
        self.muted = self.subscribed = False

    async def pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                self.subscribed |= b"SSUBSCRIBE" in data
                if not self.muted:
                    sink.write(data)
        finally:
            sink.close()


@pytest.mark.parametrize("only_subscriptions", [True, False], ids=["subscriptions", "all connections"])
async def test_half_open_connections(
    own: EmbeddedServer, tmp_path: Path, partitions: int, only_subscriptions: bool
) -> None:
    """No packet says that the peer is gone. Who waits is told all the same, and a repeat is not a second prediction."""
    async with HalfOpenProxy(own) as proxy:
        with running_services(proxy.url, tmp_path, partitions=partitions) as world:
            gateway = await asyncio.to_thread(world.gateway)
            processor = await asyncio.to_thread(world.processor, MOODY, MODEL_PROCESSES=3)
            async with clients(gateway) as client:
                async with waiting(own, gateway, partitions, seconds=1) as waiters:
                    # in a partition to which there is a connection already
                    careful = keys.moved(str(uuid.uuid4()), keys.partition_of(waiters.ids[0], partitions))
                    assert proxy.mute(only_subscriptions=only_subscriptions) >= 2
                    if not only_subscriptions:
                        assert_refused(await put(client, careful, {"value": 1}))
                    await waiters.are_told()
                await put_until_accepted(client, careful, {"value": 1})
                assert await result(client, careful) == {"value": 1}
            await eventually_ready(gateway, processor)
            assert attempts(own, [*waiters.ids, careful], partitions) == {"1"}
            await asyncio.to_thread(world.stop)
    assert_nothing_left(own)


async def eventually_ready(*services: Service) -> None:
    """`all_ready` that leaves the event loop, in which the proxy lives, its time."""
    for service in services:
        await asyncio.to_thread(service.ready)


def pause(raw: Any) -> None:
    """Longer than any command waits."""
    raw.client_pause(6000)


def forget_scripts(raw: Any) -> None:
    for _ in range(50):
        raw.script_flush()
        time.sleep(0.02)


def cut_all(raw: Any) -> None:
    for _ in range(50):
        raw.client_kill_filter(_type="normal", skipme=True)
        time.sleep(0.02)


@pytest.mark.parametrize("disturb", [pause, forget_scripts, cut_all])
async def test_disturbed_under_load(
    own: EmbeddedServer, raw: Any, world: Services, partitions: int, disturb: Callable[[Any], None]
) -> None:
    """Clients that repeat what was not answered with 2xx: each prediction runs once, and has its own result."""
    gateway = world.gateway()
    processors = [world.processor(MOODY) for _ in range(2)]
    done: dict[str, Any] = {}
    stop = asyncio.Event()

    async def load(client: httpx2.AsyncClient, number: int) -> None:
        for step in range(10**9):
            if stop.is_set():
                return
            value = f"{number} {step}"
            headers = {"Idempotency-Key": value}
            while True:
                answer = await client.post("/predict", json={"input": {"value": value}}, headers=headers)
                if answer.status_code == 200:
                    break
                assert_refused(answer)
                await asyncio.sleep(0.05)
            assert answer.json()["result"] == {"value": value}
            done[answer.headers["Prediction-Id"]] = value

    async with clients(gateway) as client, asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(load(client, number))
        await eventually(lambda: len(done) > 50)
        await asyncio.to_thread(disturb, raw)
        before = len(done)
        await eventually(lambda: len(done) > before + 50, PATIENCE_S)
        stop.set()
    assert len(raw.keys("*:job:*")) == len(done)
    assert attempts(own, list(done), partitions) == {"1"}
    succeeded = 'foretell_predictions_total{status="succeeded"}'
    assert sum(processor.metrics()[succeeded] for processor in processors) == len(done)


async def test_a_frozen_server_holds_nobody_up_for_long(
    own: EmbeddedServer, world: Services, partitions: int
) -> None:
    """Requests of every kind at once: none queues behind the timeouts of the others. What was refused may have been
    taken all the same, so the same again is no second prediction."""
    gateway, processor = world.gateway(), world.processor()
    first, *ids = [
        keys.moved(str(uuid.uuid4()), 0) for _ in range(11)
    ]  # in one partition, so over one connection
    async with clients(gateway) as client:
        await put_until_accepted(client, first, first)
        own.send_signal(signal.SIGSTOP)
        requests = [put(client, i, i) for i in ids]
        for _ in ids:
            requests += [client.get(url_of(first)), client.delete(url_of(str(uuid.uuid4())))]
            requests.append(client.get("/readyz"))
        done, late = await asyncio.wait(map(asyncio.create_task, requests), timeout=3 * COMMAND_TIMEOUT_S)
        own.send_signal(signal.SIGCONT)
        for answer in done:
            assert_refused(answer.result())
        await asyncio.gather(*late)
        for i in ids:
            await put_until_accepted(client, i, i)
            assert await result(client, i) == i
    assert attempts(own, [first, *ids], partitions) == {"1"}
    assert processor.metrics()['foretell_predictions_total{status="succeeded"}'] == len([first, *ids])
    assert not late


# -- predictions that kill


async def test_one_that_kills_its_process_each_time(
    own: EmbeddedServer, world: Services, partitions: int
) -> None:
    """It fails after MAX_ATTEMPTS and is kept for people, with the processor that had it last; its neighbours are done."""
    gateway, processor = world.gateway(), world.processor(MOODY_BATCH, MAX_ATTEMPTS=2)
    async with clients(gateway) as client:
        killer, *neighbours = [str(uuid.uuid4()) for _ in range(9)]
        await asyncio.gather(
            put(client, killer, {"mood": "oom-kill"}), *(put(client, i, {"value": i}) for i in neighbours)
        )
        answer = await client.get(url_of(killer), params={"wait": 30})
        assert answer.headers["Prediction-Status"] == "failed"
        assert answer.json()["error"] == (
            "Prediction failed: the model process was killed (SIGKILL), perhaps out of memory, at each of 2 attempts."
        )
        assert [await result(client, i) for i in neighbours] == [{"value": i} for i in neighbours]
        (dead,) = (await client.get("/dead")).json()["dead"]
    assert (dead["prediction_id"], dead["input"], dead["attempts"]) == (killer, {"mood": "oom-kill"}, 2)
    assert dead["error"] == answer.json()["error"]
    assert f"-{processor.pid}-" in dead["processor"]
    assert attempts(own, neighbours, partitions) == {"1"}


@pytest.mark.leaves_jobs("the consumers of the killed processors are swept a minute later")
async def test_one_that_kills_its_processor_each_time(
    own: EmbeddedServer, tmp_path: Path, partitions: int
) -> None:
    (tmp_path / "killer.py").write_text(
        "import os\n\n\ndef killer(input):\n    if input == 'kill':\n"
        "        os.kill(os.getppid(), 9)\n        os.kill(os.getpid(), 9)\n    return input\n"
    )
    settings = {"LEASE_S": LEASE_S, "MAX_ATTEMPTS": 2}
    with running_services(own.url, tmp_path, partitions=partitions) as world:
        gateway = world.gateway()
        async with clients(gateway) as client:
            killer = str(uuid.uuid4())
            await put_until_accepted(client, killer, "kill")
            for _ in range(2):
                doomed = world.processor(f"{tmp_path}/killer.py:killer", wait=False, **settings)
                await eventually(lambda doomed=doomed: doomed.process.poll() is not None, PATIENCE_S)
                doomed.kill()
            world.processor(f"{tmp_path}/killer.py:killer", **settings)
            answer = await client.get(url_of(killer), params={"wait": 30})
            assert answer.json()["error"] == (
                "Prediction given up after 2 attempts: each time its processor died or fell silent."
            )
            (dead,) = (await client.get("/dead")).json()["dead"]
            assert (dead["prediction_id"], dead["attempts"]) == (killer, 2)
            assert f"-{doomed.pid}-" in dead["processor"]
            answer = await client.post("/predict", json={"input": "neighbour"})
            assert answer.json()["result"] == "neighbour"


# -- wrong from the start


def assert_refuses_to_start(service: Service, sentence: str) -> None:
    assert service.process.wait(PATIENCE_S) == 1
    service.kill()  # it has ended, and how has been looked at
    assert service.last_sentence() == sentence
    assert "Traceback" not in service.log


def test_a_server_that_would_evict_is_refused_in_one_line(
    own: EmbeddedServer, raw: Any, world: Services
) -> None:
    raw.config_set("maxmemory-policy", "allkeys-lru")
    for service in (world.gateway(wait=False), world.processor(wait=False)):
        assert_refuses_to_start(
            service,
            "Redis would evict jobs (maxmemory-policy allkeys-lru): set maxmemory-policy noeviction.",
        )


def test_durability_fsync_without_a_file_is_refused_in_one_line(
    own: EmbeddedServer, raw: Any, world: Services
) -> None:
    raw.config_set("appendonly", "no")
    assert_refuses_to_start(
        world.gateway(wait=False, DURABILITY="fsync"),
        "DURABILITY=fsync needs an append-only file: set appendonly yes.",
    )


@pytest.mark.parametrize("how", ["away", "a replica"])
def test_a_start_waits_says_so_once_and_then_serves(
    own: EmbeddedServer, raw: Any, world: Services, how: str
) -> None:
    if how == "away":
        own.stop()
    else:
        raw.replicaof("127.0.0.1", free_port())
    services = [world.gateway(wait=False), world.processor(MOODY, wait=False)]
    for service in services:
        wait_until(lambda service=service: "waiting for the server" in service.log, PATIENCE_S)
        assert (service.answers("/livez"), service.answers("/readyz")) == (200, 503)
    assert_refused(httpx2.post(f"{services[0].url}/predict", json={"input": 1}))
    if how == "away":
        own.start()
    else:
        raw.replicaof("NO", "ONE")
    for service in services:
        assert service.ready().log.count("waiting for the server") == 1
    answer = httpx2.post(f"{services[0].url}/predict", json={"input": {"value": 1}})
    assert answer.json()["result"] == {"value": 1}


# -- the page about it


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs/reliability.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    missing = [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"def {name}\(", (ROOT / path).read_text() if (ROOT / path).exists() else "")
    ]
    assert not missing
    assert {name for path, name in named if path == "tests/chaos/test_redis_faults.py"} == {
        name
        for name in re.findall(r"def (test_\w+)\(", Path(__file__).read_text())
        if not name.startswith("test_every_test_that_the_page")
    }
