"""Errors: one code each, always JSON, one plain sentence."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, accepted, named, post_head, refused, state, succeeded
from tests.contract.conftest import IDLE_BODY_BYTES, PATIENT, Local

ASYNC = {"Async-Mode": "true"}
MOODS = {
    "raise": "Prediction failed: ValueError: This input is not to my taste.",
    "rubbish": "Prediction failed: the result is not JSON",
    "exit": "Prediction failed: SystemExit",
    "segfault": "Prediction failed: the model process died of SIGSEGV",
    "oom-kill": "Prediction failed: the model process was killed (SIGKILL)",
}


@pytest.mark.parametrize("headers", [{}, ASYNC], ids=["sync", "async"])
@pytest.mark.parametrize("body", [b"", b"x", b"{", b'{"input": }', b"input=x", b"'input'"])
def test_400_not_json(api: Api, body: bytes, headers: dict[str, str]) -> None:
    assert "JSON" in refused(api.send(body, headers), 400)


@pytest.mark.parametrize("body", [b"[]", b'"input"', b"1", b"null", b'[{"input": "x"}]'])
def test_400_not_an_object(api: Api, body: bytes) -> None:
    assert "object" in refused(api.send(body), 400)


@pytest.mark.parametrize("body", [b"{}", b'{"inputs": "x"}', b'{"Input": "x"}', b'{"data": {"input": "x"}}'])
def test_422_no_input(api: Api, body: bytes) -> None:
    assert '"input"' in refused(api.send(body), 422)
    refused(api.send(body, ASYNC), 422)


@pytest.mark.parametrize(
    "path",
    ["/", "/nothing", "/predict//", "/predicts", "/ws", "/ws/predict", "/predict/a/b", "/v1/predict", "//"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_404_unknown_path(api: Api, method: str, path: str) -> None:
    refused(api.http.request(method, f"{api.url}{path}"), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/predict", {"POST"}),
        ("DELETE", "/predict", {"POST"}),
        ("OPTIONS", "/predict", {"POST"}),
        ("GET", "/predict/", {"POST"}),
        ("PATCH", "/predict/x", {"GET", "DELETE"}),
        ("POST", "/predict/x/", {"GET", "DELETE"}),
        ("POST", "/dead/", {"GET"}),
        ("POST", "/predict/x", {"GET", "DELETE"}),
        ("POST", "/livez", {"GET"}),
        ("DELETE", "/readyz", {"GET"}),
        ("PUT", "/metrics", {"GET"}),
    ],
)
def test_405_wrong_method(api: Api, method: str, path: str, allowed: set[str]) -> None:
    answer = api.http.request(method, path)
    refused(answer, 405)
    assert set(answer.headers["allow"].split(", ")) >= allowed
    assert method not in answer.headers["allow"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "text/json",
        "multipart/form-data; boundary=x",
        "x",
        "json",
    ],
)
def test_415_shows_the_header_to_send(api: Api, content_type: str) -> None:
    answer = api.http.post("/predict", content=b'{"input": "x"}', headers={"Content-Type": content_type})
    assert "Content-Type: application/json" in refused(answer, 415)


@pytest.mark.parametrize(
    "headers", [{"Async-Mode": "x"}, {"Prefer": "wait=x"}, {"Content-Type": "text/plain"}]
)
def test_errors_are_not_to_be_stored(api: Api, headers: dict[str, str]) -> None:
    answer = api.http.post("/predict", content=b'{"input": "x"}', headers=headers)
    assert answer.status_code >= 400
    assert answer.headers["cache-control"] == "no-store"


# -- 413


def test_413_by_its_declared_length_without_reading_it(idle: Local) -> None:
    with idle.raw(post_head(length=10**12)) as client:
        assert "MAX_BODY_BYTES" in refused(client.answer(), 413)


def test_413_before_the_client_is_told_to_go_on(idle: Local) -> None:
    with idle.raw(post_head("Expect: 100-continue", length=IDLE_BODY_BYTES + 1)) as client:
        refused(client.answer(), 413)


def test_413_while_an_endless_chunked_body_comes(idle: Local) -> None:
    with idle.raw(post_head("Transfer-Encoding: chunked")) as client:
        for _ in range(IDLE_BODY_BYTES // 1000 + 1):
            client.send(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        refused(client.answer(), 413)


def _body_of(size: int) -> bytes:
    return b'{"input": "%b"}' % (b"x" * (size - 13))


def _in_chunks(body: bytes) -> Iterator[bytes]:
    for at in range(0, len(body), 999):
        yield body[at : at + 999]


@pytest.mark.parametrize("framed", [bytes, _in_chunks], ids=["with a length", "chunked"])
def test_413_from_the_first_byte_over_the_limit(idle: Local, framed: Callable[[bytes], Any]) -> None:
    accepted(idle.send(framed(_body_of(IDLE_BODY_BYTES)), ASYNC))
    refused(idle.send(framed(_body_of(IDLE_BODY_BYTES + 1)), ASYNC), 413)


def test_1_mib_is_the_default_limit(api: Api) -> None:
    accepted(api.send(_body_of(1 << 20), ASYNC))
    refused(api.send(_body_of((1 << 20) + 1), ASYNC), 413)


# -- the model


@pytest.mark.parametrize("value", [1, None, ["mood"], "ok"])
def test_422_input_that_the_type_hint_refuses(moody: Local, value: Any) -> None:
    answer = moody.post(value)
    sentence = refused(answer, 422, prediction_id=named(answer))
    assert "dict" in sentence
    state(moody.read(named(answer)), named(answer), value, "failed")


@pytest.mark.parametrize("mood", MOODS)
def test_500_says_what_happened_and_only_that(moody: Local, mood: str) -> None:
    answer = moody.post({"mood": mood})
    prediction_id = named(answer)
    sentence = refused(answer, 500, prediction_id=prediction_id)
    assert sentence.startswith(MOODS[mood])
    read = moody.read(prediction_id)
    assert state(read, prediction_id, {"mood": mood}, "failed") == "failed"
    assert read.json()["error"] == sentence
    assert succeeded(moody.post({"value": 1}), {"value": 1}) == {"value": 1}


def test_what_a_model_prints_is_not_in_the_answer(moody: Local) -> None:
    value = {"mood": "print", "value": 1}
    assert succeeded(moody.post(value), value) == {"value": 1}


def test_504_both_kinds(start: Callable[..., Local], tmp_path: Path) -> None:
    """No result within SYNC_WAIT_S: it keeps running. The model ran past PREDICT_TIMEOUT_S: it does not."""
    impatient = start(model=PATIENT, SYNC_WAIT_S=0.5, PREDICT_TIMEOUT_S=2, MAX_ATTEMPTS=1)
    value = {"after": str(tmp_path / "go"), "value": 1}
    answer = impatient.post(value)
    prediction_id = named(answer)
    assert answer.headers["location"] in refused(answer, 504, prediction_id=prediction_id)
    state(impatient.read(prediction_id), prediction_id, value, "processing")
    (tmp_path / "go").touch()
    assert state(impatient.end(prediction_id), prediction_id, value, "succeeded") == {"value": 1}

    patient = start(SYNC_WAIT_S=30)
    hanging = {"mood": "hang"}
    answer = patient.post(hanging)
    sentence = refused(answer, 504, prediction_id=named(answer))
    assert "2 s" in sentence
    state(patient.read(named(answer)), named(answer), hanging, "failed")
    assert patient.read(named(answer)).json()["error"] == sentence


def test_429_when_the_queue_is_full_and_nothing_was_accepted(
    start: Callable[..., Local], start_processor: Callable[..., object], partitions: int
) -> None:
    gateway = start(MAX_QUEUE=4 * partitions)
    ids = []
    while (answer := gateway.post(len(ids), ASYNC)).status_code == 202:
        ids.append(accepted(answer))
    assert len(ids) <= 4 * partitions
    assert len(ids) == 4 or partitions > 1  # else one part may be full before the others
    assert "full" in refused(answer, 429)
    assert "location" not in answer.headers
    if partitions == 1:
        refused(gateway.post("sync"), 429)
    start_processor()
    assert [gateway.result(prediction_id) for prediction_id in ids] == list(range(len(ids)))
    wait_until(lambda: gateway.post("again", ASYNC).status_code == 202)
    assert succeeded(gateway.post("again"), "again") == "again"


def test_a_failure_is_its_own_among_many(moody: Local) -> None:
    values: list[Any] = [{"mood": "raise"} if i % 3 == 0 else {"value": i} for i in range(60)]
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(moody.post, values))
    for i, answer in enumerate(answers):
        if i % 3 == 0:
            refused(answer, 500, prediction_id=named(answer))
        else:
            assert succeeded(answer, values[i]) == {"value": i}


def test_an_error_of_the_service_never_shows_its_inside(api: Api) -> None:
    for answer in (
        api.send(b"\xff\xfe"),
        api.read("x"),
        api.http.get("/nothing"),
        api.post(TEXT, {"Prefer": "wait=-"}),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert ".py" not in answer.text
