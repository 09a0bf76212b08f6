"""One real server for all tests. Each test finds it empty and must leave it clean: nothing queued, nothing
pending, no consumer, no alarm, no job without a TTL. A test that means to leave some says why:
`@pytest.mark.leaves_jobs("its processor is killed")`.
"""

import asyncio
import faulthandler
import gc
import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from redis import Redis

from tools.embedded_server import EmbeddedServer

POLL_S = 0.01
# for the rest of a test that has failed
TEARDOWN_S = 60.0
MAX_WORKERS = 16
# an idle server looks at its clock every 2 ms, not every 100: short blocking reads end in time
PUNCTUAL = ["--hz", "500"]


_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # the real one: nothing is captured yet


def pytest_unconfigure(config: pytest.Config) -> None:
    os.close(config.stash[_stderr])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tests wait more than they compute: two workers a core. A few tests by name are done before workers have started."""
    named = config.option.keyword or any(".py" in path for path in config.option.file_or_dir)
    return 0 if named else min(2 * (os.cpu_count() or 1), MAX_WORKERS)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "services" in item.fixturenames:
            item.add_marker("slow")


def pytest_exception_interact(node: pytest.Item | pytest.Collector, call: pytest.CallInfo[object]) -> None:
    """A failed test's traceback holds its sockets, and uvloop's Loop.close waits for their end: let go of them. What hangs
    even so ends this process, showing where it stands; pytest-timeout has stopped its clock by now."""
    if isinstance(node, pytest.Item) and call.excinfo and not node.config.option.usepdb:
        _let_go(call.excinfo.value, set())
        gc.collect()
        faulthandler.dump_traceback_later(TEARDOWN_S, exit=True, file=node.config.stash[_stderr])


def _let_go(error: BaseException | None, done: set[int]) -> None:
    if error is None or id(error) in done:  # an error may be its own cause
        return
    done.add(id(error))
    for frame, _ in traceback.walk_tb(error.__traceback__):
        with suppress(RuntimeError):  # it is running
            frame.clear()
            _ = frame.f_locals  # who has looked at it, as pytest has, left a copy: renewed, it is empty
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _let_go(other, done)


def pytest_runtest_logfinish() -> None:
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="session")
def partitions() -> int:
    """PARTITIONS=4 in the environment runs every test on four, in the services too."""
    return int(os.environ.get("PARTITIONS", "1"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """Who stops it or changes its CONFIG takes an EmbeddedServer of their own, or puts it back."""
    with EmbeddedServer(tmp_path_factory.mktemp("server"), aof=False, extra=PUNCTUAL) as embedded:
        yield embedded


@pytest.fixture
def redis_url(server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """The server, empty. Fixtures that start services depend on this one, so it is checked after they stopped."""
    with Redis.from_url(server.url, decode_responses=True) as client:
        client.flushall()
        yield server.url
        if not any(mark.args[0] for mark in request.node.iter_markers("leaves_jobs")):
            found = leftovers(client)
            assert not found, f"the test left in the server: {', '.join(found)}"


def leftovers(client: Any) -> list[str]:
    """What should not be there once all work is done and all services have stopped; `client` decodes responses."""
    found = []
    for stream in sorted(client.scan_iter("*:jobs:*")):
        if entries := client.xlen(stream):
            found.append(f"{entries} entries in {stream}")
        for group in client.xinfo_groups(stream):
            if group["pending"]:
                found.append(f"{group['pending']} pending entries in {stream}")
        found += [f"consumer {consumer['name']} of {stream}" for consumer in _consumers(client, stream)]
    for job in sorted(client.scan_iter("*:job:*", count=1000)):
        if client.ttl(job) == -1:
            found.append(f"{job} ({client.hget(job, 'status')}) without a TTL")
    for alarms in sorted(client.scan_iter("*:alarms:*")):
        found.append(f"{client.zcard(alarms)} alarms in {alarms}")
    for unfinished in sorted(client.scan_iter("*:unfinished:*")):
        found.append(f"{client.zcard(unfinished)} jobs in {unfinished}")
    for counts in sorted(client.scan_iter("*:counts:*")):
        if not client.exists(counts.replace(":counts:", ":unfinished:")) and client.hget(
            counts, "bytes"
        ) not in (None, "0"):
            found.append(f"{client.hget(counts, 'bytes')} bytes in {counts}")
    for key in sorted(client.scan_iter("*:key:*")):
        if client.ttl(key) == -1:
            found.append(f"{key} without a TTL")
    return found


def _consumers(client: Any, stream: str) -> Iterator[dict[str, Any]]:
    for group in client.xinfo_groups(stream):
        yield from client.xinfo_consumers(stream, group["name"])


def wait_until(predicate: Callable[[], Any], timeout: float = 10.0) -> Any:
    """What `predicate` returns as soon as that is true; fails after `timeout` seconds."""
    until = time.monotonic() + timeout
    while not (value := predicate()):
        assert time.monotonic() < until, f"not within {timeout:g} s: {inspect.getsource(predicate).strip()}"
        time.sleep(POLL_S)
    return value


async def eventually(predicate: Callable[[], Any], timeout: float = 10.0) -> Any:
    """`wait_until` for async tests; `predicate` may be async."""
    until = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < until, f"not within {timeout:g} s: {inspect.getsource(predicate).strip()}"
        await asyncio.sleep(POLL_S)
