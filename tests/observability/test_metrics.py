"""What the metrics say of predictions; their names are compared with the documents elsewhere."""

from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.observability.asking import SECRET, post
from tests.services import ECHO, Service


@pytest.mark.leaves_jobs("one of them is among the dead")
def test_the_queue_is_measured_by_every_gateway_alike(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service], model: str
) -> None:
    gateways = [start_gateway(MAX_QUEUE=50), start_gateway(MAX_QUEUE=50)]

    def everywhere(name: str, value: float) -> None:
        for gateway in gateways:
            wait_until(lambda g=gateway: g.metrics()[f"foretell_queue_{name}"] == value)

    for _ in range(3):
        assert post(gateways[0], {"value": SECRET}, Async_Mode="true").status_code == 202
    everywhere("unfinished", 3)
    everywhere("waiting", 3)
    everywhere("running", 0)
    everywhere("limit", 50)
    everywhere("processors", 0)
    wait_until(lambda: gateways[1].metrics()["foretell_queue_oldest_waiting_seconds"] > 0)

    processor = start_processor(model, MAX_ATTEMPTS=2)
    assert post(gateways[0], {}).status_code == 500
    assert post(gateways[1], {"wait": True}).status_code == 500
    everywhere('finished_total{status="succeeded"}', 3)
    everywhere('finished_total{status="failed"}', 2)
    everywhere("given_up_total", 1)
    everywhere("dead", 1)
    everywhere("unfinished", 0)
    everywhere("oldest_waiting_seconds", 0)
    everywhere("processors", 1)
    assert processor.metrics()['foretell_attempts_total{reason="first"}'] == 5
    assert processor.metrics()['foretell_attempts_total{reason="retry"}'] == 1
    assert processor.metrics()["foretell_end_to_end_seconds_count"] == 5
    assert processor.metrics()["foretell_model_processes"] == 1


def test_a_histogram_has_cumulated_buckets(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    gateway, processor = start_gateway(), start_processor(ECHO)
    for _ in range(5):
        assert post(gateway, 1).status_code == 200
    wait_until(lambda: processor.metrics()["foretell_end_to_end_seconds_count"] == 5)
    lines = processor.get("/metrics")[1].decode().splitlines()
    buckets = [
        float(line.split()[1]) for line in lines if line.startswith("foretell_end_to_end_seconds_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 5
    name = "http_server_request_duration_seconds"
    labels = 'http_request_method="POST",http_response_status_code="200",http_route="/predict"'
    assert gateway.metrics()[f"{name}_count{{{labels}}}"] == 5
    assert gateway.metrics()[f'{name}_bucket{{{labels},le="+Inf"}}'] == 5


def test_without_redis_a_gateway_says_so_and_no_more_of_the_queue(
    start_gateway: Callable[..., Service],
) -> None:
    gateway = start_gateway(REDIS_URL="redis://127.0.0.1:1/0", wait=False)
    wait_until(lambda: gateway.answers("/livez") == 200, 30)
    assert gateway.metrics()["foretell_redis_up"] == 0
    assert b"\nforetell_queue_" not in gateway.get("/metrics")[1]
