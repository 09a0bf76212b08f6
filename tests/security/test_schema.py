"""docs/openapi.json is true: its paths are the gateway's, its codes those of docs/api.md, and whatever is asked, well
or badly, is answered the way it says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from starlette.routing import Route

from common.settings import GatewaySettings
from common.tracing import Tracing
from gateway.app import make_app
from gateway.gateway import Gateway
from tests.services import Service, running_services
from tools.embedded_server import EmbeddedServer

DOCS = Path(__file__).resolve().parents[2] / "docs"
DOCUMENT: dict[str, Any] = json.loads((DOCS / "openapi.json").read_text())
METHODS = {"get", "put", "post", "delete"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]

#: 503 and 504 are meant: a deadline or a wait that the input asks for has passed
MEANT = {"checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", 503, 504]}}}

MODEL = """
import os, time
def model(input):
    if input == "raise": raise ValueError("This input is not to my taste.")
    if input == "die": os._exit(1)
    if input == "hang": time.sleep(3600)
    return input
"""

schema = schemathesis.openapi.from_dict(DOCUMENT, config=schemathesis.Config.from_dict(MEANT))


def test_its_paths_are_those_of_the_gateway() -> None:
    documented = {
        (path, method.upper()) for path, item in DOCUMENT["paths"].items() for method in METHODS & set(item)
    }
    app: Any = make_app(Gateway(GatewaySettings(_env_file=None), Tracing()))
    while not hasattr(app, "routes"):
        app = app._app
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert documented == {(route.path, method) for route in routes for method in route.methods - {"HEAD"}}


def test_its_codes_are_those_of_the_reference() -> None:
    documented = {
        code
        for item in DOCUMENT["paths"].values()
        for method in METHODS & set(item)
        for code in item[method]["responses"]
    }
    section = (DOCS / "api.md").read_text().partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([0-9, ]+) \|", section, re.MULTILINE)
    assert documented == {"200", "202"} | {code for row in rows for code in row.split(", ")}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, partitions: int) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("schema")
    with (
        EmbeddedServer(folder / "server", aof=False) as server,
        running_services(server.url, folder, partitions=partitions) as services,
    ):
        (folder / "model.py").write_text(MODEL)
        gateway = services.gateway(SYNC_WAIT_S=2)
        services.processor(f"{folder}/model.py:model", MAX_ATTEMPTS=1)
        yield gateway
        assert "Traceback" not in gateway.log


@schema.parametrize()
@settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_documented(case: Any, gateway: Service) -> None:
    case.call_and_validate(base_url=gateway.url, checks=CHECKS, timeout=20)


class Client:
    """Asks the way the document says, and checks that the answer is documented."""

    def __init__(self, gateway: Service) -> None:
        self._url = gateway.url

    def ask(self, method: str, path: str, code: int, prediction_id: str = "", **parts: Any) -> Any:
        """The answer's Prediction-Id; `parts` are what schemathesis calls them."""
        if prediction_id:
            parts["path_parameters"] = {"prediction_id": prediction_id}
        case = schema[path][method].Case(**parts)
        checks = [check for check in CHECKS if check is not not_a_server_error or code != 500]
        answer = case.call_and_validate(base_url=self._url, checks=checks, timeout=30)
        assert answer.status_code == code, answer.text
        return answer.headers.get("prediction-id", [None])[0]

    def post(self, value: Any, code: int, **headers: str) -> Any:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = {"body": {"input": value}, "media_type": "application/json"}
        return self.ask("POST", "/predict", code, headers=named, **body)

    def put(self, prediction_id: str, value: Any, code: int) -> None:
        body = {"body": {"input": value}, "media_type": "application/json"}
        self.ask("PUT", "/predict/{prediction_id}", code, prediction_id, **body)

    def read(self, prediction_id: str, code: int, wait: float = 0) -> None:
        self.ask("GET", "/predict/{prediction_id}", code, prediction_id, query={"wait": wait})


def test_every_kind_of_prediction_is_as_documented(gateway: Service) -> None:
    client = Client(gateway)
    client.read(client.post("x", 200), 200)
    failed = client.post("raise", 500)
    client.read(failed, 200)
    client.put(failed, "x", 422)
    running = client.post("hang", 504)
    client.read(running, 202)
    client.post("x", 202, Prefer="wait=0")
    for code in (200, 409):
        client.ask("DELETE", "/predict/{prediction_id}", code, running)
    client.read(running, 200)
    dead = client.post("die", 202, Async_Mode="true")
    client.read(dead, 200, wait=20)
    client.ask("GET", "/dead", 200)
    client.ask("POST", "/dead/{prediction_id}/retry", 202, dead)
    client.read(dead, 200, wait=20)
    for code in (200, 404):
        client.ask("DELETE", "/dead/{prediction_id}", code, dead)
