"""KEEP_INPUT=false: an input is dropped when its prediction ends, and a repeat is known all the same."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from websockets.sync.client import connect

from tests.contract.api import accepted, named, refused, succeeded
from tests.contract.conftest import PATIENT, Local, shared
from tests.contract.test_again import key, new_id
from tests.services import ECHO


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory, partitions: int) -> Iterator[Local]:
    folder = tmp_path_factory.mktemp("brief")
    with shared(folder, partitions, model=PATIENT, KEEP_INPUT="false", MAX_ATTEMPTS=2) as api:
        yield api


def stored(api: Local, prediction_id: str) -> dict[str, str]:
    with Redis.from_url(api.services.redis_url, decode_responses=True) as client:
        (name,) = client.scan_iter(f"*:job:{prediction_id}", count=1000)
        return dict(client.hgetall(name))


def shown_input(api: Local, prediction_id: str, query: str = "") -> Any:
    return api.http.get(f"/predict/{prediction_id}{query}").json()["output"]["input"]


def test_it_is_there_until_the_end_and_then_gone(brief: Local, tmp_path: Path) -> None:
    value = {"value": 1, "after": str(tmp_path / "go")}
    prediction_id = brief.submit(value)
    assert shown_input(brief, prediction_id) == value
    (tmp_path / "go").touch()
    assert brief.result(prediction_id) == {"value": 1}
    assert shown_input(brief, prediction_id) is None
    assert shown_input(brief, prediction_id, "?input=true") is None
    assert "input" not in stored(brief, prediction_id)
    with connect(f"ws://127.0.0.1:{brief.gateway.port}/ws/predict/{prediction_id}") as socket:
        assert '"output":{"input":null,"result":{"value":1}}' in str(socket.recv())


def test_a_sync_client_gets_what_it_sent(brief: Local) -> None:
    answer = brief.post({"value": 2})
    assert succeeded(answer, {"value": 2}) == {"value": 2}
    assert "input" not in stored(brief, named(answer))


@pytest.mark.parametrize("mood", ["raise", "cancelled", "expired"])
def test_it_is_dropped_whatever_the_end(brief: Local, mood: str, tmp_path: Path) -> None:
    value = {"mood": "raise"} if mood == "raise" else {"after": str(tmp_path / "never")}
    headers = {"Async-Mode": "true"} | ({"Prediction-Deadline": "50ms"} if mood == "expired" else {})
    prediction_id = accepted(brief.post(value, headers))
    if mood == "cancelled":
        assert brief.http.delete(f"/predict/{prediction_id}").json()["output"]["input"] is None
    brief.end(prediction_id)
    assert "input" not in stored(brief, prediction_id)


@pytest.mark.parametrize("how", ["PUT", "Idempotency-Key"])
def test_a_repeat_is_compared_as_a_value(brief: Local, how: str, tmp_path: Path) -> None:
    prediction_id, headers = new_id(), key()

    def ask(text: str) -> Any:
        body = b'{"input": %b}' % text.encode()
        more = {"Content-Type": "application/json"} | (headers if how != "PUT" else {})
        path = f"/predict/{prediction_id}" if how == "PUT" else "/predict"
        return brief.http.request("PUT" if how == "PUT" else "POST", path, content=body, headers=more)

    calls = str(tmp_path / "calls")
    first = ask(f'{{"value": 3, "calls": "{calls}"}}')
    assert first.status_code == 200
    again = ask(f'{{  "calls":"{calls}","value":3}}')
    assert (again.status_code, named(again), again.json()["result"]) == (200, named(first), {"value": 3})
    assert Path(calls).read_text() == "call\n"
    refused(ask(f'{{"value": 3.0, "calls": "{calls}"}}'), 422, prediction_id=named(first))


def test_what_is_dead_keeps_its_input_and_lives_again(brief: Local, tmp_path: Path) -> None:
    value = {"value": 7, "busy": 0, "after": str(tmp_path / "go")}
    prediction_id = brief.submit(value)
    assert brief.end(prediction_id).headers["prediction-status"] == "failed"
    assert brief.dead()[prediction_id]["input"] == value
    (tmp_path / "go").touch()
    assert accepted(brief.http.post(f"/dead/{prediction_id}/retry")) == prediction_id
    assert brief.result(prediction_id) == {"value": 7}
    assert "input" not in stored(brief, prediction_id)


def test_gateways_of_both_kinds_know_each_other_s(start: Callable[..., Local]) -> None:
    """As while a new setting is rolled out."""
    gateways = [start(model=ECHO, KEEP_INPUT="false"), start()]
    for one, other in (gateways, gateways[::-1]):
        prediction_id = new_id()
        asked = [gateway.put(prediction_id, [1]) for gateway in (one, other, one)]
        assert [succeeded(answer, [1]) for answer in asked] == [[1]] * 3
        refused(other.put(prediction_id, [2]), 422, prediction_id=prediction_id)
