"""Where the chaos happens: a server, gateways and processors, each behind a proxy of its own, started again whenever
they end, as an orchestrator would do."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from tests.chaos.proxy import Proxy
from tests.services import ROOT, Service
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

LEASE_S = 2.0
SYNC_WAIT_S = 10.0
START_S = 30.0
WHOLE_S = 60.0
STOP_S = 20.0
SETTINGS = {
    "HOST": "127.0.0.1",
    "LEASE_S": str(LEASE_S),
    "SYNC_WAIT_S": str(SYNC_WAIT_S),
    "PREDICT_TIMEOUT_S": "1.5",
    "MAX_ATTEMPTS": "6",  # so many that only poison is given up
    "MAX_BATCH_SIZE": "8",
    "DRAIN_S": "5",
    "SHUTDOWN_DELAY_S": "0.1",
    "RESULT_TTL_S": "3600",
}


@dataclass
class Member:
    """One service that shall run, in whichever incarnation."""

    kind: str
    number: int
    port: int
    env: dict[str, str]
    folder: Path
    proxy: Proxy | None
    command: Sequence[str] = ()  # instead of `-m kind`: a planted fault
    service: Service | None = None
    incarnations: int = 0
    in_hands: asyncio.Lock = field(default_factory=asyncio.Lock)  # of one fault that ends and starts it

    def start(self) -> None:
        log = self.folder / f"{self.kind}-{self.number}-{self.incarnations}.log"
        self.incarnations += 1
        self.service = Service(self.kind, self.port, self.env, log, command=self.command)

    @property
    def running(self) -> bool:
        return self.service is not None and self.service.process.poll() is None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def ready(self) -> None:
        """Raises TimeoutError."""
        assert self.service is not None
        async with asyncio.timeout(START_S):
            while not await asyncio.to_thread(self.service.is_ready):
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        """Its exit code. Raises TimeoutError."""
        assert self.service is not None
        async with asyncio.timeout(STOP_S):
            while self.service.process.poll() is None:
                await asyncio.sleep(0.02)
        return self.service.process.poll() or 0

    def send(self, number: int) -> None:
        if self.running:
            assert self.service is not None
            self.service.send_signal(number)

    def children(self) -> list[int]:
        """Its model processes."""
        assert self.service is not None
        try:
            text = Path(f"/proc/{self.service.pid}/task/{self.service.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]


class Stage:
    """`servers` have kill() and start(): what a fault may do to them. `admin` is a connection behind no proxy."""

    def __init__(self, folder: Path, *, planted: Sequence[str] = ()) -> None:
        self.folder = folder
        self.planted = planted
        self.members: list[Member] = []
        self.partitions = 1
        self.servers: list[Any] = []
        self.url = ""
        self.is_whole: Callable[[], bool] = lambda: True

    @property
    def gateways(self) -> list[Member]:
        return [member for member in self.members if member.kind == "gateway"]

    @property
    def processors(self) -> list[Member]:
        return [member for member in self.members if member.kind == "processor"]

    @property
    def proxies(self) -> list[Proxy]:
        return [member.proxy for member in self.members if member.proxy]

    async def add(self, kind: str, stack: AsyncExitStack, **settings: str) -> None:
        proxy, url = None, self.url
        if url.startswith("redis://"):
            proxy = Proxy(int(url.rsplit(":", 1)[1].split("/")[0]))
            url = f"redis://127.0.0.1:{await proxy.start()}/0"
            stack.push_async_callback(proxy.aclose)
        port = free_port()
        env = SETTINGS | {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": url,
            "PARTITIONS": str(self.partitions),
            "PORT" if kind == "gateway" else "PROBE_PORT": str(port),
        }
        number = sum(member.kind == kind for member in self.members)
        command = ["-m", "tests.chaos.planted", kind, *self.planted] if self.planted else ()
        member = Member(kind, number, port, env | settings, self.folder, proxy, command)
        self.members.append(member)
        member.start()

    async def whole(self) -> None:
        """Wait until the servers stand together again. Raises TimeoutError."""
        async with asyncio.timeout(WHOLE_S):
            while not await asyncio.to_thread(self.is_whole):
                await asyncio.sleep(0.1)

    def heal(self) -> None:
        """Undo every fault that is still on, except those of the server."""
        for proxy in self.proxies:
            proxy.heal()
        for member in self.members:
            member.send(signal.SIGCONT)
            if not member.running:
                member.start()

    def stop(self) -> None:
        for member in self.members:
            member.send(signal.SIGCONT)
            member.send(signal.SIGKILL)
        for member in self.members:
            if member.service is not None:
                member.service.process.wait(STOP_S)


@asynccontextmanager
async def open_stage(
    folder: Path,
    *,
    topology: str = "single",
    gateways: int = 2,
    processors: int = 2,
    planted: Sequence[str] = (),
) -> AsyncIterator[Stage]:
    """Everything running and ready."""
    stage = Stage(folder, planted=planted)
    async with AsyncExitStack() as stack:
        more = await _open_servers(stage, stack, topology)
        stack.callback(stage.stop)
        for _ in range(gateways):
            await stage.add("gateway", stack, **more)
        for number in range(processors):
            model = f"{ROOT}/tests/chaos/model.py:{('Batch', 'Single')[number % 2]}"
            await stage.add("processor", stack, MODEL=model)
        await asyncio.gather(*(member.ready() for member in stage.members))
        yield stage


async def _open_servers(stage: Stage, stack: AsyncExitStack, topology: str) -> dict[str, str]:
    """Start them; returns more settings for the gateways."""
    if topology == "single":
        server = stack.enter_context(EmbeddedServer(stage.folder / "server", port=free_port()))
        stage.servers, stage.url = [server], server.url
        return {}
    from tools.redis_topologies import ClusterSet, SentinelSet

    if topology == "cluster":
        cluster = stack.enter_context(ClusterSet(stage.folder / "cluster"))
        stage.servers, stage.url, stage.partitions = cluster.nodes, cluster.url, 3
        stage.is_whole = cluster.is_whole
        return {}
    sentinels = stack.enter_context(SentinelSet(stage.folder / "sentinel"))
    stage.servers, stage.url = sentinels.nodes, sentinels.url
    stage.is_whole = sentinels.is_whole
    return {"DURABILITY": "replicated"}


@asynccontextmanager
async def administrator(url: str) -> AsyncIterator[Any]:
    client = Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()
