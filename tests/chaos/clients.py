"""The clients: every way to ask and to wait, each writing down what it was told.

A refused or broken connection, a 429 and a 503 are what a fault may do to a client: it asks again, as a good client
does. Everything else it is told must be true for ever. Who waits gives up after `wait_s`: then it was left untold.
"""

import asyncio
import itertools
import json
import random
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import httpx2
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.chaos.journal import FINAL, Journal, Told
from tests.chaos.stage import SYNC_WAIT_S

WAIT_S = (
    90.0  # longer than what all faults together may cost: downtimes, leases, restarts, six attempts that hang
)
REQUEST_S = SYNC_WAIT_S + 10.0
LONG_POLL_S = 8
PAUSE_S = 0.1
POISONS = ("crash", "hang", "raise", "rubbish", "busy", "large")
LATER = {429, 503}

NEXT = {  # which frame may follow which
    "queued": {"processing", *FINAL},
    "processing": {"queued", *FINAL},
}


class Broken(Exception):
    """The connection broke, or the answer was "later": nothing was learned."""


class Clients:
    """`run(stop, number)` keeps so many of them busy. What they ask is drawn as they get along, so it is not the same
    in every run of a seed. `forgetful`: servers that may forget a final state when they fail
    over; the prediction then runs again, so only clients whose outcome does not depend on chance or time are let in."""

    def __init__(
        self,
        journal: Journal,
        urls: list[str],
        rng: random.Random,
        *,
        forgetful: bool = False,
        poison: float = 0.04,
        wait_s: float = WAIT_S,
    ) -> None:
        self._wait_s = wait_s
        self._journal = journal
        self._urls = urls
        self._rng = rng
        self._poison = poison
        self._poisons = [p for p in POISONS if not (forgetful and p == "busy")]
        self._numbers = itertools.count(rng.randrange(1 << 40))
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.synchronous, self.polling, self.long_polling, self.socket, self.put, self.keyed
        ]  # fmt: skip
        self._forgetful = forgetful
        self._kinds = kinds if forgetful else [*kinds, self.cancelling, self.hanging_up, self.with_deadline]

    async def run(self, stop: asyncio.Event, number: int) -> None:
        self._http = httpx2.AsyncClient(timeout=REQUEST_S, limits=httpx2.Limits(max_connections=None))
        async with self._http, asyncio.TaskGroup() as group:
            for at in range(number):
                group.create_task(self._repeat(self._kinds[at % len(self._kinds)], stop))

    async def in_peace(self) -> None:
        """No fault is on any more and nobody else asks: every gateway has the result in time."""
        async with httpx2.AsyncClient(timeout=REQUEST_S) as http:
            for url in self._urls:
                input_ = self._input(ms=1) | {"poison": None}
                answer = await http.post(f"{url}/predict", json={"input": input_})
                self._journal.count("in peace", str(answer.status_code))
                if answer.status_code == 200:
                    await self._sync_answer(answer, input_, "in peace")
                else:
                    self._journal.untold.append(f"in peace: {answer.status_code} {answer.text}")

    async def _repeat(self, kind: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        while not stop.is_set():
            await kind()
            await asyncio.sleep(self._rng.uniform(0, PAUSE_S))

    # -- kinds

    async def synchronous(self) -> None:
        input_ = self._input()
        try:
            answer = await self._send("POST", "/predict", json={"input": input_})
        except Broken:
            return self._journal.count("sync", "broken")
        self._journal.count("sync", str(answer.status_code))
        await self._sync_answer(answer, input_, "sync")

    async def polling(self) -> None:
        prediction_id = await self._submit("polling")
        if prediction_id:
            await self._poll(prediction_id, "polling")

    async def long_polling(self) -> None:
        prediction_id = await self._submit("long poll")
        if prediction_id:
            await self._poll(prediction_id, "long poll", params={"wait": LONG_POLL_S})

    async def socket(self) -> None:
        """One or two subscribers, at once or late."""
        prediction_id = await self._submit("socket")
        if not prediction_id:
            return
        if self._rng.random() < 0.3:
            await asyncio.sleep(self._rng.uniform(0, 0.3))
        await asyncio.gather(*[self._follow(prediction_id) for _ in range(self._rng.choice((1, 1, 2)))])

    async def put(self) -> None:
        """The same PUT until it is answered, sometimes through two gateways at once."""
        prediction_id, input_ = str(uuid.uuid4()), self._input()
        asks = [
            self._insist("put", "PUT", f"/predict/{prediction_id}", input_)
            for _ in range(self._rng.choice((1, 2)))
        ]
        ids = set(await asyncio.gather(*asks)) - {None}
        if ids - {prediction_id}:
            self._journal.wrong.append(f"PUT {prediction_id} was answered with {ids}")
        if ids:
            await self._poll(prediction_id, "put")

    async def keyed(self) -> None:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        input_ = self._input()
        asks = [
            self._insist("keyed", "POST", "/predict", input_, headers)
            for _ in range(self._rng.choice((1, 2)))
        ]
        ids = set(await asyncio.gather(*asks)) - {None}
        if len(ids) > 1:
            self._journal.wrong.append(f"one Idempotency-Key was answered with {ids}")
        for prediction_id in ids:
            await self._poll(prediction_id or "", "keyed")

    async def cancelling(self) -> None:
        prediction_id = await self._submit("cancelling", ms=self._rng.choice((5, 200, 600)))
        if not prediction_id:
            return
        await asyncio.sleep(self._rng.uniform(0, 0.3))
        self._journal.wished(prediction_id, "cancelled")
        with suppress(Broken):
            answer = await self._send("DELETE", f"/predict/{prediction_id}")
            self._journal.note(prediction_id, f"cancelling: {answer.status_code}")
            self._journal.count("cancelling", f"DELETE {answer.status_code}")
            if answer.status_code == 200:
                self._final(prediction_id, answer, "cancelling")
            elif answer.status_code not in (409, *LATER):
                self._journal.wrong.append(f"DELETE {prediction_id} was answered with {answer.status_code}")
        await self._poll(prediction_id, "cancelling")

    async def hanging_up(self) -> None:
        """Nobody knows the id: what becomes of it, the checker finds in Redis."""
        with suppress(httpx2.HTTPError):
            body = {"input": self._input(ms=400)}
            await self._http.post(f"{self._url()}/predict", json=body, timeout=self._rng.uniform(0.05, 0.4))
        self._journal.count("hanging up", "done")

    async def with_deadline(self) -> None:
        headers = {"Prediction-Deadline": f"{self._rng.choice((20, 200, 2000))}ms"}
        prediction_id = await self._submit("deadline", ms=self._rng.choice((5, 300)), headers=headers)
        if prediction_id:
            self._journal.wished(prediction_id, "expired")
            await self._poll(prediction_id, "deadline")

    # -- what they do

    def _input(self, ms: float | None = None) -> dict[str, Any]:
        poison = self._rng.choice(self._poisons) if self._rng.random() < self._poison else None
        return {
            "n": next(self._numbers),
            "ms": self._rng.uniform(0, 10) if ms is None else ms,
            "poison": poison,
        }

    def _url(self) -> str:
        return self._rng.choice(self._urls)

    async def _send(self, method: str, path: str, **more: Any) -> httpx2.Response:
        try:
            return await self._http.request(method, self._url() + path, **more)
        except httpx2.ReadTimeout:
            self._journal.untold.append(f"{method} {path} had no answer within {REQUEST_S:g} s")
            raise Broken from None
        except httpx2.HTTPError:
            raise Broken from None

    async def _submit(
        self, kind: str, *, ms: float | None = None, headers: dict[str, str] | None = None
    ) -> str | None:
        input_ = self._input(ms)
        try:
            answer = await self._send(
                "POST", "/predict", json={"input": input_}, headers={"Async-Mode": "true"} | (headers or {})
            )
        except Broken:
            self._journal.count(kind, "broken")
            return None
        self._journal.count(kind, str(answer.status_code))
        return self._accepted(answer, input_, kind)

    def _accepted(self, answer: httpx2.Response, input_: dict[str, Any], kind: str) -> str | None:
        """The id, if the answer says that the prediction was accepted."""
        if answer.status_code == 202 or answer.status_code in LATER:
            prediction_id = _kept(answer)
            if prediction_id:
                self._journal.accepted(prediction_id, input_, kind)
            return prediction_id
        self._journal.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]} to {input_}")
        return None

    async def _insist(
        self, kind: str, method: str, path: str, input_: dict[str, Any], headers: dict[str, str] | None = None
    ) -> str | None:
        """The id, once an answer names one."""
        until = asyncio.get_running_loop().time() + self._wait_s
        asynchronous = {"Async-Mode": self._rng.choice(("true", "false"))}
        while asyncio.get_running_loop().time() < until:
            try:
                answer = await self._send(
                    method, path, json={"input": input_}, headers=asynchronous | (headers or {})
                )
            except Broken:
                self._journal.count(kind, "broken")
                await asyncio.sleep(0.1)
                continue
            self._journal.count(kind, str(answer.status_code))
            prediction_id = await self._sync_answer(answer, input_, kind, follow=False)
            if prediction_id:
                return prediction_id
            await asyncio.sleep(0.2)
        self._journal.untold.append(f"{method} {path} was not accepted in {self._wait_s:g} s")
        return None

    async def _sync_answer(
        self, answer: httpx2.Response, input_: dict[str, Any], kind: str, *, follow: bool = True
    ) -> str | None:
        """Note what it says; returns the id if it names one."""
        prediction_id = answer.headers.get("Prediction-Id")
        status = answer.headers.get("Prediction-Status")
        if answer.status_code in (202, *LATER) or (answer.status_code == 504 and status is None):
            prediction_id = _kept(answer)
            if prediction_id:
                self._journal.accepted(prediction_id, input_, kind)
                if follow:
                    await self._poll(prediction_id, kind)
            return prediction_id
        if prediction_id is None or status not in FINAL:
            self._journal.wrong.append(f"{kind}: {answer.status_code} {answer.text[:200]} to {input_}")
            return None
        self._journal.accepted(prediction_id, input_, kind)
        body = answer.json()
        if status == "succeeded" and body["input"] != input_:
            self._journal.wrong.append(f"{prediction_id} came back with the input {body['input']}")
        self._journal.told(prediction_id, Told(status, body.get("result", body.get("error"))), kind)
        return prediction_id

    async def _poll(self, prediction_id: str, kind: str, params: dict[str, Any] | None = None) -> None:
        until = asyncio.get_running_loop().time() + self._wait_s
        while asyncio.get_running_loop().time() < until:
            with suppress(Broken):
                ended = not self._forgetful and self._journal.ended(prediction_id)
                answer = await self._send("GET", f"/predict/{prediction_id}", params=params)
                if answer.status_code == 200:
                    return self._final(prediction_id, answer, kind)
                if ended and answer.status_code == 202:
                    self._journal.wrong.append(
                        f"GET {prediction_id}: {answer.text[:100]} after its end was told"
                    )
                if answer.status_code != 202 and answer.status_code not in LATER:
                    self._journal.note(prediction_id, f"{kind}: GET {answer.status_code} {answer.text[:100]}")
                    self._journal.wrong.append(f"GET {prediction_id}: {answer.status_code}")
                    return None
            await asyncio.sleep(0.05 if params is None else 0.01)
        self._journal.untold.append(f"{prediction_id}: {kind} saw no final state in {self._wait_s:g} s")
        return None

    def _final(self, prediction_id: str, answer: httpx2.Response, kind: str) -> None:
        body = answer.json()
        status = answer.headers["Prediction-Status"]
        result = body["output"]["result"] if status == "succeeded" else body["error"]
        self._journal.told(prediction_id, Told(status, result), kind)

    async def _follow(self, prediction_id: str) -> None:
        """Subscribe, again after each cut, until the final frame."""
        until = asyncio.get_running_loop().time() + self._wait_s
        while (left := until - asyncio.get_running_loop().time()) > 0:
            with suppress(
                OSError, TimeoutError, ConnectionClosed, InvalidHandshake, InvalidMessage, EOFError
            ):
                async with asyncio.timeout(left):
                    if await self._frames(prediction_id):
                        return
            self._journal.count("socket", "reconnect")
            await asyncio.sleep(0.1)
        self._journal.untold.append(f"{prediction_id}: a socket saw no final frame in {self._wait_s:g} s")

    async def _frames(self, prediction_id: str) -> bool:
        """Whether the final frame came."""
        url = f"{self._url().replace('http', 'ws')}/ws/predict/{prediction_id}"
        status = ""
        ended = not self._forgetful and self._journal.ended(prediction_id)
        async with connect(url, proxy=None, max_size=1 << 24, open_timeout=REQUEST_S) as socket:
            async for text in socket:
                frame = json.loads(text)
                if "status" not in frame:
                    if "not found" in frame["error"]:
                        self._journal.wrong.append(f"a socket was told of {prediction_id}: {frame['error']}")
                        return True
                    return False
                if status and frame["status"] not in NEXT.get(status, ()):
                    self._journal.wrong.append(f"{prediction_id}: frame {frame['status']} after {status}")
                status = frame["status"]
                if ended and status not in FINAL:
                    self._journal.wrong.append(f"{prediction_id}: frame {status} after its end was told")
                if status in FINAL:
                    answer = frame["output"]["result"] if status == "succeeded" else frame["error"]
                    self._journal.told(prediction_id, Told(status, answer), "socket")
        return status in FINAL


def _kept(answer: httpx2.Response) -> str | None:
    """The id of what was accepted for good: not if the answer says that it is not yet as safe as DURABILITY asks."""
    body = answer.json()
    return None if "not yet as safe" in body.get("error", "") else body.get("prediction_id")
