"""What a request leaves behind: its duration in the metrics, a line in the access log, a span in its trace."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from common.tracing import Tracing, fail, trace_below, trace_id, trace_of
from gateway.metrics import REQUEST_SECONDS

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger("foretell")

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE"})
_UNSEEN = frozenset({"/livez", "/readyz", "/metrics"})  # asked every few seconds, by machines


@dataclass(slots=True)
class Observation:
    """One request, at `scope["observation"]`. Who answers it sets `code`, who knows the prediction its id; `trace` is
    the context that a job of this request carries."""

    started: float
    trace: str = ""
    code: int = 0
    prediction_id: str = ""
    span: "Span | None" = None


class Observed:
    """The outermost layer but one. What no handler answers (a client that hung up, a WebSocket that was accepted) is not seen."""

    def __init__(self, app: ASGIApp, tracing: Tracing, *, access_log: bool) -> None:
        self._app = app
        self._tracing = tracing
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        seen = scope["observation"] = Observation(time.perf_counter(), trace_of(scope["headers"]))
        if self._tracing.on and scope["type"] == "http" and scope["path"] not in _UNSEEN:
            self._begin(seen, scope)
        try:
            await self._app(scope, receive, send)
        finally:
            if seen.code:
                self._answered(seen, scope)
            if seen.span:
                seen.span.end()

    def _begin(self, seen: Observation, scope: Scope) -> None:
        about = {
            "http.request.method": scope["method"],
            "url.path": scope["path"],
            "url.scheme": scope["asked"].scheme,
        }
        seen.span = self._tracing.begin(scope["method"], "SERVER", seen.trace, about)
        if seen.span:
            seen.trace = trace_below(seen.span)

    def _answered(self, seen: Observation, scope: Scope) -> None:
        seconds = time.perf_counter() - seen.started
        method = scope.get("method", "")
        if method not in _METHODS:
            method = "_OTHER"  # OpenTelemetry's word
        route = getattr(scope.get("endpoint"), "route", "other")
        REQUEST_SECONDS.observe(seconds, (route, method, str(seen.code)))
        if self._access_log:
            log.info(
                "request",
                method=method,
                route=route,
                code=seen.code,
                ms=round(seconds * 1000, 3),
                **_known(
                    client=scope["asked"].client,
                    prediction_id=seen.prediction_id,
                    trace_id=trace_id(seen.trace),
                ),
            )
        if seen.span:
            seen.span.update_name(f"{method} {route}")
            seen.span.set_attributes({"http.route": route, "http.response.status_code": seen.code})
            if seen.prediction_id:
                seen.span.set_attribute("foretell.prediction.id", seen.prediction_id)
            if seen.code >= 500:
                fail(seen.span, "")


def _known(**words: str) -> dict[str, str]:
    return {name: word for name, word in words.items() if word}
