"""POST /predict."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.api import TEXT, Api, accepted, named, refused, state, succeeded
from tests.contract.conftest import Local


def test_sync_answers_with_input_and_result(api: Api) -> None:
    answer = api.post(TEXT)
    result = succeeded(answer, TEXT)
    assert answer.headers["prediction-status"] == "succeeded"
    assert state(api.read(named(answer)), named(answer), TEXT, "succeeded") == result


def test_async_answers_with_an_id(api: Api) -> None:
    accepted(api.post(TEXT, {"Async-Mode": "true"}))


def test_two_predictions_have_two_ids(api: Api) -> None:
    assert api.submit(TEXT) != api.submit(TEXT)


def test_other_keys_are_ignored(api: Api) -> None:
    body = b'{"id": 1, "input": "x", "inputs": ["y"], "Async-Mode": "true"}'
    succeeded(api.send(body), "x")


@pytest.mark.parametrize("header", ["Async-Mode", "async-mode", "ASYNC-MODE"])
@pytest.mark.parametrize("value", ["true", "True", "TRUE", "tRuE"])
def test_async_mode_true_in_any_case(api: Api, header: str, value: str) -> None:
    accepted(api.post(TEXT, {header: value}))


@pytest.mark.parametrize("value", ["false", "False", "FALSE"])
def test_async_mode_false_in_any_case(api: Api, value: str) -> None:
    succeeded(api.post(TEXT, {"Async-Mode": value}), TEXT)


@pytest.mark.parametrize("value", ["", "yes", "1", "truefalse", "true;q=1", "true,true", "'true'", "tr ue"])
def test_any_other_async_mode_is_refused(api: Api, value: str) -> None:
    sentence = refused(api.post(TEXT, {"Async-Mode": value}), 400)
    assert "Async-Mode" in sentence


@pytest.mark.parametrize("other", ["true", "false"])
def test_async_mode_twice_is_refused(api: Api, other: str) -> None:
    refused(api.post(TEXT, [("Async-Mode", "true"), ("Async-Mode", other)]), 400)


@pytest.mark.parametrize(
    "preference", ["respond-async", "RESPOND-ASYNC", "respond-async; foo", "return=minimal, respond-async"]
)
def test_prefer_respond_async_is_async_mode_true(api: Api, preference: str) -> None:
    answer = api.post(TEXT, {"Prefer": preference})
    accepted(answer)
    assert answer.headers["preference-applied"] == "respond-async"


def test_prefer_wait_answers_as_soon_as_it_is_done(api: Api) -> None:
    answer = api.post(TEXT, {"Prefer": "wait=20"})
    succeeded(answer, TEXT)
    assert answer.headers["preference-applied"] == "wait=20"


def test_prefer_wait_0_is_accepted_at_once(api: Api) -> None:
    accepted(api.post(TEXT, {"Prefer": "wait=0"}))


def test_prefer_respond_async_and_wait_waits_first(api: Api) -> None:
    succeeded(api.post(TEXT, {"Prefer": "respond-async, wait=20"}), TEXT)
    succeeded(api.post(TEXT, [("Prefer", "wait=20"), ("Prefer", "respond-async")]), TEXT)


@pytest.mark.parametrize("preference", ["return=minimal", "handling=lenient", ""])
def test_other_preferences_are_ignored(api: Api, preference: str) -> None:
    answer = api.post(TEXT, {"Prefer": preference})
    succeeded(answer, TEXT)
    assert "preference-applied" not in answer.headers


@pytest.mark.parametrize("wait", ["soon", "", "-1", "1.5", "99999999999"])
def test_prefer_wait_needs_a_number(api: Api, wait: str) -> None:
    assert "wait" in refused(api.post(TEXT, {"Prefer": f"wait={wait}"}), 400)


def test_async_mode_wins_over_prefer(api: Api) -> None:
    answer = api.post(TEXT, {"Async-Mode": "false", "Prefer": "respond-async"})
    succeeded(answer, TEXT)
    assert "preference-applied" not in answer.headers
    accepted(api.post(TEXT, {"Async-Mode": "true", "Prefer": "wait=20"}))


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json", None],
)
def test_json_by_any_name_or_none(api: Api, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    succeeded(api.http.post("/predict", content=b'{"input": "x"}', headers=headers), "x")


def test_concurrent_clients_get_each_their_own(api: Api) -> None:
    texts = [f"text number {i}" for i in range(100)]
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(api.post, texts))
    for text, answer in zip(texts, answers, strict=True):
        succeeded(answer, text)
    assert len({named(answer) for answer in answers}) == len(texts)


def test_prefer_wait_then_the_202_instead_of_a_504(moody: Local, tmp_path: Path) -> None:
    value = {"after": str(tmp_path / "go"), "value": 1}
    began = time.monotonic()
    answer = moody.post(value, {"Prefer": "wait=1"})
    assert time.monotonic() - began >= 1
    prediction_id = accepted(answer)
    assert answer.headers["preference-applied"] == "wait=1"
    (tmp_path / "go").touch()
    assert moody.result(prediction_id) == {"value": 1}


def test_async_mode_true_does_not_wait_whatever_prefer_says(moody: Local, tmp_path: Path) -> None:
    value = {"after": str(tmp_path / "go")}
    prediction_id = accepted(moody.post(value, {"Async-Mode": "true", "Prefer": "wait=50"}))
    assert moody.read(prediction_id).status_code == 202  # with the wait it would have hung above
    (tmp_path / "go").touch()
    moody.end(prediction_id)
