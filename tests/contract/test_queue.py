"""`/queue`: what waits and runs, in numbers; to list what waits, and to cancel it all."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.contract.api import check_headers, frame, news, refused, rest_of, state
from tests.contract.conftest import PATIENT, Local

pytestmark = pytest.mark.leaves_jobs("without a processor, what waits goes on waiting")

Start = Callable[..., Local]
SURE = "/queue?model=default&sure=yes"


def numbers(api: Local) -> dict[str, Any]:
    answer = api.http.get("/queue")
    assert answer.status_code == 200, answer.text
    check_headers(answer)
    [queue] = answer.json()["queues"]
    return dict(queue)


def page(api: Local, query: str = "") -> dict[str, Any]:
    answer = api.http.get(f"/queue/waiting{query}")
    assert answer.status_code == 200, answer.text
    check_headers(answer)
    assert set(answer.json()) == {"waiting", "next"}
    return dict(answer.json())


def waiting(api: Local, *, limit: int = 20) -> list[dict[str, Any]]:
    """All of it, by pages."""
    found, query = [], f"?limit={limit}"
    while True:
        one = page(api, query)
        assert len(one["waiting"]) <= limit
        found += one["waiting"]
        if one["next"] is None:
            return found
        query = f"?limit={limit}&after={one['next']}"


def emptied(api: Local) -> int:
    answer = api.http.delete(SURE)
    assert answer.status_code == 200, answer.text
    check_headers(answer)
    return int(answer.json()["cancelled"])


def test_its_numbers_are_what_is_there(start: Start) -> None:
    api = start(MAX_QUEUE=50)
    assert numbers(api)["oldest_waiting_s"] is None
    ids = [api.submit("a") for _ in range(3)]
    api.cancel(ids[1])
    found = numbers(api)
    assert 0 <= found.pop("oldest_waiting_s") < 60
    assert found == {
        "model": "default", "waiting": 2, "running": 0, "unfinished": 2, "limit": 50, "processors": 0, "dead": 0,
        "given_up": 0, "finished": {"succeeded": 0, "failed": 0, "cancelled": 1, "expired": 0},
        "finished_per_s": found["finished_per_s"],
    }  # fmt: skip


def test_what_runs_is_counted_apart(start: Start, tmp_path: Path) -> None:
    api = start(model=PATIENT)
    prediction_id = api.submit({"value": 1, "after": str(tmp_path / "go")})
    wait_until(lambda: numbers(api)["running"] == 1)
    assert (numbers(api)["waiting"], numbers(api)["processors"]) == (0, 1)
    assert waiting(api) == []
    (tmp_path / "go").touch()
    api.end(prediction_id)
    assert numbers(api)["finished"]["succeeded"] == 1
    wait_until(lambda: numbers(api)["finished_per_s"] > 0)


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_what_waits_is_listed_in_pages_that_miss_and_repeat_none(
    start: Start, partitions: int, limit: int
) -> None:
    api = start()
    began = time.time()
    ids = [api.submit("x" * i) for i in range(30)]
    listed = waiting(api, limit=limit)
    assert sorted(job["prediction_id"] for job in listed) == sorted(ids)
    by_id = {job["prediction_id"]: job for job in listed}
    assert [by_id[i]["input_bytes"] for i in ids] == [size + 2 for size in range(30)]
    assert all(began - 1 < job["accepted_at"] < time.time() + 1 for job in listed)
    assert {(job["model"], job["attempts"]) for job in listed} == {("default", 0)}
    if partitions == 1:
        assert [job["prediction_id"] for job in listed] == ids


def test_a_retry_that_waits_for_its_time_is_listed(start: Start, tmp_path: Path) -> None:
    api = start(model=PATIENT)
    value = {"value": 1, "busy": 60, "after": str(tmp_path / "never"), "calls": str(tmp_path / "calls")}
    prediction_id = api.submit(value)
    wait_until(
        lambda: [(job["prediction_id"], job["attempts"]) for job in waiting(api)] == [(prediction_id, 1)]
    )
    assert emptied(api) == 1
    assert api.read(prediction_id).headers["prediction-status"] == "cancelled"


def test_emptying_it_tells_every_waiter(start: Start) -> None:
    api = start(SYNC_WAIT_S=60)
    polled = api.submit("polled")
    with ThreadPoolExecutor(2) as pool, api.subscribe(polled) as subscriber:
        frame(subscriber)
        sync = pool.submit(api.post, "sync")
        long_poll = pool.submit(api.read, polled, "?wait=60")
        wait_until(lambda: numbers(api)["waiting"] == 2)
        assert emptied(api) == 2
        sentence = refused(sync.result(60), 409, prediction_id=sync.result(60).headers["prediction-id"])
        assert sentence == "Prediction cancelled: an operator emptied the queue."
        state(long_poll.result(60), polled, "polled", "cancelled")
        [last], code = rest_of(subscriber)
        news(last, polled, "polled", "cancelled")
        assert code == 1000
    assert (numbers(api)["unfinished"], waiting(api)) == (0, [])
    assert emptied(api) == 0


def test_emptying_it_makes_room(start: Start) -> None:
    api = start(MAX_QUEUE=4)
    while api.post("x", {"Async-Mode": "true"}).status_code == 202:
        pass
    assert emptied(api) > 0
    api.submit("y")


def test_what_runs_goes_on_when_it_is_emptied(start: Start, tmp_path: Path) -> None:
    api = start(model=PATIENT)
    running = api.submit({"value": 1, "after": str(tmp_path / "go")})
    wait_until(lambda: numbers(api)["running"] == 1)
    emptied(api)
    (tmp_path / "go").touch()
    assert api.result(running) == {"value": 1}


@pytest.mark.parametrize(
    ("query", "code", "says"),
    [
        ("", 400, "?model=default&sure=yes"),
        ("?sure=yes", 400, "?model=default&sure=yes"),
        ("?model=default", 400, "sure=yes"),
        ("?model=default&sure=no", 400, "sure=yes"),
        ("?model=default&sure=", 400, "sure=yes"),
        ("?model=&sure=yes", 404, "GET /queue"),
        ("?model=other&sure=yes", 404, "GET /queue"),
        ("?model=default%00&sure=yes", 404, "GET /queue"),
    ],
)
def test_nothing_is_cancelled_by_half_a_word(idle: Local, query: str, code: int, says: str) -> None:
    prediction_id = idle.submit("stays")
    assert says in refused(idle.http.delete(f"/queue{query}"), code)
    assert idle.read(prediction_id).headers["prediction-status"] == "queued"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?limit=0", 400),
        ("?limit=101", 400),
        ("?limit=", 400),
        ("?limit=%D9%A1", 400),
        ("?after=x", 400),
        ("?after=0/1/", 400),
        ("?after=999//", 400),
        ("?after=-1//", 400),
        (f"?after=0/{'9' * 18}/{'a' * 36}", 400),
        ("?model=other", 404),
        ("?model=", 404),
    ],
)
def test_a_bad_query_is_refused(idle: Local, query: str, code: int) -> None:
    refused(idle.http.get(f"/queue/waiting{query}"), code)
