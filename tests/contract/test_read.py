"""GET /predict/{prediction_id}."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, not_found, refused, state, succeeded
from tests.contract.conftest import Local

# written out, not drawn: parallel test workers must see the same cases
UNKNOWN = ["00000000-0000-4000-8000-000000000000", "3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015"]
MALFORMED = [
    "x", "-", "None", "0" * 32, "0" * 36, "0" * 5_000, "00000000-0000-4000-8000-00000000000g", "*", "%00", "%0a",
    "%F0%9F%A6%8A", "%ff%fe", "{00000000-0000-4000-8000-000000000000}", "00000000-0000-4000-8000-000000000000%0a",
    "00000000-0000-4000-8000-00000000000%D9%A1",
]  # fmt: skip


def test_done(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    state(api.end(prediction_id), prediction_id, TEXT, "succeeded")
    state(api.read(prediction_id), prediction_id, TEXT, "succeeded")


def test_wait_holds_the_answer_until_it_is_done(api: Api) -> None:
    for _ in range(20):
        prediction_id = api.submit(TEXT)
        state(api.read(prediction_id, "?wait=50"), prediction_id, TEXT, "succeeded")


def test_no_gap_between_the_202_and_the_get(api: Api) -> None:
    """From the moment the 202 is sent, on any connection, as often as one likes."""

    def submit_and_read(i: int) -> int:
        return api.read(api.submit(f"text {i}")).status_code

    with ThreadPoolExecutor(20) as clients:
        assert set(clients.map(submit_and_read, range(300))) <= {200, 202}


@pytest.mark.parametrize("prediction_id", UNKNOWN + MALFORMED)
def test_unknown_and_malformed_ids_are_not_found(api: Api, prediction_id: str) -> None:
    not_found(api.read(prediction_id))
    not_found(api.read(prediction_id, "?wait=50"))


def test_an_id_is_found_in_capitals(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    state(api.end(prediction_id.upper()), prediction_id, TEXT, "succeeded")


@pytest.mark.parametrize("wait", ["soon", "", "-1", "nan", "inf", "1e999", "%ff"])
def test_wait_needs_a_number(api: Api, wait: str) -> None:
    assert "wait" in refused(api.read(api.submit(TEXT), f"?wait={wait}"), 400)


def test_other_query_parameters_are_ignored(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    api.end(prediction_id)
    state(api.read(prediction_id, "?a=1&b&=&wait=1&%00"), prediction_id, TEXT, "succeeded")


def test_a_slash_at_the_end_changes_nothing(api: Api) -> None:
    """No redirect either: many clients make a GET of a POST that is redirected."""
    answer = api.http.post("/predict/", json={"input": TEXT}, follow_redirects=False)
    succeeded(answer, TEXT)
    prediction_id = answer.headers["prediction-id"]
    state(api.read(f"{prediction_id}/", "?wait=1"), prediction_id, TEXT, "succeeded")
    assert api.http.get("/dead/").json() == api.http.get("/dead").json()
    assert api.http.get("/livez/").status_code == 200
    for path in ("/predict//", f"/predict/{prediction_id}//", f"//predict/{prediction_id}"):
        refused(api.http.get(f"{api.url}{path}"), 404)


def test_the_input_is_left_out_where_nobody_wants_it(echo: Local) -> None:
    value = "x" * 500_000
    prediction_id = echo.submit(value)
    for query in ("?input=false&wait=25", "?input=FALSE", "?input=true&input=false"):
        assert state(echo.read(prediction_id, query), prediction_id, None, "succeeded") == value
    for query in ("?input=true", "?input=false&input=True", "?inputs=false"):
        assert state(echo.read(prediction_id, query), prediction_id, value, "succeeded") == value


def test_the_input_is_left_out_in_every_state(idle: Local, moody: Local) -> None:
    prediction_id = idle.submit(TEXT)
    state(idle.read(prediction_id, "?input=false&wait=0.1"), prediction_id, None, "queued")
    answer = idle.http.delete(f"/predict/{prediction_id}?input=false")
    state(answer, prediction_id, None, "cancelled")
    failed = moody.submit({"mood": "raise"})
    state(moody.read(failed, "?wait=25&input=false"), failed, None, "failed")


@pytest.mark.parametrize("value", ["", "no", "0", "falsch", "%ff", "false,true"])
def test_input_must_be_true_or_false(api: Api, value: str) -> None:
    sentence = refused(api.read(api.submit(TEXT), f"?input={value}"), 400)
    assert sentence == "input must be 'true' or 'false', such as ?input=false."


@pytest.mark.parametrize("query", ["?input=no", "?wait=soon"])
def test_a_bad_query_cancels_nothing(idle: Local, query: str) -> None:
    prediction_id = idle.submit(TEXT)
    refused(idle.http.delete(f"/predict/{prediction_id}{query}"), 400)
    state(idle.read(prediction_id), prediction_id, TEXT, "queued")


def test_head_is_get_without_a_body(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    api.end(prediction_id)
    answer = api.http.head(f"/predict/{prediction_id}")
    assert answer.status_code == 200
    assert answer.headers["prediction-status"] == "succeeded"
    assert answer.content == b""


def test_queued(idle: Local) -> None:
    prediction_id = idle.submit({"a": [1]})
    state(idle.read(prediction_id), prediction_id, {"a": [1]}, "queued")


def test_wait_answers_when_its_time_is_up(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    began = time.monotonic()
    state(idle.read(prediction_id, "?wait=0.3"), prediction_id, TEXT, "queued")
    assert 0.3 <= time.monotonic() - began < 10


def test_running(moody: Local, tmp_path: Path) -> None:
    value = {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "go"), "value": 1}
    prediction_id = moody.submit(value)
    wait_until((tmp_path / "ran").exists)
    state(moody.read(prediction_id), prediction_id, value, "processing")
    with ThreadPoolExecutor() as client:
        began = time.monotonic()
        waiting = client.submit(moody.read, prediction_id, "?wait=50")
        (tmp_path / "go").touch()
        assert state(waiting.result(), prediction_id, value, "succeeded") == {"value": 1}
    assert time.monotonic() - began < 25


def test_failed(moody: Local) -> None:
    value = {"mood": "raise"}
    prediction_id = moody.submit(value)
    answer = moody.end(prediction_id)
    state(answer, prediction_id, value, "failed")
    assert answer.json()["error"] == "Prediction failed: ValueError: This input is not to my taste."


@pytest.mark.parametrize("result", ["processing", "failed", "cancelled", None, {"error": "x"}])
def test_a_result_that_looks_like_a_state_confuses_nobody(echo: Local, result: object) -> None:
    prediction_id = echo.submit(result)
    assert state(echo.end(prediction_id), prediction_id, result, "succeeded") == result


def test_through_another_gateway(start: Callable[..., Local], start_processor: Callable[..., object]) -> None:
    one, two = start(), start()
    ids = [one.submit(i) for i in range(50)]
    for i, prediction_id in enumerate(ids):
        state(two.read(prediction_id), prediction_id, i, "queued")
    start_processor()
    for i, prediction_id in enumerate(ids):
        assert state(two.end(prediction_id), prediction_id, i, "succeeded") == i
        assert succeeded((one, two)[i % 2].post(-i), -i) == -i


@pytest.mark.leaves_jobs("no processor meets the cancelled one")
def test_a_final_state_is_gone_after_its_ttl(start: Callable[..., Local]) -> None:
    gateway = start(RESULT_TTL_S=1)
    prediction_id = gateway.submit(TEXT)
    assert gateway.cancel(prediction_id).status_code == 200
    wait_until(lambda: gateway.read(prediction_id).status_code == 404)
    not_found(gateway.read(prediction_id))
    not_found(gateway.cancel(prediction_id))
    assert gateway.all_frames(prediction_id) == ([{"error": "Prediction ID not found."}], 4404)
