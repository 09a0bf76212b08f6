"""What the metrics say of predictions; their names are compared with the documents elsewhere."""

from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import wait_until
from tests.observability.asking import SECRET, post
from tests.services import ECHO, Service


def metric(service: Service, name: str, **labels: str) -> float | None:
    """The value of a sample; None if there is none."""
    text = service.get("/metrics")[1].decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (sample.name, sample.labels) == (name, labels):
                return sample.value
    return None


@pytest.mark.leaves_jobs("one of them is among the dead")
def test_the_queue_is_measured_by_every_gateway_alike(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service], model: str
) -> None:
    gateways = [start_gateway(MAX_QUEUE=50), start_gateway(MAX_QUEUE=50)]

    def everywhere(name: str, value: float, **labels: str) -> None:
        for gateway in gateways:
            wait_until(lambda g=gateway: metric(g, f"foretell_queue_{name}", **labels) == value)

    for _ in range(3):
        assert post(gateways[0], {"value": SECRET}, Async_Mode="true").status_code == 202
    everywhere("unfinished", 3)
    everywhere("waiting", 3)
    everywhere("running", 0)
    everywhere("limit", 50)
    everywhere("processors", 0)
    wait_until(lambda: metric(gateways[1], "foretell_queue_oldest_waiting_seconds") > 0)

    processor = start_processor(model, MAX_ATTEMPTS=2)
    assert post(gateways[0], {}).status_code == 500
    assert post(gateways[1], {"wait": True}).status_code == 500
    everywhere("finished_total", 3, status="succeeded")
    everywhere("finished_total", 2, status="failed")
    everywhere("given_up_total", 1)
    everywhere("dead", 1)
    everywhere("unfinished", 0)
    everywhere("oldest_waiting_seconds", 0)
    everywhere("processors", 1)
    assert metric(processor, "foretell_attempts_total", reason="first") == 5
    assert metric(processor, "foretell_attempts_total", reason="retry") == 1
    assert metric(processor, "foretell_end_to_end_seconds_count") == 5
    assert metric(processor, "foretell_model_processes") == 1


def test_a_histogram_has_cumulated_buckets(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    gateway, processor = start_gateway(), start_processor(ECHO)
    for _ in range(5):
        assert post(gateway, 1).status_code == 200
    wait_until(lambda: metric(processor, "foretell_end_to_end_seconds_count") == 5)
    lines = processor.get("/metrics")[1].decode().splitlines()
    buckets = [
        float(line.split()[1]) for line in lines if line.startswith("foretell_end_to_end_seconds_bucket")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 5
    name = "http_server_request_duration_seconds"
    labels = {"http_route": "/predict", "http_request_method": "POST", "http_response_status_code": "200"}
    assert metric(gateway, f"{name}_count", **labels) == 5
    assert metric(gateway, f"{name}_bucket", **labels, le="+Inf") == 5


def test_without_redis_a_gateway_says_so_and_no_more_of_the_queue(
    start_gateway: Callable[..., Service],
) -> None:
    gateway = start_gateway(REDIS_URL="redis://127.0.0.1:1/0", wait=False)
    wait_until(lambda: gateway.answers("/livez") == 200, 30)
    assert metric(gateway, "foretell_redis_up") == 0
    assert b"\nforetell_queue_" not in gateway.get("/metrics")[1]
