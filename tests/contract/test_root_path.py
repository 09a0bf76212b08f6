"""ROOT_PATH: `Location` leads a client through a proxy that publishes the gateway under a path prefix."""

from collections.abc import Callable

import pytest

from tests.contract.api import TEXT, Answer, refused, state
from tests.contract.conftest import Local


def through_the_proxy(gateway: Local, location: str) -> Answer:
    """The proxy removes its prefix."""
    assert location.startswith("/ml/foretell/predict/")
    return gateway.http.get(location.removeprefix("/ml/foretell"))


@pytest.mark.parametrize("root_path", ["/ml/foretell", "/ml/foretell/"])
def test_location_has_the_prefix(
    start: Callable[..., Local], start_processor: Callable[..., object], root_path: str
) -> None:
    gateway = start(ROOT_PATH=root_path, SYNC_WAIT_S=0.2)
    accepted = gateway.post(TEXT, {"Async-Mode": "true"})
    prediction_id = accepted.headers["prediction-id"]
    state(through_the_proxy(gateway, accepted.headers["location"]), prediction_id, TEXT, "queued")
    late = gateway.post(TEXT)
    location, late_id = late.headers["location"], late.headers["prediction-id"]
    assert location in refused(late, 504, prediction_id=late_id)
    state(through_the_proxy(gateway, location), late_id, TEXT, "queued")
    put = gateway.put("3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015", TEXT, {"Prefer": "respond-async"})
    assert put.headers["location"] == "/ml/foretell/predict/3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015"
    start_processor()
    for one in (accepted, late, put):
        state(gateway.end(one.headers["prediction-id"]), one.headers["prediction-id"], TEXT, "succeeded")
