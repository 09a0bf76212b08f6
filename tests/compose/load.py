"""Clients of four kinds that ask all the time, and remember what they were promised."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from typing import Any

import httpx2
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from tests.compose.project import Failed

PREDICT_S = 0.05
PATIENCE_S = 120.0
_MAY = {200, 202, 503, 504}  # what an honest service may say while something of it is away


class Load:
    """`with Load(url) as load:` asks; `check` afterwards compares each promise with what is stored."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._numbers = count()
        self._lock = threading.Lock()
        self._promised: dict[str, Any] = {}  # id → the value it was asked for
        self._wrong: list[str] = []
        self.answers: Counter[int | str] = Counter()

    def __enter__(self) -> "Load":
        kinds = (
            self._ask_and_wait,
            self._ask,
            self._ask_and_subscribe,
            self._ask_and_wait,
            self._ask_and_poll,
        )
        self._threads = [threading.Thread(target=self._forever, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    @property
    def accepted(self) -> int:
        return len(self._promised)

    def wait_for_more(self, number: int = 50) -> None:
        """Until so many more have been accepted: it runs again."""
        until, goal = time.monotonic() + PATIENCE_S, self.accepted + number
        while self.accepted < goal:
            if time.monotonic() > until:
                raise Failed(
                    f"not {number} predictions were accepted in {PATIENCE_S:g} s; answers: {self.answers}"
                )
            time.sleep(0.05)

    def check(self) -> None:
        """Raises Failed if an answer was wrong, or if one accepted prediction has not its one right result."""
        with httpx2.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            for prediction_id, value in self._promised.items():
                answer = client.get(f"/predict/{prediction_id}", params={"wait": 60})
                output = answer.json().get("output")
                if answer.status_code != 200 or output["result"] != {"value": value}:
                    self._wrong.append(f"{prediction_id}: {answer.status_code} {answer.text[:200]}")
        if self._wrong:
            raise Failed(f"{len(self._wrong)} of {self.accepted} went wrong: " + "; ".join(self._wrong[:5]))

    def _forever(self, ask: Callable[[httpx2.Client, int], None]) -> None:
        with httpx2.Client(base_url=self._url, timeout=60, trust_env=False) as client:
            while not self._stop.is_set():
                try:
                    ask(client, next(self._numbers))
                except (httpx2.TransportError, OSError, WebSocketException) as error:
                    self.answers[type(error).__name__] += 1
                    time.sleep(0.1)

    def _post(self, client: httpx2.Client, value: int, mode: str) -> httpx2.Response:
        body = {"input": {"mood": "slow", "seconds": PREDICT_S, "value": value}}
        answer = client.post("/predict", json=body, headers={"Async-Mode": mode})
        with self._lock:
            self.answers[answer.status_code] += 1
            if answer.status_code not in _MAY:
                self._wrong.append(f"{value}: {answer.status_code} {answer.text[:200]}")
            elif "Prediction-Id" in answer.headers:
                self._promised[answer.headers["Prediction-Id"]] = value
        if answer.status_code == 503:
            time.sleep(0.1)
        return answer

    def _ask(self, client: httpx2.Client, value: int) -> None:
        self._post(client, value, "true")
        time.sleep(2 * PREDICT_S)

    def _ask_and_wait(self, client: httpx2.Client, value: int) -> None:
        answer = self._post(client, value, "false")
        if answer.status_code == 200 and answer.json()["result"] != {"value": value}:
            self._wrong.append(f"{value}: {answer.text[:200]}")

    def _ask_and_poll(self, client: httpx2.Client, value: int) -> None:
        answer = self._post(client, value, "true")
        if answer.status_code == 202:
            client.get(answer.headers["Location"], params={"wait": 20})

    def _ask_and_subscribe(self, client: httpx2.Client, value: int) -> None:
        answer = self._post(client, value, "true")
        if answer.status_code != 202:
            return
        url = f"{self._url.replace('http', 'ws', 1)}/ws{answer.headers['Location']}"
        with connect(url, proxy=None, open_timeout=20) as socket:
            for frame in socket:
                last = json.loads(frame)
        if last.get("status") == "succeeded" and last["output"]["result"] != {"value": value}:
            self._wrong.append(f"{value}: {frame!r}")
