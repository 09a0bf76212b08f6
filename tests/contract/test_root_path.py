"""ROOT_PATH, and the prefix that a proxy names: `Location` leads a client through a proxy that publishes the gateway under a path prefix."""

from collections.abc import Callable
from urllib.parse import urljoin

import pytest

from tests.contract.api import TEXT, Answer, refused, state
from tests.contract.conftest import Local
from tests.services import ECHO


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


PREFIXES = [
    (("/ml",), "/ml"),
    (("/ml/",), "/ml"),
    (("/outer", "/inner"), "/outer/inner"),
    (("/outer, /inner/",), "/outer/inner"),
    (("/",), ""),
    ((), ""),
]


def test_a_trusted_proxy_names_the_prefix_itself(start: Callable[..., Local]) -> None:
    gateway = start(model=ECHO, TRUSTED_PROXIES="127.0.0.1")
    for said, prefix in PREFIXES:
        answer = gateway.post(TEXT, [("X-Forwarded-Prefix", one) for one in said])
        assert answer.headers["location"] == f"{prefix}/predict/{answer.headers['prediction-id']}", said


NO_PATHS = [
    "//evil.example",
    "/ml//x",
    "ml",
    "http://evil.example",
    "/a b",
    "/\\evil",
    "/" + "a" * 2000,
    "/a?b",
]


def test_what_is_no_path_is_not_put_in_front(start: Callable[..., Local]) -> None:
    gateway = start(model=ECHO, TRUSTED_PROXIES="*", ROOT_PATH="/ml")
    for prefix in NO_PATHS:
        answer = gateway.post(TEXT, {"X-Forwarded-Prefix": prefix})
        assert answer.headers["location"] == f"/ml/predict/{answer.headers['prediction-id']}", prefix


@pytest.mark.parametrize("cut", ["X-Forwarded-Prefix", "X-Envoy-Original-Path"])
def test_without_a_setting_location_leads_through_a_proxy_that_says_it_cut_something_off(
    start: Callable[..., Local], cut: str
) -> None:
    """Whatever it says: nobody needs to believe it, as the reference starts from the URL that the client knows."""
    gateway = start(model=ECHO)
    prediction_id = "3f1c9a52-7b0e-4d61-9c3a-d84f27e6b015"
    for method, path in (
        ("POST", "/predict"),
        ("POST", "/predict/"),
        ("PUT", f"/predict/{prediction_id}"),
        ("PUT", f"/predict/{prediction_id}/"),
    ):
        answer = gateway.http.request(method, path, json={"input": TEXT}, headers={cut: "//evil.example/ml"})
        seen = urljoin(f"https://page.example/ml{path}?wait=1", answer.headers["location"])
        assert seen == f"https://page.example/ml/predict/{answer.headers['prediction-id']}"


def test_a_path_that_still_has_its_prefix_is_told_who_must_remove_it(start: Callable[..., Local]) -> None:
    gateway = start(ROOT_PATH="/ml")
    assert "the proxy must remove /ml" in refused(gateway.http.get("/ml/predict"), 404)
    assert "POST /predict" in refused(gateway.http.get("/mlx/predict"), 404)
