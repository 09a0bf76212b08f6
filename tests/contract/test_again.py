"""Asking twice is asking once: PUT /predict/{id} and Idempotency-Key."""

import json
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, Raw, accepted, named, post_head, refused, state, succeeded
from tests.contract.conftest import PATIENT, Local

ASYNC = {"Async-Mode": "true"}


def new_id() -> str:
    return str(uuid.uuid4())


def key() -> dict[str, str]:
    return {"Idempotency-Key": f"order {uuid.uuid4()}"}


class TestPut:
    def test_it_is_a_post_under_the_clients_id(self, api: Api) -> None:
        prediction_id = new_id()
        answer = api.put(prediction_id, TEXT)
        result = succeeded(answer, TEXT)
        assert named(answer) == prediction_id
        assert api.result(prediction_id) == result

    def test_asynchronously_too(self, api: Api) -> None:
        prediction_id = new_id()
        assert accepted(api.put(prediction_id, TEXT, ASYNC)) == prediction_id
        assert api.end(prediction_id).headers["prediction-status"] == "succeeded"

    def test_an_id_in_capitals_is_the_same_id(self, api: Api) -> None:
        prediction_id = new_id()
        assert accepted(api.put(prediction_id.upper(), TEXT, ASYNC)) == prediction_id

    def test_again_is_the_same_prediction(self, moody: Local, tmp_path: Path) -> None:
        prediction_id, value = new_id(), {"value": 1, "calls": str(tmp_path / "calls")}
        for _ in range(3):
            assert succeeded(moody.put(prediction_id, value), value) == {"value": 1}
            assert accepted(moody.put(prediction_id, value, ASYNC)) == prediction_id
        assert (tmp_path / "calls").read_text() == "call\n"

    def test_who_comes_second_waits_for_the_same_end(self, moody: Local, tmp_path: Path) -> None:
        prediction_id = new_id()
        value = {"value": 1, "calls": str(tmp_path / "calls"), "after": str(tmp_path / "go")}
        with ThreadPoolExecutor(8) as clients:
            answers = [clients.submit(moody.put, prediction_id, value) for _ in range(8)]
            wait_until((tmp_path / "calls").exists)
            (tmp_path / "go").touch()
            assert [succeeded(answer.result(), value) for answer in answers] == [{"value": 1}] * 8
        assert (tmp_path / "calls").read_text() == "call\n"

    def test_the_input_is_compared_as_a_value(self, idle: Local) -> None:
        prediction_id = accepted(idle.put(new_id(), {"a": 1, "b": [2.5]}, ASYNC))
        body = b'{"more": 1, "input": {"b": [2.5],  "a":1}}'
        again = idle.http.put(
            f"/predict/{prediction_id}", content=body, headers={"Content-Type": "application/json", **ASYNC}
        )
        assert accepted(again) == prediction_id
        for other in ({"a": 1}, {"a": 1.0, "b": [2.5]}, {"a": True, "b": [2.5]}, None):
            refused(idle.put(prediction_id, other, ASYNC), 422, prediction_id=prediction_id)

    @pytest.mark.parametrize(
        "prediction_id", ["7", "not-a-uuid", "3f1c9a52-7b0e-4d61-9c3a-d84f27e6b01", "0" * 32]
    )
    def test_what_is_no_uuid_is_refused(self, api: Api, prediction_id: str) -> None:
        assert "UUID" in refused(api.put(prediction_id, TEXT), 400)

    def test_hanging_up_does_not_cancel_it(self, idle: Local) -> None:
        prediction_id = new_id()
        body = json.dumps({"input": TEXT}).encode()
        head = post_head(length=len(body)).replace(
            b"POST /predict", b"PUT /predict/" + prediction_id.encode()
        )
        stays(idle, idle.raw(head + body), prediction_id)


class TestIdempotencyKey:
    def test_a_repeat_is_the_same_prediction(self, moody: Local, tmp_path: Path) -> None:
        headers, value = key(), {"value": 1, "calls": str(tmp_path / "calls")}
        first = moody.post(value, headers)
        assert succeeded(first, value) == {"value": 1}
        second = moody.post(value, headers)
        assert succeeded(second, value) == {"value": 1}
        third = accepted(moody.post(value, headers | ASYNC))
        assert named(first) == named(second) == third
        assert (tmp_path / "calls").read_text() == "call\n"

    def test_many_at_once_through_two_gateways_are_one(
        self, start: Callable[..., Local], tmp_path: Path
    ) -> None:
        gateways = start(model=PATIENT), start()
        headers, value = key() | ASYNC, {"value": 1, "calls": str(tmp_path / "calls")}
        with ThreadPoolExecutor(16) as clients:
            answers = clients.map(lambda i: gateways[i % 2].post(value, headers), range(32))
            (prediction_id,) = {accepted(answer) for answer in answers}
        assert gateways[1].result(prediction_id) == {"value": 1}
        for gateway in gateways:
            refused(gateway.post({"value": 2}, headers), 422, prediction_id=prediction_id)
        assert (tmp_path / "calls").read_text() == "call\n"

    def test_another_input_conflicts(self, idle: Local) -> None:
        headers = key() | ASYNC
        prediction_id = accepted(idle.post(1, headers))
        assert "Idempotency-Key" in refused(idle.post(2, headers), 422, prediction_id=prediction_id)
        assert accepted(idle.post(2, key() | ASYNC)) != prediction_id

    def test_a_key_may_be_long(self, idle: Local) -> None:
        headers = {"Idempotency-Key": f"{uuid.uuid4()}".ljust(255, "x")} | ASYNC
        other = {"Idempotency-Key": headers["Idempotency-Key"][:-1]} | ASYNC
        assert accepted(idle.post(1, headers)) == accepted(idle.post(1, headers))
        assert accepted(idle.post(1, headers)) != accepted(idle.post(1, other))

    @pytest.mark.parametrize("bad", ["", "x" * 256])
    def test_a_bad_key_is_refused(self, api: Api, bad: str) -> None:
        assert "Idempotency-Key" in refused(api.post(TEXT, {"Idempotency-Key": bad}), 400)

    def test_two_keys_are_refused(self, api: Api) -> None:
        refused(api.post(TEXT, [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]), 400)

    def test_hanging_up_does_not_cancel_it(self, idle: Local) -> None:
        headers, body = key(), json.dumps({"input": TEXT}).encode()
        head = post_head(f"Idempotency-Key: {headers['Idempotency-Key']}", length=len(body))
        client = idle.raw(head + body)
        prediction_id = accepted(idle.post(TEXT, headers | ASYNC))
        stays(idle, client, prediction_id)


def stays(idle: Local, client: Raw, prediction_id: str) -> None:
    """The prediction of a client that hangs up is queued all the same."""
    wait_until(lambda: idle.read(prediction_id).status_code == 202)
    client.close()
    for _ in range(20):  # whatever the gateway does about the client, it has done it then
        state(idle.read(prediction_id), prediction_id, TEXT, "queued")
