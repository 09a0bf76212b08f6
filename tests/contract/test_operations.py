"""/livez, /readyz, /metrics; what happens while Redis is away or full, and while a service stops."""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from textwrap import dedent

import pytest
from redis import Redis

from tests.conftest import wait_until
from tests.contract.api import TEXT, Api, frame, named, news, refused, rest_of, state, succeeded
from tests.contract.conftest import PATIENT, Local, local
from tests.services import Service, running_services
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

METRICS = {
    "gateway": {
        "http_server_request_duration_seconds_count", "foretell_waiters", "foretell_relay_connected",
        "foretell_redis_up", "foretell_queue_waiting", "foretell_queue_finished_total",
    },
    "processor": {
        "foretell_predictions_total", "foretell_wait_seconds_count", "foretell_predict_seconds_count",
        "foretell_batch_size_count", "foretell_in_hand", "foretell_model_restarts_total",
        "foretell_leases_lost_total",
    },
}  # fmt: skip


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_a_gateway_is_alive_and_ready(api: Api, path: str) -> None:
    assert api.http.get(path).status_code == 200


def test_a_gateway_has_metrics(api: Api) -> None:
    api.post(TEXT)
    answer = api.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert _names(answer.text) >= METRICS["gateway"]
    labels = 'http_request_method="POST",http_response_status_code="200",http_route="/predict"'
    assert f"http_server_request_duration_seconds_count{{{labels}}}" in answer.text


def test_a_processor_has_the_same_three(moody: Local) -> None:
    moody.post({"value": 1})
    (processor,) = (service for service in moody.services.started if service.name == "processor")
    for path in ("/livez", "/readyz", "/metrics"):
        code, body = processor.get(path)
        assert code == 200
    text = body.decode()
    assert _names(text) >= METRICS["processor"]
    assert 'foretell_predictions_total{status="succeeded"}' in text


def _names(metrics: str) -> set[str]:
    return {line.split(" ")[0].split("{")[0] for line in metrics.splitlines() if not line.startswith("#")}


def test_a_processor_is_ready_when_its_model_is_loaded(
    start_processor: Callable[..., Service], tmp_path: Path
) -> None:
    (tmp_path / "model.py").write_text(
        dedent(
            f"""
            import time
            from pathlib import Path

            class Model:
                def setup(self):
                    while not Path({str(tmp_path / "go")!r}).exists():
                        time.sleep(0.01)

                def predict(self, input):
                    return input
            """
        )
    )
    processor = start_processor(f"{tmp_path}/model.py:Model", wait=False)
    wait_until(lambda: processor.answers("/livez") == 200, timeout=30)
    code, body = processor.get("/readyz")
    assert (code, body) == (503, b'{"error":"The model is loading."}')
    (tmp_path / "go").touch()
    processor.ready()


