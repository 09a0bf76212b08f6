"""Prediction-Deadline: past it nobody works on a prediction any more, and everybody is told."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, accepted, named, news, refused, state, succeeded
from tests.contract.conftest import PATIENT, PATIENT_BATCH, Local

SOON = {"Prediction-Deadline": "200ms"}
ASYNC = {"Async-Mode": "true"}


@pytest.mark.parametrize("text", ["30s", "500ms", "5m", "1.5s", "30S", "10080m"])
def test_one_that_is_met_changes_nothing(api: Api, text: str) -> None:
    succeeded(api.post(TEXT, {"Prediction-Deadline": text}), TEXT)


@pytest.mark.parametrize(
    "text", ["", "30", "0s", "-1s", "1h", "soon", "1e3s", "10081m", "30s, 40s", "\u0663s".encode()]
)
def test_a_bad_one_is_refused(api: Api, text: str) -> None:
    assert "Prediction-Deadline" in refused(api.post(TEXT, {"Prediction-Deadline": text}), 400)


def test_two_are_refused(api: Api) -> None:
    refused(api.post(TEXT, [("Prediction-Deadline", "1s"), ("Prediction-Deadline", "2s")]), 400)


def test_in_the_queue_without_any_processor(idle: Local) -> None:
    prediction_id = accepted(idle.post(TEXT, SOON | ASYNC))
    frames, code = idle.all_frames(prediction_id)
    assert [frame["status"] for frame in frames] == ["queued", "expired"]
    assert code == 1000
    answer = idle.end(prediction_id)
    state(answer, prediction_id, TEXT, "expired")
    assert "deadline" in answer.json()["error"]
    refused(idle.cancel(prediction_id), 409)


def test_a_synchronous_client_gets_a_504(idle: Local) -> None:
    answer = idle.post(TEXT, SOON)
    assert "deadline" in refused(answer, 504, prediction_id=named(answer))
    assert answer.headers["prediction-status"] == "expired"


def test_one_that_passed_never_starts(
    start: Callable[..., Local], start_processor: Callable[..., object], tmp_path: Path
) -> None:
    gateway = start()
    value = {"ran": str(tmp_path / "ran")}
    prediction_id = accepted(gateway.post(value, SOON | ASYNC))
    wait_until(lambda: gateway.read(prediction_id).status_code == 200)
    start_processor(PATIENT)
    assert succeeded(gateway.post({"value": 1}), {"value": 1}) == {"value": 1}
    assert not (tmp_path / "ran").exists()


def test_all_who_wait_for_a_running_one_are_told(moody: Local, tmp_path: Path) -> None:
    value = {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "never")}
    with ThreadPoolExecutor() as client:
        waiting = client.submit(moody.post, value, {"Prediction-Deadline": "2s"})
        wait_until((tmp_path / "ran").exists)
        prediction_id = moody.id_of(value)
        frames, code = moody.all_frames(prediction_id)
        answer = waiting.result()
    assert "deadline" in refused(answer, 504, prediction_id=prediction_id)
    assert answer.headers["prediction-status"] == "expired"
    news(frames[-1], prediction_id, value, "expired")
    assert code == 1000
    state(moody.read(prediction_id), prediction_id, value, "expired")
    # there is one model process: it must have been freed
    assert succeeded(moody.post({"value": 1}), {"value": 1}) == {"value": 1}


def test_one_that_passes_while_it_waits_for_its_retry(moody: Local, tmp_path: Path) -> None:
    value = {"busy": 60, "calls": str(tmp_path / "calls")}
    answer = moody.post(value, {"Prediction-Deadline": "2s"})
    assert "deadline" in refused(answer, 504, prediction_id=named(answer))
    assert (tmp_path / "calls").read_text() == "call\n"
    assert named(answer) not in moody.dead()


def test_a_running_one_is_stopped_and_its_batch_succeeds(
    start: Callable[..., Local], start_processor: Callable[..., object], tmp_path: Path
) -> None:
    gateway = start()
    start_processor(PATIENT_BATCH, MAX_BATCH_SIZE=4, MAX_BATCH_WAIT_MS=2000)
    late = {"ran": str(tmp_path / "ran"), "after": str(tmp_path / "never")}
    prediction_id = accepted(gateway.post(late, {"Prediction-Deadline": "3s"} | ASYNC))
    mates = [gateway.submit({"value": i}) for i in range(3)]
    wait_until((tmp_path / "ran").exists)
    state(gateway.end(prediction_id), prediction_id, late, "expired")
    assert [gateway.result(mate) for mate in mates] == [{"value": i} for i in range(3)]
