"""`/queue`: what waits and runs, in numbers; and for the people who run the service what waits, to list and to cancel."""

import re

import orjson
from starlette.types import Receive, Scope, Send

from common.store.queue import QueueStats
from common.store.waiting import WaitingJob
from gateway.answers import answer
from gateway.errors import HttpError
from gateway.gateway import Gateway
from gateway.requests import query_value, read_limit

MODEL = "default"
_CURSOR = re.compile(r"([0-9]{1,3})/(?:[0-9]{1,17}/[0-9a-f-]{36}|/)")

CANCELLED_BY_OPERATOR = "Prediction cancelled: an operator emptied the queue."
NO_QUEUE = "There is no queue of this name: GET /queue lists them."
WHICH = "This cancels all that waits in a queue: say which, as in DELETE /queue?model=default&sure=yes."
SURE = "This cancels all that waits in this queue, and cannot be undone: if you mean it, add sure=yes."


class Queues:
    """GET /queue; DELETE /queue?model=NAME&sure=yes."""

    route = "/queue"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "DELETE":
            await self._empty(scope, send)
        else:
            await self._read(scope, send)

    async def _read(self, scope: Scope, send: Send) -> None:
        self._gateway.check_started()
        stats = await self._gateway.queue.measure()
        body = {"queues": [self._described(stats)]}
        await answer(scope, send, 200, orjson.dumps(body), [])

    def _described(self, stats: QueueStats) -> dict[str, object]:
        return {
            "model": MODEL,
            "waiting": stats.unfinished - stats.running,
            "running": stats.running,
            "unfinished": stats.unfinished,
            "limit": self._gateway.settings.max_queue,
            "oldest_waiting_s": stats.oldest_s,
            "processors": stats.processors,
            "finished_per_s": round(self._gateway.clock.drained_per_s, 3),
            "finished": {status.value: number for status, number in stats.finished.items()},
            "given_up": stats.given_up,
            "dead": stats.dead,
        }

    async def _empty(self, scope: Scope, send: Send) -> None:
        self._gateway.operators.check(scope)
        self._gateway.check_started()
        model = query_value(scope, "model")
        if model is None:
            raise HttpError(400, WHICH)
        if model != MODEL:
            raise HttpError(404, NO_QUEUE)
        if query_value(scope, "sure") != "yes":
            raise HttpError(400, SURE)
        cancelled = await self._gateway.waiting_jobs.cancel_all(CANCELLED_BY_OPERATOR)
        await answer(scope, send, 200, orjson.dumps({"cancelled": cancelled}), [])


class Waiting:
    """GET /queue/waiting: in each partition in the order in which they came, at most `?limit=` of them, `?after=` the
    `next` of the answer before."""

    route = "/queue/waiting"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.operators.check(scope)
        self._gateway.check_started()
        if query_value(scope, "model") not in (None, MODEL):
            raise HttpError(404, NO_QUEUE)
        page = await self._gateway.waiting_jobs.waiting(read_limit(scope), after=self._read_after(scope))
        body = {"waiting": [_described(job) for job in page.jobs], "next": page.cursor or None}
        await answer(scope, send, 200, orjson.dumps(body), [])

    def _read_after(self, scope: Scope) -> str:
        after = query_value(scope, "after") or ""
        match = _CURSOR.fullmatch(after)
        if after and not (match and int(match[1]) < self._gateway.session.partitions):
            raise HttpError(400, "after must be the 'next' of an answer of GET /queue/waiting.")
        return after


def _described(job: WaitingJob) -> dict[str, object]:
    return {
        "prediction_id": job.id,
        "model": MODEL,
        "accepted_at": job.accepted_us / 1e6,  # seconds since the epoch
        "attempts": job.attempts,
        "input_bytes": job.input_bytes,
    }
