"""Traces by OpenTelemetry: one for each prediction, from the request to the model, its context carried in the job.

Off unless the environment names an OTLP endpoint; the standard OTEL_* variables set the rest. A caller's context is
carried on in either case, so that the logs of both services name its trace.
"""

import os
import re
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from common.errors import StartFault

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
FLUSH_S = 2.0  # at the end of a service, for spans that have not been sent
STATE_BYTES = 512  # of a tracestate; W3C Trace Context lets a longer one be dropped
_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

Attributes = Mapping[str, str | int | float | bool]


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The trace context of a request as a job carries it: its traceparent, and behind a space its tracestate. Empty
    without a valid traceparent (https://www.w3.org/TR/trace-context/)."""
    parent, state = b"", b""
    for name, value in headers:
        if name == b"traceparent":
            parent = value.strip()
        elif name == b"tracestate":
            state = value.strip()
    if not parent or not _PARENT.fullmatch(parent[:55]) or (len(parent) > 55 and parent[55:56] != b"-"):
        return ""
    text = parent[:55] + b" " + state if state and len(state) <= STATE_BYTES else parent[:55]
    return text.decode("ascii", "ignore")


def trace_id(trace: str) -> str:
    """The 32 hex digits that a log line shows; empty without a trace."""
    return trace[3:35]


class Tracing:
    """Begins spans; without a provider it begins none. Whoever began one ends it."""

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("foretell") if provider else None

    @classmethod
    def from_environment(cls, service: str) -> "Tracing":
        """Raises StartFault if an endpoint is named and the packages are missing."""
        if not any(map(os.environ.get, ENDPOINTS)) or _switched_off():
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise StartFault(f"An OTLP endpoint is set, but {error}: install the extra otel.") from None
        name = os.environ.get("OTEL_SERVICE_NAME") or f"foretell-{service}"
        provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    @property
    def on(self) -> bool:
        return self._tracer is not None

    def begin(
        self,
        name: str,
        kind: Literal["SERVER", "CONSUMER", "INTERNAL"],
        parent: "Span | str",
        attributes: Attributes,
    ) -> "Span | None":
        """A span below `parent`: a span of this process, or the one that a trace context names; a new trace if it is
        empty."""
        if self._tracer is None:
            return None
        from opentelemetry.trace import SpanKind, set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if isinstance(parent, str):
            traceparent, _, state = parent.partition(" ")
            carrier = {"traceparent": traceparent, "tracestate": state} if parent else {}
            context = TraceContextTextMapPropagator().extract(carrier)
        else:
            context = set_span_in_context(parent)
        return self._tracer.start_span(name, context, SpanKind[kind], attributes)

    def close(self) -> None:
        """Send what has not been sent, for at most FLUSH_S: a collector that is away must not hold a stop up."""
        if self._provider:
            last = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
            last.start()
            last.join(FLUSH_S)


def _switched_off() -> bool:
    """Whether the standard variables say so, endpoint or not."""
    exporter, disabled = (
        os.environ.get(name, "").strip().lower() for name in ("OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED")
    )
    return exporter == "none" or disabled == "true"


def trace_below(span: "Span") -> str:
    """The context for what happens below `span` in another process, as `trace_of` has it."""
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    return " ".join(carrier.values())  # traceparent first


def fail(span: "Span", why: str) -> None:
    """Mark it as an error."""
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR, why)