# -- Redis


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One that a test may stop: it keeps what it was told."""
    with EmbeddedServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def alone(
    own_server: EmbeddedServer, partitions: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Local]:
    """A patient deployment on `own_server`."""
    running = running_services(own_server.url, tmp_path_factory.mktemp("alone"), partitions=partitions)
    with running as services, local(services, model=PATIENT) as api:
        yield api


@pytest.fixture
def stoppable(own_server: EmbeddedServer, alone: Local) -> Iterator[EmbeddedServer]:
    """`own_server`, which is there again and well afterwards."""
    yield own_server
    if own_server.pid is None:
        own_server.start()
    with Redis.from_url(own_server.url) as redis:
        redis.config_set("maxmemory", 0)
    alone.gateway.ready()


def test_while_redis_is_away_nothing_is_accepted_and_afterwards_all_is_well(
    alone: Local, stoppable: EmbeddedServer
) -> None:
    done = alone.submit({"value": 1})
    alone.end(done)
    stoppable.stop()
    for answer in (
        alone.post({"value": 2}),
        alone.post({"value": 2}, {"Async-Mode": "true"}),
        alone.read(done),
        alone.read(done, "?wait=20"),
        alone.cancel(done),
    ):
        refused(answer, 503)
        assert "location" not in answer.headers
    frames, code = alone.all_frames(done)
    assert set(frames[0]) == {"error"}
    assert code == 1013
    refused(alone.http.get("/readyz"), 503)
    assert alone.http.get("/livez").status_code == 200
    stoppable.start()
    alone.gateway.ready()
    assert succeeded(alone.post({"value": 3}), {"value": 3}) == {"value": 3}
    assert state(alone.read(done), done, {"value": 1}, "succeeded") == {"value": 1}
    assert alone.all_frames(done)[1] == 1000


def test_what_was_accepted_before_redis_went_away_is_done_after(
    alone: Local, stoppable: EmbeddedServer, tmp_path: Path
) -> None:
    """Those that run, those that wait, and the clients that wait for them on a socket or a request."""
    go = str(tmp_path / "go")
    ids = [alone.submit({"after": go, "value": i}) for i in range(20)]
    with alone.subscribe(ids[-1]) as subscriber, ThreadPoolExecutor() as client:
        frame(subscriber)
        sync = {"after": go, "value": "sync"}
        waiting = client.submit(alone.post, sync)
        alone.id_of(sync)
        stoppable.stop()
        stoppable.start()
        Path(go).touch()
        assert [alone.result(prediction_id) for prediction_id in ids] == [{"value": i} for i in range(20)]
        assert succeeded(waiting.result(), sync) == {"value": "sync"}
        frames, code = rest_of(subscriber)
        assert news(frames[-1], ids[-1], {"after": go, "value": 19}, "succeeded") == {"value": 19}
        assert code == 1000


def test_while_redis_is_full_nothing_is_accepted(alone: Local, stoppable: EmbeddedServer) -> None:
    done = alone.submit({"value": 1})
    alone.end(done)
    with Redis.from_url(stoppable.url) as redis:
        redis.config_set("maxmemory", 1)
        refused(alone.post({"value": 2}), 503)
        refused(alone.post({"value": 2}, {"Async-Mode": "true"}), 503)
        assert state(alone.read(done), done, {"value": 1}, "succeeded") == {"value": 1}
        redis.config_set("maxmemory", 0)
    assert succeeded(alone.post({"value": 3}), {"value": 3}) == {"value": 3}


# -- stopping


def test_a_stopping_gateway_answers_who_still_waits(moody: Local, tmp_path: Path) -> None:
    gateway = moody.services.gateway()
    value = {"after": str(tmp_path / "go"), "value": 1}
    with closing(Api(gateway.url)) as api, ThreadPoolExecutor() as client:
        waiting = client.submit(api.post, value)
        moody.id_of(value)
        gateway.send_signal(signal.SIGTERM)
        wait_until(lambda: gateway.answers("/livez") is None)  # it takes no more
        (tmp_path / "go").touch()
        assert succeeded(waiting.result(), value) == {"value": 1}
    gateway.stopped()


def test_a_stopping_gateway_tells_who_waits_too_long_where_to_read(moody: Local, tmp_path: Path) -> None:
    gateway = moody.services.gateway(DRAIN_S=1.5)
    value = {"after": str(tmp_path / "go"), "value": 1}
    with closing(Api(gateway.url)) as api, ThreadPoolExecutor() as client:
        waiting = client.submit(api.post, value)
        prediction_id = moody.id_of(value)
        gateway.stop()
        answer = waiting.result()
    assert named(answer) == prediction_id
    assert answer.headers["location"] in refused(answer, 503, prediction_id=prediction_id)
    (tmp_path / "go").touch()
    assert moody.result(prediction_id) == {"value": 1}


def test_a_stopping_processor_gives_back_what_it_has_not_started(
    start: Callable[..., Local], start_processor: Callable[..., Service]
) -> None:
    gateway = start()
    first = start_processor()
    ids = [gateway.submit(i) for i in range(200)]
    first.stop()
    start_processor()
    assert [gateway.result(prediction_id) for prediction_id in ids] == list(range(200))


def test_a_gateway_waits_for_redis_and_stops_when_told(partitions: int, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    with running_services(url, tmp_path, partitions=partitions) as services:
        gateway = services.gateway(wait=False)
        wait_until(lambda: "waiting for the server" in gateway.log, timeout=30)
        gateway.stop()
