"""Real Valkeys in the two shapes that survive the loss of a server: a primary with a replica and three sentinels
over them, and a cluster of masters. For the tests.

All of them are children of this process on loopback ports, each in a folder of its own, with an append-only file.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis import Redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import RedisError
from redis.retry import Retry

from common.addresses import host_port
from common.errors import StartFault
from common.store import keys
from tools.embedded_server import LOOPBACK, POLL_S, EmbeddedServer
from tools.ports import free_ports

READY_S = 60.0
SERVICE = "foretell"
SLOTS = 16384
# an idle server looks at its clock every 10 ms, not every 100: short blocking reads end in time
_PUNCTUAL = ("--hz", "100")


class Node(EmbeddedServer):
    """One server among several: `kill()` is SIGKILL, `restart()` brings it back on its port with its data."""

    def __init__(
        self, directory: Path, port: int, extra: Sequence[str] = (), *, host: str = LOOPBACK
    ) -> None:
        super().__init__(directory, port=port, host=host, extra=(*_PUNCTUAL, *extra))
        self.port = port

    def restart(self) -> None:
        self.stop()
        self.start()

    def answers(self) -> bool:
        return self.why_not_ready() is None

    def client(self) -> Any:
        """A plain client; close it, or use it in `with`."""
        return Redis.from_url(self.url, decode_responses=True, retry=Retry(NoBackoff(), 0))

    def ask(self, *command: str | int) -> Any:
        """The reply to one command. Raises redis-py's errors."""
        with self.client() as client:
            return client.execute_command(*command)

    def role(self) -> str:
        """One of "master" and "slave", or "" while it does not answer."""
        try:
            return str(self.ask("ROLE")[0])
        except RedisError:
            return ""

    def info(self, section: str) -> dict[str, Any]:
        with self.client() as client:
            found: dict[str, Any] = client.info(section)
            return found


class Sentinel(Node):
    """One sentinel; it writes what it learns into its configuration file."""

    def __init__(self, directory: Path, port: int, primary: int, *, host: str) -> None:
        super().__init__(directory, port, host=host)
        self._file = self.directory / "sentinel.conf"
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file.write_text(
            f"port {port}\n"
            f"bind {host}\n"
            f'dir "{self.directory}"\n'
            f"sentinel monitor {SERVICE} {host} {primary} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )

    def _options(self) -> list[str]:
        return [str(self._file), "--sentinel"]


class Topology:
    """Servers that start and stop together, each of `nodes` by itself, too; `url` belongs into REDIS_URL."""

    url: str
    nodes: list[Node]

    def start(self) -> Self:
        """Launch all and wait until they know each other. Raises StartFault."""
        try:
            for node in self._all():
                node.launch()
            for node in self._all():
                wait_for("a server to answer", node.answers)
            self._introduce()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        for node in self._all():
            node.kill()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _all(self) -> Sequence[Node]:
        return self.nodes

    def _introduce(self) -> None:
        raise NotImplementedError


class SentinelSet(Topology):
    """A primary and a replica (`nodes`), and three `sentinels` of which two must agree. A primary that has been
    silent for a second is replaced."""

    def __init__(self, folder: Path, *, host: str = LOOPBACK) -> None:
        first, second, *others = free_ports(5)
        self.nodes = [
            Node(folder / "first", first, host=host),
            Node(folder / "second", second, ["--replicaof", f"{host} {first}"], host=host),
        ]
        self.sentinels = [Sentinel(folder / f"sentinel-{port}", port, first, host=host) for port in others]
        self.url = f"redis+sentinel://{','.join(host_port(host, port) for port in others)}/{SERVICE}/0"

    def primary(self) -> Node:
        """The node that most sentinels take for the primary. Raises redis-py's errors."""
        votes = []
        for sentinel in self.sentinels:
            if sentinel.pid is not None:
                votes.append(int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]))
        port = max(votes, key=votes.count)
        return next(node for node in self.nodes if node.port == port)

    def is_whole(self) -> bool:
        """Whether one node leads, the other follows, and all sentinels agree."""
        try:
            primary = self.primary()
            (other,) = [node for node in self.nodes if node is not primary]
            found = other.info("replication")
            return (
                primary.info("replication")["role"] == "master"
                and found["role"] == "slave"
                and found["master_port"] == primary.port
                and found["master_link_status"] == "up"
                and all(sentinel.info("sentinel")["master0"]["status"] == "ok" for sentinel in self.sentinels)
            )
        except (RedisError, KeyError):
            return False

    def _all(self) -> Sequence[Node]:
        return [*self.nodes, *self.sentinels]

    def _introduce(self) -> None:
        wait_for(
            "the replica to follow", lambda: self.nodes[1].info("replication")["master_link_status"] == "up"
        )
        for sentinel in self.sentinels:
            wait_for("the sentinels to know each other", partial(_knows_all, sentinel))


