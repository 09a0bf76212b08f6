"""Ten thousand WebSockets on one gateway: what an idle one takes of its memory, and how soon all are told.

The clients are one process of hand-made frames, so that most of the CPU spent is the gateway's.
"""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from statistics import median, quantiles

import uvloop
from redis.asyncio import Redis

from bench.jobs import JobsWrong, finish_times, queue_jobs
from bench.report import Row, Section, Target
from bench.stage import ROOT, Service, Stage
from common.store.session import Session

SOCKETS = 10_000
INPUT = b'{"text":"a short text","n":1}'
LIMIT_S = 120.0


def measure() -> Section:
    rows = [_row("a prediction each", SOCKETS), _row("all the same prediction", 1)]
    worst = max(float(row["last notified s"]) for row in rows)
    targets = [
        Target(f"{SOCKETS:,} WebSockets: from finish to notification, the last of them, seconds", worst, 2.0),
        Target("gateway memory per idle WebSocket, KiB", float(rows[0]["KiB per socket"]), 40.0),
    ]
    return Section(f"{SOCKETS:,} WebSockets on one gateway", rows, targets)


def _row(name: str, predictions: int) -> Row:
    with Stage() as stage:
        gateway = stage.gateway()
        ids = uvloop.run(_queue(stage, predictions))
        ids = list(islice(ids * SOCKETS, SOCKETS))
        with _clients(gateway, ids[:100]):  # imports, pools and buffers that it makes once
            pass
        before = gateway.rss()
        began = time.perf_counter()
        with _clients(gateway, ids) as clients:
            opened_s = time.perf_counter() - began
            each = (gateway.rss() - before) / SOCKETS
            cpu_s = gateway.cpu_s()
            with stage.processor("echo.py:echo"):
                told = _told(clients)
            cpu_s = gateway.cpu_s() - cpu_s
        finished = uvloop.run(_finished(stage, ids))
    late_s = [(t - f) / 1e6 for t, f in zip(told, finished, strict=True)]
    return {
        "finishes": name,
        "KiB per socket": each / 1024,
        "opened/s": SOCKETS / opened_s,
        "p50 s": median(late_s),
        "p99 s": quantiles(late_s, n=100)[98],
        "last notified s": max(late_s),
        "÷ bare sends": max(late_s) / _bare_sends_s(),
        "gateway µs per socket": cpu_s / SOCKETS * 1e6,
    }


async def _queue(stage: Stage, number: int) -> list[str]:
    session = Session(stage.redis_url, name="bench")
    try:
        return await queue_jobs(session, [INPUT] * number)
    finally:
        await session.aclose()


async def _finished(stage: Stage, ids: list[str]) -> list[int]:
    async with Redis.from_url(stage.redis_url) as client:
        return await finish_times(client, ids)


@contextmanager
def _clients(gateway: Service, ids: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """The process of clients, each of which has had its first frame."""
    command = [sys.executable, "-m", "bench.socket_client", str(gateway.port)]
    clients = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with clients:
        killer = threading.Timer(LIMIT_S, clients.kill)
        killer.start()
        try:
            assert clients.stdin
            clients.stdin.write("\n".join(ids))
            clients.stdin.close()
            if _line(clients) != "open\n":
                raise JobsWrong(f"{len(ids):,} WebSockets could not be opened.")
            yield clients
        finally:
            killer.cancel()
            clients.kill()


def _line(clients: "subprocess.Popen[str]") -> str:
    assert clients.stdout
    return clients.stdout.readline()


def _told(clients: "subprocess.Popen[str]") -> list[int]:
    """When each client had its last frame, µs since the epoch. Raises JobsWrong."""
    told: list[int] = json.loads(_line(clients) or "[0]")
    if not all(told):
        raise JobsWrong(f"Not every WebSocket had its last frame within {LIMIT_S:g} s.")
    return told


def _bare_sends_s() -> float:
    """What it takes to send a frame so often and to read it, without anything else."""
    near, far = socket.socketpair()
    frame = b"x" * 200
    with near, far:
        began = time.perf_counter()
        for _ in range(SOCKETS):
            near.send(frame)
            far.recv(4096)
        return time.perf_counter() - began
