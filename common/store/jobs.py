"""The gateway's half of the store: submit, watch, cancel. One method for each transition, a Lua page behind each.

It must never change a job outside a transition, and never let redis-py's errors out: callers see StoreUnavailable
(try again, every transition may be repeated) or StoreMisconfigured. The key map is in `keys.py`, the fields of a job
are in `transitions/shared.lua`.
"""

import asyncio
from functools import partial
from typing import Any, NamedTuple

import orjson

from common.store.connections.dial import Command
from common.store.connections.errors import understood
from common.store.group_commit import GroupCommit
from common.store.script import Script
from common.store.session import Durability, Session
from common.store.states import STATUS_OF, JobState

DURABLE_MS = 2000
_WAITS: dict[Durability, Command | None] = {
    "server": None,
    "replicated": ("WAIT", 1, DURABLE_MS),
    "fsync": ("WAITAOF", 1, 0, DURABLE_MS),
}

_SUBMIT = Script("submit", needs_memory=True)
_WATCH = Script("watch")
_CANCEL = Script("cancel")


class Submission(NamedTuple):
    """A job to be: `input` is JSON text; with `watch` this process is notified of its end; it expires `deadline_us` from
    now; `key` is the digest of an Idempotency-Key, `trace` the request's trace context (see `common.tracing`). With a
    `digest` of it, the input is dropped at the end."""

    id: str
    input: bytes
    watch: bool = False
    deadline_us: int | None = None
    key: str = ""
    trace: str = ""
    digest: str = ""


class SubmitReply(NamedTuple):
    """`decision` is "queued", "known" (same id or key, same input: nothing done), "conflict" or "full"; `id` is that of
    the first submission if the key is known. Not `durable`: it did not get as far as `durability` asks in time, so it
    may run, but a fault of the server now could lose it."""

    decision: str
    id: str
    durable: bool = True


class Jobs:
    """Jobs as those see them who submit and wait. What is asked at the same time leaves in one call."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._wait = _WAITS[session.durability]
        partitions = range(session.partitions)
        self._submits = [
            GroupCommit(partial(self._submit, p), size=lambda s: len(s.input)) for p in partitions
        ]
        self._watches = [GroupCommit(partial(self._watch, p)) for p in partitions]

    def submit(self, submission: Submission) -> asyncio.Future[SubmitReply]:
        """An id that comes with a key must be in the partition of that key: see `keys.partition_of_key`."""
        return self._submits[self._session.partition_of(submission.id)].call(submission)

    def watch(self, prediction_id: str, *, changes: bool = False) -> asyncio.Future[JobState | None]:
        """The state now (None: unknown). If it is not final, this process is notified of the final one; with `changes`, of
        every one."""
        watcher = ("+" if changes else "") + self._session.name
        return self._watches[self._session.partition_of(prediction_id)].call((prediction_id, watcher))

    def read(self, prediction_id: str) -> asyncio.Future[JobState | None]:
        """The state now; None: unknown."""
        return self._watches[self._session.partition_of(prediction_id)].call((prediction_id, ""))

    async def cancel(self, prediction_id: str, sentence: str, *, only_mine: bool = False) -> str:
        """One of "cancelled", "finished" (too late), "unknown", or "watched" (with `only_mine`: others wait for it)."""
        p = self._session.partition_of(prediction_id)
        only = self._session.name if only_mine else ""
        args = (prediction_id, orjson.dumps(sentence), self._session.result_ttl_s, only)
        reply = await _CANCEL(self._session.link("control", p), *args)
        with understood():
            return str(reply.decode())

    async def _submit(self, p: int, submissions: list[Submission]) -> list[SubmitReply]:
        args: list[Any] = [self._session.queue_limit(p), self._session.byte_limit(p), self._session.name]
        for s in submissions:
            deadline_us = "" if s.deadline_us is None else s.deadline_us
            args += (s.id, s.input, "1" if s.watch else "", deadline_us, s.key, s.trace, s.digest)
        link = self._session.link("submit", p)
        durable = True
        if self._wait is None:
            replies = await _SUBMIT(link, *args)
        else:
            replies, reached = await _SUBMIT(link, *args, then=[self._wait])
        with understood():
            if self._wait is not None:
                durable = bool(reached[0] if isinstance(reached, list) else reached)
            texts = iter(map(bytes.decode, replies))
            answered = zip(submissions, texts, texts, strict=True)
            return [SubmitReply(decision, id_, durable) for _, decision, id_ in answered]

    async def _watch(self, p: int, looks: list[tuple[str, str]]) -> list[JobState | None]:
        args = [field for look in looks for field in look]
        replies = await _WATCH(self._session.link("watch", p), *args)
        with understood():
            return [_state(reply) if reply else None for _, reply in zip(looks, replies, strict=True)]


def _state(reply: list[bytes]) -> JobState:
    status, input_, fault, payload, queue_us, predict_us, digest = reply
    times = int(queue_us), int(predict_us)
    return JobState(STATUS_OF[status], input_, fault.decode(), payload, *times, digest.decode())
