"""DELETE /predict/{prediction_id}, and clients that hang up."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.contract.api import (
    TEXT,
    Api,
    Raw,
    frame,
    news,
    not_found,
    post_head,
    refused,
    rest_of,
    state,
    succeeded,
)
from tests.contract.conftest import PATIENT, PATIENT_ASYNC, PATIENT_BATCH, Local
from tests.contract.test_read import MALFORMED, UNKNOWN


@contextmanager
def hang(api: Api, value: Any) -> Iterator[Raw]:
    """A synchronous client that hangs up at the end of the block."""
    body = json.dumps({"input": value}).encode()
    with api.raw(post_head(length=len(body)) + body) as client:
        yield client


def test_a_queued_one(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    state(idle.cancel(prediction_id), prediction_id, TEXT, "cancelled")
    state(idle.read(prediction_id), prediction_id, TEXT, "cancelled")
    state(idle.end(prediction_id), prediction_id, TEXT, "cancelled")


def test_a_finished_one_is_too_late(api: Api) -> None:
    prediction_id = api.submit(TEXT)
    before = api.end(prediction_id)
    answer = api.cancel(prediction_id)
    assert refused(answer, 409) == "Prediction already finished."
    assert api.read(prediction_id).json() == before.json()


def test_twice_is_too_late(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    assert idle.cancel(prediction_id).status_code == 200
    refused(idle.cancel(prediction_id), 409)


@pytest.mark.parametrize("prediction_id", UNKNOWN + MALFORMED)
def test_unknown_and_malformed_ids_are_not_found(api: Api, prediction_id: str) -> None:
    not_found(api.cancel(prediction_id))


def test_one_of_many_at_once_wins(idle: Local) -> None:
    prediction_id = idle.submit(TEXT)
    with ThreadPoolExecutor(10) as clients:
        codes = [answer.status_code for answer in clients.map(idle.cancel, [prediction_id] * 10)]
    assert sorted(codes) == [200] + [409] * 9


def test_a_queued_one_never_runs(
    start: Callable[..., Local], start_processor: Callable[..., object], tmp_path: Path
) -> None:
    gateway = start()
    values = [{"ran": str(tmp_path / f"ran-{i}"), "value": i} for i in range(20)]
    ids = [gateway.submit(value) for value in values]
    for prediction_id in ids[::2]:
        assert gateway.cancel(prediction_id).status_code == 200
    start_processor(PATIENT)
    for i, prediction_id in enumerate(ids):
        state(gateway.end(prediction_id), prediction_id, values[i], "succeeded" if i % 2 else "cancelled")
    assert sorted(tmp_path.glob("ran-*")) == sorted(Path(value["ran"]) for value in values[1::2])


def test_a_running_one_is_stopped(moody: Local, tmp_path: Path) -> None:
    value = {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "never")}
    prediction_id = moody.submit(value)
    wait_until((tmp_path / "ran").exists)
    state(moody.cancel(prediction_id), prediction_id, value, "cancelled")
    # there is one model process: it must have been freed
    assert succeeded(moody.post({"value": 1}), {"value": 1}) == {"value": 1}
    state(moody.read(prediction_id), prediction_id, value, "cancelled")


@pytest.mark.parametrize(("model", "stays"), [(PATIENT, False), (PATIENT_ASYNC, True)], ids=["sync", "async"])
def test_only_a_model_that_cannot_stop_by_itself_loses_its_process(
    start: Callable[..., Local], tmp_path: Path, model: str, stays: bool
) -> None:
    api = start(model=model)
    first, second = tmp_path / "first", tmp_path / "second"
    prediction_id = api.submit({"ran": str(first), "after": str(tmp_path / "never")})
    process = wait_until(lambda: first.exists() and first.read_text())
    assert api.cancel(prediction_id).status_code == 200
    assert api.post({"ran": str(second)}).status_code == 200
    assert (second.read_text() == process) is stays


def test_one_that_waits_for_its_retry_is_not_tried_again(moody: Local, tmp_path: Path) -> None:
    value = {"busy": 1, "calls": str(tmp_path / "calls")}
    prediction_id = moody.submit(value)
    wait_until(lambda: (tmp_path / "calls").exists() and waits(moody, prediction_id))
    state(moody.cancel(prediction_id), prediction_id, value, "cancelled")
    later = {
        "busy": 0.5,
        "calls": str(tmp_path / "others"),
    }  # its retry is due after the other would have been
    assert moody.post(later).status_code == 500
    assert (tmp_path / "others").read_text() == "call\n" * 2
    assert (tmp_path / "calls").read_text() == "call\n"
    assert prediction_id not in moody.dead()


def waits(api: Api, prediction_id: str) -> bool:
    return api.read(prediction_id).headers["prediction-status"] == "queued"


def test_a_running_one_does_no_harm_to_its_batch(
    start: Callable[..., Local], start_processor: Callable[..., object], tmp_path: Path
) -> None:
    gateway = start()
    values: list[Any] = [{"value": i} for i in range(8)]
    values[3] |= {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "never")}
    ids = [gateway.submit(value) for value in values]
    start_processor(PATIENT_BATCH, MAX_BATCH_SIZE=8)
    wait_until((tmp_path / "ran").exists)
    assert gateway.cancel(ids[3]).status_code == 200
    for i, prediction_id in enumerate(ids):
        state(gateway.end(prediction_id), prediction_id, values[i], "cancelled" if i == 3 else "succeeded")


def test_the_synchronous_client_of_a_cancelled_one_is_told(moody: Local, tmp_path: Path) -> None:
    value = {"after": str(tmp_path / "never")}
    with ThreadPoolExecutor() as client:
        waiting = client.submit(moody.post, value)
        prediction_id = moody.id_of(value)
        assert moody.cancel(prediction_id).status_code == 200
        answer = waiting.result()
    assert "cancelled" in refused(answer, 409, prediction_id=prediction_id)


def test_hanging_up_cancels(idle: Local, tmp_path: Path) -> None:
    value = f"never mind {tmp_path}"
    with hang(idle, value):
        prediction_id = idle.id_of(value)
    wait_until(lambda: idle.read(prediction_id).status_code == 200)
    state(idle.read(prediction_id), prediction_id, value, "cancelled")


def test_hanging_up_stops_a_running_one(moody: Local, tmp_path: Path) -> None:
    with hang(moody, {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "never")}):
        wait_until((tmp_path / "ran").exists)
    assert succeeded(moody.post({"value": 2}), {"value": 2}) == {"value": 2}


def test_hanging_up_does_not_cancel_what_others_watch(moody: Local, tmp_path: Path) -> None:
    value = {"after": str(tmp_path / "go"), "value": 1}
    with hang(moody, value) as client:
        prediction_id = moody.id_of(value)
        with moody.subscribe(prediction_id) as subscriber:
            first = frame(subscriber)
            client.close()
            for _ in range(20):  # whatever the gateway does about the client, it has done it then
                assert moody.read(prediction_id).status_code == 202
            (tmp_path / "go").touch()
            frames, code = rest_of(subscriber)
    assert news([first, *frames][-1], prediction_id, value, "succeeded") == {"value": 1}
    assert code == 1000
