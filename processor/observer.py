"""What a prediction leaves behind in a processor: metrics, log lines, spans in its trace. It decides nothing."""

import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import structlog
from structlog.typing import FilteringBoundLogger

from common.settings import ProcessorSettings
from common.store.claims import Job, Outcome
from common.tracing import Tracing, fail, trace_id
from processor import metrics

if TYPE_CHECKING:
    from opentelemetry.trace import Span

LOGGED_BYTES = 1000  # of an input, with LOG_INPUTS


class Observer:
    def __init__(self, settings: ProcessorSettings, tracing: Tracing) -> None:
        self._tracing = tracing
        self._log: FilteringBoundLogger = structlog.get_logger("foretell").bind(model=settings.model)
        self._debug = settings.log_level == "debug"
        self._inputs = settings.log_inputs

    def about(self, job: Job) -> FilteringBoundLogger:
        """A logger that names the job."""
        bound = self._log.bind(prediction_id=job.id, attempt=job.attempt)
        return bound.bind(trace_id=trace_id(job.trace)) if job.trace else bound

    def taken(self, jobs: list[Job], *, reclaimed: bool) -> None:
        """They are ours now."""
        now = time.monotonic()
        for job in jobs:
            job.started = now
            metrics.WAIT_SECONDS.observe(job.queue_us / 1e6)
            if self._tracing.on:
                job.span = self._begin(job)
        reasons = Counter("reclaim" if reclaimed else "first" if j.attempt == 1 else "retry" for j in jobs)
        for reason, number in reasons.items():
            metrics.ATTEMPTS.labels(reason).inc(number)

    def _begin(self, job: Job) -> "Span | None":
        """None where the trace is not recorded."""
        about: dict[str, str | int | float] = {
            "messaging.system": "redis",
            "messaging.operation.type": "process",
            "messaging.message.id": job.id,
            "foretell.prediction.id": job.id,
            "foretell.attempt": job.attempt,
            "foretell.wait_seconds": job.queue_us / 1e6,
        }
        span = self._tracing.begin("process", "CONSUMER", job.trace, about)
        return span if span and span.is_recording() else None

    def dispatched(self, jobs: list[Job]) -> "list[Span | None]":
        """They were sent to a model process; for each the span of that, None where its trace is not recorded."""
        metrics.BATCH_SIZE.observe(len(jobs))
        about = {"foretell.batch_size": len(jobs)}
        return [job.span and self._tracing.begin("predict", "INTERNAL", job.span, about) for job in jobs]

    def died(self, jobs: list[Job], spans: "list[Span | None]", why: str) -> None:
        """Their model process ended before it answered them."""
        for job, span in zip(jobs, spans, strict=True):
            self.about(job).warning("model process died", why=why, batch=len(jobs))
            if span:
                fail(span, why)
                span.end()

    def succeeded(self, job: Job, predict_us: int) -> None:
        if self._debug:
            self.about(job).debug("prediction succeeded", ms=predict_us / 1000)

    def failed(self, job: Job, cause: str, error: str, **more: Any) -> None:
        """`error` may quote the input, so it is for LOG_INPUTS only."""
        if self._inputs:
            more |= {"error": error, "input": job.input[:LOGGED_BYTES].decode(errors="replace")}
        self.about(job).info("prediction failed", cause=cause, **more)
        if job.span:
            fail(job.span, cause)

    def recorded(self, outcomes: Sequence[tuple[Job, Outcome]], kept: Sequence[bool]) -> None:
        """What the job store said to each."""
        now = time.monotonic()
        ends: Counter[str] = Counter()
        for (job, outcome), ours in zip(outcomes, kept, strict=True):
            ends[outcome.status if ours else "refused"] += 1
            if ours:
                metrics.END_TO_END_SECONDS.observe(job.queue_us / 1e6 + now - job.started)
        for status, number in ends.items():
            metrics.PREDICTIONS.labels(status).inc(number)

    def dropped(self, job: Job) -> None:
        """It is not ours any more."""
        if job.span:
            job.span.end()
