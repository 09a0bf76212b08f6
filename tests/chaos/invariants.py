"""What must be true when all is over: the journal of the clients against Redis and the processes.

Lost: accepted, and without a final state. Doubled: two ends told, or one that is not that of its input. Untold: somebody
waited in vain. Leaked: something is left that nobody will ever clean up.
"""

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
from redis.asyncio import Redis

from common.store import keys
from tests.chaos.journal import Journal, Record, Told
from tests.chaos.model import answer
from tests.chaos.stage import Member, Stage

SETTLE_S = 45.0  # the sweeps of relays, leases and dead consumers come within this
RSS_GROWTH = 1.5
RSS_SLACK = 32 << 20
FILES_SLACK = 24

Broken = dict[str, list[str]]

POISON_ERRORS = {
    # a fault may end the last attempt
    "crash": r"the model process exited with code 7|was killed|given up",
    "hang": r"ran longer than|was killed|given up",
    "raise": r"ValueError: \d+ is not to my taste",
    "rubbish": r"the result is not JSON",
    "busy": r"Busy: come back",
}


async def check(stage: Stage, journal: Journal, baseline: dict[str, tuple[int, int]]) -> Broken:
    """Every broken promise, by invariant."""
    broken: Broken = {
        "lost": [],
        "doubled": list(journal.wrong),
        "untold": list(journal.untold),
        "leaked": [],
    }
    broken["leaked"] = await _until_none(lambda: leaks(stage), SETTLE_S)
    broken["leaked"] += [
        growth for member in stage.members for growth in _growth(member, baseline[member.kind])
    ]
    now, before = await _connections(stage), baseline["connections"][0]
    if now > before + FILES_SLACK:
        broken["leaked"].append(f"{now} connections to the servers instead of {before}")
    async with httpx2.AsyncClient(base_url=stage.gateways[0].url, timeout=30) as client:
        ends = {prediction_id: await _read(client, prediction_id) for prediction_id in journal.records}
    for prediction_id, record in journal.records.items():
        told = ends[prediction_id]
        if told is None:
            broken["lost"].append(f"{prediction_id} has no final state")
            continue
        if any(other != told for other in record.told):
            broken["doubled"].append(f"{prediction_id} is {told} and was {record.told}")
        elif not is_right(record, told):
            broken["doubled"].append(f"{prediction_id} is {told}, which is wrong for {record.input}")
    return broken


def is_right(record: Record, told: Told) -> bool:
    """Whether that may have become of this input."""
    n, poison = record.input["n"], record.input["poison"]
    if told.status == "succeeded":
        return poison in (None, "busy", "large") and told.answer == answer(n, poison)
    if told.status == "failed":
        return poison in POISON_ERRORS and bool(re.search(POISON_ERRORS[poison], told.answer))
    return told.status in record.wishes


async def _read(client: httpx2.AsyncClient, prediction_id: str) -> Told | None:
    found = await client.get(f"/predict/{prediction_id}")
    if found.status_code != 200:
        return None
    body, status = found.json(), found.headers["Prediction-Status"]
    return Told(status, body["output"]["result"] if status == "succeeded" else body["error"])


async def _until_none(look: Callable[[], Awaitable[list[str]]], seconds: float) -> list[str]:
    until = asyncio.get_running_loop().time() + seconds
    while (found := await look()) and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.5)
    return found


async def leaks(stage: Stage) -> list[str]:
    """What is still there and should not be."""
    found = [f"an orphaned model process {pid}" for pid in _orphans(stage)]
    for member in stage.members:
        numbers = _metrics(await asyncio.to_thread(_scrape, member))
        for name in ("foretell_waiters", "foretell_in_hand"):
            if numbers.get(name):
                found.append(f"{member.kind} {member.number} has {name} {numbers[name]:g}")
    living = defaultdict(int)
    for server in stage.servers:
        client = Redis.from_url(server.url, decode_responses=True)
        try:
            for stream in [key async for key in client.scan_iter("*:jobs:*")]:
                found += await _of_stream(client, stream)
                for consumer in await client.xinfo_consumers(stream, keys.GROUP):
                    living[consumer["name"]] += 1
            async for key in client.scan_iter("*", count=1000):
                found += await _of_key(client, key)
        finally:
            await client.aclose()
    if len(living) > len(stage.processors):
        found.append(f"{len(living)} consumers of {len(stage.processors)} processors")
    return found


