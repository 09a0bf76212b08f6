"""One trace for each prediction, from the request to the model's call."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from common.settings import GatewaySettings, ProcessorSettings
from common.tracing import Tracing, trace_of
from gateway.app import make_app
from gateway.gateway import Gateway
from processor.service import Processor
from tests.conftest import eventually
from tests.observability.asking import PARENT, SECRET, TRACE, post
from tests.processor.running import Running
from tests.services import ECHO, Service


@pytest.mark.parametrize(
    ("parent", "state", "carried"),
    [
        (PARENT, "", PARENT),
        (PARENT, "vendor=1,other=a b", f"{PARENT} vendor=1,other=a b"),
        (PARENT, "x" * 513, PARENT),
        (f"01{PARENT[2:]}-more", "", f"01{PARENT[2:]}"),
        (f"{PARENT}more", "", ""),
        (f"ff{PARENT[2:]}", "", ""),
        (PARENT.upper(), "", ""),
        (PARENT.replace(TRACE, "0" * 32), "", ""),
        (PARENT.replace("b7ad6b7169203331", "0" * 16), "", ""),
        ("garbage", "vendor=1", ""),
        ("", "vendor=1", ""),
    ],
)
def test_the_context_of_a_request(parent: str, state: str, carried: str) -> None:
    headers = [(b"traceparent", parent.encode()), (b"tracestate", state.encode())]
    assert trace_of(header for header in headers if header[1]) == carried


@pytest.fixture
async def traced(
    redis_url: str, partitions: int, model: str
) -> AsyncIterator[tuple[httpx2.AsyncClient, InMemorySpanExporter]]:
    """Both services in this process, telling one exporter."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    common = {"redis_url": redis_url, "partitions": partitions, "_env_file": None}
    gateway = Gateway(GatewaySettings(**common), tracing)
    processor = Processor(ProcessorSettings(**common, model=model, max_attempts=2), tracing)
    await gateway.queue.prepare()
    await asyncio.gather(*(process.start() for process in processor.models))
    running = Running(processor)
    hearing = asyncio.create_task(gateway.relay.run())
    await gateway.relay.connected.wait()
    gateway.started = True
    transport = httpx2.ASGITransport(make_app(gateway))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        yield client, exporter
    await running.stop()
    hearing.cancel()
    with suppress(asyncio.CancelledError):
        await hearing
    await gateway.session.aclose()


async def spans(exporter: InMemorySpanExporter, number: int) -> dict[str, ReadableSpan]:
    """By name, once there are so many."""
    found = await eventually(
        lambda: (ended := exporter.get_finished_spans()) and len(ended) >= number and ended
    )
    assert len(found) == number
    return {span.name: span for span in found}


def ids(span: ReadableSpan) -> tuple[str, str]:
    """Its trace, and itself."""
    context = span.get_span_context()
    assert context
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parent(span: ReadableSpan) -> str:
    assert span.parent
    return f"{span.parent.span_id:016x}"


@pytest.mark.parametrize("mode", ["false", "true"])
async def test_one_trace_from_the_request_to_the_model(
    traced: tuple[httpx2.AsyncClient, InMemorySpanExporter], mode: str
) -> None:
    client, exporter = traced
    headers = {"Traceparent": PARENT, "Tracestate": "vendor=1", "Async-Mode": mode}
    answer = await client.post("/predict", json={"input": {"value": 1}}, headers=headers)
    found = await spans(exporter, 3)
    request, process, predict = found["POST /predict"], found["process"], found["predict"]
    assert {ids(span)[0] for span in found.values()} == {TRACE}
    assert parent(request) == "b7ad6b7169203331"
    assert parent(process) == ids(request)[1]
    assert parent(predict) == ids(process)[1]
    assert predict.get_span_context().trace_state.get("vendor") == "1"
    prediction_id = answer.headers["Prediction-Id"]
    for span in (request, process):
        assert span.attributes["foretell.prediction.id"] == prediction_id
    assert request.attributes["http.response.status_code"] == (202 if mode == "true" else 200)
    assert process.attributes["foretell.attempt"] == 1
    assert predict.attributes["foretell.batch_size"] == 1


async def test_who_is_not_sampled_is_served_beside_who_is(
    traced: tuple[httpx2.AsyncClient, InMemorySpanExporter],
) -> None:
    client, exporter = traced

    async def ask(number: int) -> None:
        parent = f"00-{number + 1:032x}-b7ad6b7169203331-0{number % 2}"
        answer = await client.post(
            "/predict", json={"input": {"value": number}}, headers={"Traceparent": parent}
        )
        assert answer.json()["result"] == number

    await asyncio.gather(*map(ask, range(40)))
    await eventually(lambda: len(exporter.get_finished_spans()) == 3 * 20)
    assert {int(ids(span)[0], 16) % 2 for span in exporter.get_finished_spans()} == {0}


async def test_a_failure_is_seen_in_the_trace_without_its_input(
    traced: tuple[httpx2.AsyncClient, InMemorySpanExporter],
) -> None:
    client, exporter = traced
    assert (await client.post("/predict", json={"input": {SECRET: 1}})).status_code == 500
    found = await spans(exporter, 3)
    assert len({ids(span)[0] for span in found.values()}) == 1
    for name in ("POST /predict", "process"):
        assert not found[name].status.is_ok
    assert "KeyError at model.py" in found["process"].status.description
    assert not any(SECRET in span.to_json() for span in found.values())


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Takes OTLP over HTTP as any collector does: its URL, and (service, span, trace) of what it got."""
    got: list[tuple[str, str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = ExportTraceServiceRequest.FromString(
                self.rfile.read(int(self.headers["Content-Length"]))
            )
            for resource in request.resource_spans:
                about = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    got.extend(
                        (about["service.name"], span.name, span.trace_id.hex()) for span in scope.spans
                    )
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", got
        finally:
            server.shutdown()
            thread.join()


def test_both_services_send_their_spans_where_the_environment_says(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    """What is not sent yet when they stop is sent then."""
    with collector() as (url, got):
        gateway = start_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=url)
        processor = start_processor(ECHO, OTEL_EXPORTER_OTLP_ENDPOINT=url)
        assert post(gateway, 1, Traceparent=PARENT).status_code == 200
        gateway.stop()
        processor.stop()
    assert sorted(got) == [
        ("foretell-gateway", "POST /predict", TRACE),
        ("foretell-processor", "predict", TRACE),
        ("foretell-processor", "process", TRACE),
    ]


@pytest.mark.parametrize(
    ("name", "value", "on"),
    [
        ("OTEL_TRACES_EXPORTER", "none", False),
        ("OTEL_TRACES_EXPORTER", "otlp", True),
        ("OTEL_SDK_DISABLED", "True", False),
        ("OTEL_SDK_DISABLED", "false", True),
    ],
)
def test_the_standard_variables_switch_it_off(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, on: bool
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv(name, value)
    tracing = Tracing.from_environment("gateway")
    tracing.close()
    assert tracing.on is on


def test_a_collector_that_is_away_holds_nothing_up(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    away = "http://127.0.0.1:1"
    gateway = start_gateway(OTEL_EXPORTER_OTLP_ENDPOINT=away)
    start_processor(ECHO, OTEL_EXPORTER_OTLP_ENDPOINT=away)
    assert [post(gateway, n).json()["result"] for n in range(5)] == list(range(5))
