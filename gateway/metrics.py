"""The gateway's Prometheus metrics. One process is one scrape target; docs/api.md says what each means."""

from collections.abc import Iterator

from prometheus_client import REGISTRY, Gauge
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

WAITERS = Gauge("foretell_waiters", "Predictions that somebody here waits for.")
RELAY_CONNECTED = Gauge("foretell_relay_connected", "1 while the gateway hears announcements.")


class RequestCounts(Collector):
    """Answers by (route, method, code). A plain dict: the library's counter takes a lock, 2 % of a prediction's CPU."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, str], int] = {}

    def add(self, route: str, method: str, code: int) -> None:
        labels = (route, method, str(code))
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "foretell_http_requests", "Answers by route, method and code.", labels=["route", "method", "code"]
        )
        for labels, count in list(self._counts.items()):
            family.add_metric(labels, count)
        yield family


REQUESTS = RequestCounts()
REGISTRY.register(REQUESTS)
