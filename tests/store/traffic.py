"""Load on a gateway while its servers change: clients in threads that ask, wait, and ask again when told "later"."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from typing import Any

import httpx2

from common.store.states import FINAL
from tests.conftest import leftovers
from tests.contract.api import Api
from tools.redis_topologies import Node

CLIENTS = 4  # of each kind
PAUSE_S = 0.02
LATER = {429, 503}


class Traffic:
    """What was accepted and what was answered; `faults` are answers that may not be."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count()
        self._stop = threading.Event()
        self.answered = 0
        self.refused = 0
        self.accepted: dict[str, int] = {}
        self.faults: list[str] = []

    def check(self) -> None:
        """Every accepted prediction has ended with its own result."""
        assert not self.faults, self.faults[:5]
        with closing(Api(self._url)) as api:
            for prediction_id, number in self.accepted.items():
                end = api.end(prediction_id)
                assert end.headers["prediction-status"] == "succeeded"
                assert end.json()["output"] == {"input": number, "result": number}

    def run(self) -> list[threading.Thread]:
        kinds = [self._sync, self._async] * CLIENTS
        threads = [threading.Thread(target=self._client, args=(kind,), daemon=True) for kind in kinds]
        for thread in threads:
            thread.start()
        return threads

    def stop(self) -> None:
        self._stop.set()

    def _client(self, ask: Any) -> None:
        with closing(Api(self._url)) as api:
            while not self._stop.wait(PAUSE_S):
                try:
                    ask(api, next(self._numbers))
                except Exception as error:
                    self.faults.append(repr(error))

    def _sync(self, api: Api, number: int) -> None:
        answer = api.post(number)
        if self._is_answer(answer, 200):
            self.accepted[answer.headers["prediction-id"]] = number
            self._compare(answer.json()["result"], number)

    def _async(self, api: Api, number: int) -> None:
        answer = api.post(number, {"Async-Mode": "true"})
        if not self._is_answer(answer, 202):
            return
        prediction_id = answer.json()["prediction_id"]
        self.accepted[prediction_id] = number
        while not self._stop.is_set():
            answer = api.read(prediction_id, "?wait=20")
            if self._is_answer(answer, 200):
                self._compare(answer.json()["output"]["result"], number)
                return

    def _is_answer(self, answer: httpx2.Response, code: int) -> bool:
        if answer.status_code not in {code, *LATER}:
            self.faults.append(f"{answer.status_code} {answer.text}")
        if answer.status_code != code:
            self.refused += 1
            self._stop.wait(0.1)
        return answer.status_code == code

    def _compare(self, result: Any, number: int) -> None:
        if result != number:
            self.faults.append(f"{number} became {result}")
        self.answered += 1


@contextmanager
def traffic(url: str) -> Iterator[Traffic]:
    """Clients at work; afterwards none of them has a complaint."""
    load = Traffic(url)
    threads = load.run()
    try:
        yield load
    finally:
        load.stop()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a client was never answered"
    load.check()


def unfinished(nodes: Iterable[Node]) -> int:
    """Jobs that wait or run."""
    found = 0
    for node in nodes:
        with node.client() as client:
            found += sum(client.zcard(key) for key in client.scan_iter("*:unfinished:*"))
    return found


def assert_clean(nodes: Iterable[Node]) -> None:
    """Nothing is left on the way, and each job was brought to its end once."""
    jobs = finished = 0
    for node in nodes:
        with node.client() as client:
            assert not leftovers(client)
            jobs += sum(1 for _ in client.scan_iter("*:job:*", count=1000))
            for key in client.scan_iter("*:counts:*"):
                finished += sum(int(client.hget(key, status) or 0) for status in FINAL)
    assert finished == jobs
