"""A gateway that is asked to stop: it turns red, sends away who can go elsewhere, and answers who cannot."""

import asyncio
import json
import signal
from collections.abc import Callable
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.conftest import eventually, wait_until
from tests.services import ROOT, Service

PATIENT = f"{ROOT}/tests/contract/models.py:Patient"
Start = Callable[..., Service]

#: turns red and then goes on accepting for as long as a test may last: who wants its end kills it
RED = {"SHUTDOWN_DELAY_S": 60, "DRAIN_S": 240}


def post(connection: HTTPConnection, input_: Any, **headers: str) -> HTTPResponse:
    connection.request("POST", "/predict", json.dumps({"input": input_}), headers)
    return connection.getresponse()


def submit(gateway: Service, input_: Any) -> str:
    headers = {"Async-Mode": "true"}
    answer = httpx2.post(f"{gateway.url}/predict", json={"input": input_}, headers=headers)
    assert answer.status_code == 202
    return str(answer.json()["prediction_id"])


def ws(gateway: Service, prediction_id: str) -> str:
    return f"ws://127.0.0.1:{gateway.port}/ws/predict/{prediction_id}"


def turn_red(gateway: Service) -> None:
    gateway.send_signal(signal.SIGTERM)
    wait_until(lambda: gateway.answers("/readyz") == 503)


def until_file(path: Path) -> dict[str, Any]:
    """An input for Patient, which succeeds once the file exists."""
    return {"after": str(path), "value": 7}


class TestWhileItStillAccepts:
    def test_readiness_is_red_and_answers_end_their_connection(
        self, start_gateway: Start, start_processor: Start
    ) -> None:
        start_processor()
        gateway = start_gateway(**RED)
        kept = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        answer = post(kept, 1)
        answer.read()
        assert not answer.will_close
        turn_red(gateway)
        assert gateway.get("/readyz")[1] == b'{"error":"This gateway is stopping."}'
        assert gateway.answers("/livez") == 200
        new = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        for connection, value in ((kept, 2), (new, 3)):
            answer = post(connection, value)
            assert (answer.status, json.loads(answer.read())) == (200, {"input": value, "result": value})
            assert answer.will_close
        gateway.kill()

    async def test_websockets_are_sent_away_at_once_and_miss_nothing(
        self, start_gateway: Start, start_processor: Start, tmp_path: Path
    ) -> None:
        start_processor(PATIENT)
        gateway, other = start_gateway(**RED), start_gateway()
        prediction_id = await asyncio.to_thread(submit, gateway, until_file(tmp_path / "go"))
        async with connect(ws(gateway, prediction_id)) as early:
            await early.recv()
            await asyncio.to_thread(turn_red, gateway)
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await early.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        async with connect(ws(gateway, prediction_id)) as late:  # by a balancer that has not seen it yet
            frames = [json.loads(frame) async for frame in _frames(late)]
            assert [frame["status"] for frame in frames] == ["processing"]
            assert late.close_code == 1012
        async with connect(ws(other, prediction_id)) as again:
            assert json.loads(await again.recv())["status"] == "processing"
            (tmp_path / "go").touch()
            assert json.loads(await again.recv())["output"]["result"] == {"value": 7}
        gateway.kill()

    def test_more_signals_do_no_harm(self, start_gateway: Start, start_processor: Start) -> None:
        start_processor()
        gateway = start_gateway(SHUTDOWN_DELAY_S=1)
        turn_red(gateway)
        connection = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        gateway.send_signal(signal.SIGINT)
        gateway.send_signal(signal.SIGTERM)
        answer = post(connection, 1)
        assert (answer.status, json.loads(answer.read())) == (200, {"input": 1, "result": 1})
        gateway.stopped()


class TestWhenItNoLongerAccepts:
    async def test_a_sync_client_gets_its_result_while_there_is_time(
        self, start_gateway: Start, start_processor: Start, tmp_path: Path
    ) -> None:
        start_processor(PATIENT)
        gateway = start_gateway(DRAIN_S=60)
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as client:
            body = {"input": until_file(tmp_path / "go")}
            waiting = asyncio.create_task(client.post("/predict", json=body))
            await eventually(lambda: gateway.metrics()["foretell_waiters"] == 1)
            gateway.send_signal(signal.SIGTERM)
            await eventually(lambda: gateway.answers("/livez") is None)  # the listener is closed
            assert not waiting.done()
            (tmp_path / "go").touch()
            answer = await waiting
        assert (answer.status_code, answer.json()["result"]) == (200, {"value": 7})
        assert answer.headers["Connection"] == "close"
        await asyncio.to_thread(gateway.stopped)

    async def test_then_it_is_told_where_to_read_it(
        self, start_gateway: Start, start_processor: Start, tmp_path: Path
    ) -> None:
        start_processor(PATIENT)
        gateway, other = start_gateway(DRAIN_S=2), start_gateway()
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as client:
            body = {"input": until_file(tmp_path / "go")}
            waiting = asyncio.create_task(client.post("/predict", json=body))
            await eventually(lambda: gateway.metrics()["foretell_waiters"] == 1)
            gateway.send_signal(signal.SIGTERM)
            answer = await waiting
        assert answer.status_code == 503
        prediction_id = answer.json()["prediction_id"]
        assert answer.json()["error"] == (
            f"This gateway is stopping: read the result at /predict/{prediction_id}."
        )
        assert answer.headers["Location"] == f"/predict/{prediction_id}"
        await asyncio.to_thread(gateway.stopped)
        (tmp_path / "go").touch()
        async with httpx2.AsyncClient(base_url=other.url, timeout=60) as client:
            answer = await client.get(answer.headers["Location"], params={"wait": 30})
        assert answer.json()["output"]["result"] == {"value": 7}

    def test_an_idle_connection_does_not_hold_it_up(self, start_gateway: Start) -> None:
        gateway = start_gateway(DRAIN_S=60)
        idle = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        idle.request("GET", "/livez")
        idle.getresponse().read()
        gateway.stop()  # long before DRAIN_S
        with closing(idle.sock):
            assert idle.sock.recv(1) == b""

    def test_a_request_that_never_ends_does_not_hold_it_up(self, start_gateway: Start) -> None:
        """Its body is not complete, so nothing was accepted."""
        gateway = start_gateway(DRAIN_S=2)
        half = HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        half.putrequest("POST", "/predict")
        half.putheader("Content-Length", "100")
        half.endheaders(b'{"input":')
        wait_until(lambda: gateway.answers("/livez") == 200)
        gateway.stop()
        with closing(half.sock), suppress(ConnectionResetError):
            assert half.sock.recv(1) == b""


async def _frames(socket: Any) -> Any:
    """Until it is closed, however it is closed."""
    try:
        while True:
            yield await socket.recv()
    except ConnectionClosed:
        return
