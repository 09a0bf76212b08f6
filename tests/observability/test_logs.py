"""What the logs say of predictions, and what they must not."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.observability.asking import PARENT, SECRET, TRACE, post
from tests.services import Service, Services
from tools.embedded_server import EmbeddedServer


def lines(service: Service, event: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, service.log.splitlines()) if line["event"] == event]


def test_the_access_log_is_off_unless_it_is_asked_for(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service], model: str
) -> None:
    start_processor(model)
    silent, talking = start_gateway(), start_gateway(ACCESS_LOG="true")
    answer = post(talking, {"value": SECRET}, Traceparent=PARENT)
    assert post(silent, {"value": SECRET}).status_code == 200
    assert talking.get("/readyz")[0] == 200
    (line,) = wait_until(lambda: lines(talking, "request"))
    assert {
        name: line[name]
        for name in ("method", "route", "code", "client", "prediction_id", "trace_id", "service")
    } == {
        "method": "POST",
        "route": "/predict",
        "code": 200,
        "client": "127.0.0.1",
        "prediction_id": answer.headers["Prediction-Id"],
        "trace_id": TRACE,
        "service": "gateway",
    }
    assert line["ms"] > 0
    assert lines(silent, "request") == []


@pytest.mark.parametrize("log_inputs", ["false", "true"])
def test_inputs_are_in_the_log_only_if_they_may_be(
    start_gateway: Callable[..., Service],
    start_processor: Callable[..., Service],
    model: str,
    log_inputs: str,
) -> None:
    gateway = start_gateway(LOG_LEVEL="debug", ACCESS_LOG="true")
    processor = start_processor(model, LOG_LEVEL="debug", LOG_INPUTS=log_inputs)
    assert post(gateway, {"value": SECRET}).status_code == 200
    failed = post(gateway, {SECRET: 1, "wait": True}, Traceparent=PARENT)
    assert SECRET in failed.json()["error"]
    retried, given_up = wait_until(
        lambda: (found := lines(processor, "prediction failed")) and found[1:] and found[:2]
    )
    assert (retried["attempt"], given_up["attempt"]) == (1, 2)
    assert retried["prediction_id"] == failed.headers["Prediction-Id"]
    assert retried["model"] == model
    assert retried["trace_id"] == TRACE
    assert retried["cause"] == "Later at model.py:9 in predict"
    assert (SECRET in processor.log) is (log_inputs == "true")
    assert SECRET not in gateway.log
    assert lines(processor, "prediction succeeded")


@pytest.mark.parametrize("log_format", ["", "JSON", "console"])
@pytest.mark.parametrize("wrong", ["MAX_QUEUE", "LOG_LEVEL", "PORT"])
def test_the_line_that_stops_a_start_is_one_like_the_others(
    services: Services, log_format: str, wrong: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        value = taken.getsockname()[1] if wrong == "PORT" else "Many"
        gateway = services.gateway(wait=False, **{"LOG_FORMAT": log_format, wrong: value})
        assert gateway.process.wait(30) == 1
    gateway.kill()  # it is not running: its exit code has been looked at
    (line,) = gateway.log.splitlines()
    if log_format == "console":
        assert line.startswith(f"gateway: {wrong} ")
    else:
        assert gateway.last_sentence().startswith(f"{wrong} ")


def test_what_is_given_and_not_heeded_is_told_once(services: Services, server: EmbeddedServer) -> None:
    url = f"{server.url}&max_connections=10&socket_timeout=1"
    gateway = services.gateway(SYNC_WAITS=3, REDIS_URL=url)
    warnings = [
        line["event"] for line in map(json.loads, gateway.log.splitlines()) if line["level"] == "warning"
    ]
    assert "SYNC_WAITS is no setting and is ignored: did you mean SYNC_WAIT_S?" in warnings
    told = "REDIS_URL has options that Foretell sets itself and ignores: max_connections, socket_timeout."
    assert warnings.count(told) == 1


def test_every_line_is_one_json_object(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service], tmp_path: Path
) -> None:
    """What the model prints and logs, too."""
    (tmp_path / "model.py").write_text(
        "import logging, warnings\n"
        "def predict(input):\n"
        "    print('one\\ntwo')\n"
        "    warnings.warn('three')\n"
        "    logging.getLogger('x').error('four')\n"
        "    return input\n"
    )
    gateway, processor = start_gateway(), start_processor(f"{tmp_path}/model.py:predict")
    assert post(gateway, 1).status_code == 200
    wait_until(lambda: all(word in processor.log for word in ("one", "two", "three", "four")))
    for service in (gateway, processor):
        for line in service.log.splitlines():
            assert {"event", "level", "timestamp"} <= set(json.loads(line))
