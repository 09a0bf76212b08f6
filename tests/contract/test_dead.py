"""Retries that a model asks for, and `/dead`: what was given up."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.contract.api import accepted, named, not_found, refused, succeeded
from tests.contract.conftest import PATIENT, Local
from tests.contract.test_again import new_id

CRASH = {"mood": "segfault"}


def given_up(moody: Local, value: object = CRASH) -> str:
    prediction_id = moody.submit(value)
    assert moody.end(prediction_id).headers["prediction-status"] == "failed"
    return prediction_id


def test_a_retry_succeeds_when_the_time_has_come(moody: Local, tmp_path: Path) -> None:
    value = {"value": 1, "busy": 1, "after": str(tmp_path / "go"), "calls": str(tmp_path / "calls")}
    prediction_id = moody.submit(value)
    wait_until((tmp_path / "calls").exists)
    (tmp_path / "go").touch()
    assert moody.result(prediction_id) == {"value": 1}
    assert (tmp_path / "calls").read_text() == "call\n" * 2
    assert prediction_id not in moody.dead()


def test_the_last_one_is_final_and_dead(moody: Local) -> None:
    answer = moody.post({"busy": 0})
    prediction_id = named(answer)
    sentence = refused(answer, 500, prediction_id=prediction_id)
    assert sentence == "Prediction failed: Busy: come back (at each of 2 attempts)"
    dead = moody.dead()[prediction_id]
    assert dead.pop("traceback").rstrip().endswith("Busy: come back")
    assert abs(dead.pop("given_up_at") - time.time()) < 60
    assert dead.pop("processor")
    assert dead == {"prediction_id": prediction_id, "input": {"busy": 0}, "error": sentence, "attempts": 2}


def test_what_kills_its_process_each_time_is_dead(moody: Local) -> None:
    answer = moody.post(CRASH)
    prediction_id = named(answer)
    sentence = refused(answer, 500, prediction_id=prediction_id)
    dead = moody.dead()[prediction_id]
    assert (dead["input"], dead["error"], dead["attempts"]) == (CRASH, sentence, 2)


def test_an_exception_that_asks_for_nothing_is_final_and_not_dead(moody: Local) -> None:
    prediction_id = given_up(moody, {"mood": "raise"})
    assert prediction_id not in moody.dead()
    refused(moody.http.post(f"/dead/{prediction_id}/retry"), 404)


def test_one_that_is_retried_is_the_same_prediction(moody: Local, tmp_path: Path) -> None:
    value = {"value": 7, "busy": 0, "after": str(tmp_path / "go")}
    prediction_id = given_up(moody, value)
    (tmp_path / "go").touch()
    assert accepted(moody.http.post(f"/dead/{prediction_id}/retry")) == prediction_id
    assert moody.result(prediction_id) == {"value": 7}
    assert prediction_id not in moody.dead()
    refused(moody.http.post(f"/dead/{prediction_id}/retry"), 404)


def test_one_that_fails_again_is_dead_again(moody: Local) -> None:
    prediction_id = given_up(moody)
    accepted(moody.http.post(f"/dead/{prediction_id}/retry"))
    assert moody.end(prediction_id).headers["prediction-status"] == "failed"
    assert moody.dead()[prediction_id]["attempts"] == 2


def test_forgetting(moody: Local) -> None:
    prediction_id = given_up(moody)
    answer = moody.http.delete(f"/dead/{prediction_id}")
    assert (answer.status_code, answer.json()) == (200, {"prediction_id": prediction_id})
    refused(moody.http.delete(f"/dead/{prediction_id}"), 404)
    assert prediction_id not in moody.dead()
    assert moody.end(prediction_id).headers["prediction-status"] == "failed"  # the result stays


def test_pages(moody: Local) -> None:
    ids = {given_up(moody) for _ in range(3)}
    found, after = [], ""
    while True:
        answer = moody.http.get(f"/dead?limit=2{after}").json()
        if not answer["dead"]:
            break
        assert len(answer["dead"]) <= 2
        found += [one["prediction_id"] for one in answer["dead"]]
        after = f"&after={answer['next']}"
    assert answer["next"] is None
    assert len(found) == len(set(found))
    assert ids <= set(found)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "limit=-1", "after=x", "after=0-0-0", "after=1-2"]
)
def test_a_bad_page_is_refused(moody: Local, query: str) -> None:
    refused(moody.http.get(f"/dead?{query}"), 400)


@pytest.mark.parametrize("prediction_id", ["3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015", "7"])
def test_unknown_ids(moody: Local, prediction_id: str) -> None:
    refused(moody.http.delete(f"/dead/{prediction_id}"), 404)
    refused(moody.http.post(f"/dead/{prediction_id}/retry"), 404)


def test_a_retry_of_what_lives_is_refused(moody: Local) -> None:
    answer = moody.post({"value": 1})
    succeeded(answer, {"value": 1})
    refused(moody.http.post(f"/dead/{named(answer)}/retry"), 404)


def test_a_retry_of_what_was_submitted_again_is_refused(start: Callable[..., Local], tmp_path: Path) -> None:
    api = start(model=PATIENT, MAX_ATTEMPTS=1, RESULT_TTL_S=1)
    prediction_id, value = new_id(), {"busy": 0, "after": str(tmp_path / "go"), "value": 1}
    refused(api.put(prediction_id, value), 500, prediction_id=prediction_id)
    wait_until(lambda: api.read(prediction_id).status_code == 404)
    assert prediction_id in api.dead()  # they outlive their results
    (tmp_path / "go").touch()
    succeeded(api.put(prediction_id, value), value)
    refused(api.http.post(f"/dead/{prediction_id}/retry"), 409, prediction_id=prediction_id)
    assert prediction_id in api.dead()


def test_a_retry_after_its_result_is_gone(start: Callable[..., Local], tmp_path: Path) -> None:
    api = start(model=PATIENT, MAX_ATTEMPTS=1, RESULT_TTL_S=1)
    value = {"busy": 0, "after": str(tmp_path / "go"), "value": 1}
    prediction_id = given_up(api, value)
    wait_until(lambda: api.read(prediction_id).status_code == 404)
    (tmp_path / "go").touch()
    assert accepted(api.http.post(f"/dead/{prediction_id}/retry")) == prediction_id
    assert api.result(prediction_id) == {"value": 1}
    wait_until(lambda: api.read(prediction_id).status_code == 404)  # the new result has a time, too
    not_found(api.read(prediction_id))