def _follows(replica: Node) -> bool:
    return bool(replica.info("replication").get("master_link_status") == "up")


def _knows_all(sentinel: Sentinel) -> bool:
    primary = sentinel.info("sentinel")["master0"]
    return bool(primary["slaves"] == 1 and primary["sentinels"] == 3)


class ClusterSet(Topology):
    """Masters that share the slots equally. With `replicas`, each has one, which takes its place when it has been
    silent for two seconds; without, its slots have nobody then."""

    def __init__(
        self, folder: Path, masters: int = 3, *, replicas: bool = False, host: str = LOOPBACK
    ) -> None:
        ports = free_ports(2 * masters * (2 if replicas else 1))
        self._bus = dict(zip(ports[::2], ports[1::2], strict=True))
        self.nodes = [
            Node(
                folder / f"node-{port}",
                port,
                [
                    *("--cluster-enabled", "yes"),
                    *("--cluster-port", str(bus)),
                    *("--cluster-node-timeout", "2000"),
                    *("--cluster-require-full-coverage", "no"),
                    *("--repl-diskless-sync-delay", "0"),
                ],
                host=host,
            )
            for port, bus in self._bus.items()
        ]
        self._masters, self._replicas = self.nodes[:masters], self.nodes[masters:]
        self._host = host
        self.url = f"redis+cluster://{','.join(host_port(host, port) for port in self._bus)}"

    def owner(self, partition: int) -> Node:
        """The node that says that it has the keys of this partition. Raises redis-py's errors."""
        slot = slot_of(partition)
        for node in self.nodes:
            for first, last, (_, port, *_), *_ in node.ask("CLUSTER", "SLOTS") if node.pid else ():
                if port == node.port and first <= slot <= last:
                    return node
        raise LookupError(f"nobody has slot {slot}")

    def is_whole(self) -> bool:
        """Whether every node sees all slots served."""
        try:
            return all(self._is_whole(node) for node in self.nodes)
        except RedisError:
            return False

    def id_of(self, node: Node) -> str:
        found: str = node.ask("CLUSTER", "MYID")
        return found

    def _introduce(self) -> None:
        share = -(-SLOTS // len(self._masters))
        for place, node in enumerate(self._masters):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", place + 1)
            node.ask("CLUSTER", "ADDSLOTSRANGE", place * share, min((place + 1) * share, SLOTS) - 1)
        first = self.nodes[0]
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", self._host, first.port, self._bus[first.port])
        for node in self.nodes:
            wait_for("the cluster's nodes to know each other", partial(self._is_whole, node))
        for node, master in zip(self._replicas, self._masters, strict=False):  # or no replicas at all
            node.ask("CLUSTER", "REPLICATE", self.id_of(master))
        for node in self._replicas:
            wait_for("the replicas to follow", partial(_follows, node))

    def _is_whole(self, node: Node) -> bool:
        info = _text(node.ask("CLUSTER", "INFO"))
        return all(word in info for word in ("cluster_state:ok", f"cluster_known_nodes:{len(self.nodes)}"))


def _text(info: Any) -> str:
    """redis-py turns CLUSTER INFO into a dict."""
    return (
        "\n".join(f"{name}:{value}" for name, value in info.items()) if isinstance(info, dict) else str(info)
    )


def slot_of(partition: int) -> int:
    return key_slot(keys.tag(partition).encode())


def wait_for(what: str, condition: Callable[[], bool], seconds: float = READY_S) -> None:
    """Until `condition()`; an unreachable server counts as no. Raises StartFault."""
    until = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
            why = ""
        except (RedisError, KeyError) as error:
            why = f": {error!r}"
        if time.monotonic() > until:
            raise StartFault(f"Waited {seconds:g} s for {what}{why}.")
        time.sleep(POLL_S)
