"""The gateway's Prometheus metrics; docs/operations.md says what each means.

`foretell_queue_*` are read from Redis and are the same at every gateway: a query takes their maximum, never their sum.
Everything else is of this one process.
"""

from collections.abc import Iterator

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from common.metrics import Histogram
from common.store.queue import QueueStats

#: OpenTelemetry's http.server.request.duration
REQUEST_SECONDS = Histogram(
    "http_server_request_duration_seconds",
    "Time from the complete head of the request to the last byte of the answer.",
    ["http_route", "http_request_method", "http_response_status_code"],
)
ACTIVE_REQUESTS = Gauge("http_server_active_requests", "Prediction requests in progress.")
WAITERS = Gauge("foretell_waiters", "Predictions with waiters at this gateway.")
WEBSOCKETS = Gauge("foretell_websockets", "Open WebSockets.")
REDIS_UNFIT = Gauge(
    "foretell_redis_unfit", "1 while a Redis server is unfit for the queue by this.", ["reason"]
)
RELAY_CONNECTED = Gauge("foretell_relay_connected", "1 while the gateway is subscribed to announcements.")
RELAY_RECONNECTS = Counter("foretell_relay_reconnects", "Times the subscription was lost and made again.")


class Queue(Collector):
    """The queue of the whole service, as it was when `measure` was last set; without one, only that Redis is away."""

    measure: QueueStats | None = None
    limit = 0

    def collect(self) -> Iterator[Metric]:
        found = self.measure
        yield GaugeMetricFamily(
            "foretell_redis_up", "1 if Redis answered this scrape.", float(found is not None)
        )
        if found is None:
            return
        waiting = max(0, found.unfinished - found.running)
        for name, meaning, value in (
            ("unfinished", "Predictions accepted and not final: waiting plus running.", found.unfinished),
            ("waiting", "Unfinished predictions claimed by no processor.", waiting),
            ("running", "Unfinished predictions claimed by a processor.", found.running),
            (
                "oldest_waiting_seconds",
                "How long the next prediction in line has waited.",
                found.oldest_s or 0.0,
            ),
            ("limit", "MAX_QUEUE.", self.limit),
            (
                "processors",
                "Processors that read the queue; a killed one counts until another removes it.",
                found.processors,
            ),
            ("dead", "Dead letters in GET /dead.", found.dead),
        ):
            yield GaugeMetricFamily(f"foretell_queue_{name}", meaning, value)
        finished = CounterMetricFamily(
            "foretell_queue_finished", "Predictions by final state.", labels=["status"]
        )
        for status, number in found.finished.items():
            finished.add_metric([status], number)
        yield finished
        yield CounterMetricFamily(
            "foretell_queue_given_up", "Predictions that became dead letters.", found.given_up
        )


QUEUE = Queue()
REGISTRY.register(QUEUE)