async def _of_stream(client: Any, stream: str) -> list[str]:
    found = []
    if entries := await client.xlen(stream):
        found.append(f"{entries} entries in {stream}")
    for group in await client.xinfo_groups(stream):
        if group["pending"]:
            found.append(f"{group['pending']} pending entries in {stream}")
    return found


async def _of_key(client: Any, key: str) -> list[str]:
    kind = key.split(":")[1]
    if kind in ("job", "key"):
        return [f"{key} has no TTL"] if await client.ttl(key) == -1 else []
    return [f"{key} is there"] if kind not in ("jobs", "counts", "dead", "graves") else []


def _scrape(member: Member) -> str:
    assert member.service is not None
    try:
        return member.service.get("/metrics")[1].decode()
    except OSError:
        return "foretell_waiters 1"  # it does not answer: look again


def _metrics(text: str) -> dict[str, float]:
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def _orphans(stage: Stage) -> list[int]:
    """Model processes of this stage whose processor is gone."""
    processors = {member.service.pid for member in stage.processors if member.service}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = (folder / "cwd").readlink() == stage.folder
            words = (folder / "cmdline").read_bytes().split(b"\0")
            parent = re.search(r"^PPid:\s+(\d+)", (folder / "status").read_text(), re.MULTILINE)
        except OSError:
            continue
        if ours and b"processor.model.child" in words and parent and int(parent[1]) not in processors:
            found.append(int(folder.name))
    return found


async def measure(stage: Stage) -> dict[str, tuple[int, int]]:
    """Resident bytes and open files by kind of service; connections to all servers."""
    sizes = {member.kind: size(member) for member in stage.members}
    return sizes | {"connections": (await _connections(stage), 0)}


async def _connections(stage: Stage) -> int:
    total = 0
    for server in stage.servers:
        client = Redis.from_url(server.url, decode_responses=True)
        try:
            total += (await client.info("clients"))["connected_clients"]
        finally:
            await client.aclose()
    return total


def size(member: Member) -> tuple[int, int]:
    """Resident bytes and open files."""
    assert member.service is not None
    folder = Path(f"/proc/{member.service.pid}")
    pages = int((folder / "statm").read_text().split()[1])
    return pages * 4096, len(list((folder / "fd").iterdir()))


def _growth(member: Member, baseline: tuple[int, int]) -> list[str]:
    (rss, files), (rss_before, files_before) = size(member), baseline
    found = []
    if rss > RSS_GROWTH * rss_before + RSS_SLACK:
        found.append(f"{member.kind} {member.number} has {rss >> 20} MiB instead of {rss_before >> 20}")
    if files > files_before + FILES_SLACK:
        found.append(f"{member.kind} {member.number} has {files} open files instead of {files_before}")
    return found


async def history(stage: Stage, journal: Journal, sentences: list[str]) -> str:
    """All that is known of the predictions that are named."""
    ids = dict.fromkeys(re.findall(r"[0-9a-f]{8}-[0-9a-f-]{27}", " ".join(sentences)))
    lines = []
    for prediction_id in list(ids)[:5]:
        record = journal.records.get(prediction_id)
        lines += [
            f"--- {prediction_id} {record.input if record else ''}",
            *(record.history if record else []),
        ]
        for server in stage.servers:
            client = Redis.from_url(server.url, decode_responses=True)
            try:
                job = await client.hgetall(keys.job(prediction_id, stage.partitions))
                lines += [json.dumps(job)[:1000]] if job else []
            except Exception as error:
                lines.append(str(error))
            finally:
                await client.aclose()
    return "\n".join(lines)
