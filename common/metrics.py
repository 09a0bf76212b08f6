"""A histogram for the hot path, and what the logs lost. One process is one scrape target: nothing here is shared between processes."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from common.begin import ERR, OUT

#: From a cached answer to a model that runs for a minute.
LATENCY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Histogram(Collector):
    """The library's, without its lock and its walk through the buckets, which are 2 % of a prediction's CPU: all
    that observes, and the scrape, run in the one event loop."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        *,
        buckets: Sequence[float] = LATENCY_S,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._labels = labels
        self._buckets = buckets
        self._series: dict[tuple[str, ...], _Series] = {}
        if not labels:
            self._series[()] = _Series(len(buckets) + 1)
        REGISTRY.register(self)

    def observe(self, value: float, labels: tuple[str, ...] = ()) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(len(self._buckets) + 1)
        series.counts[bisect_left(self._buckets, value)] += 1
        series.sum += value

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labels)
        bounds = [*map(str, map(float, self._buckets)), "+Inf"]
        for labels, series in self._series.items():
            counts = [float(count) for count in accumulate(series.counts)]
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), series.sum)
        yield family


class _Series:
    __slots__ = ("counts", "sum")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets  # by bucket, not cumulated
        self.sum = 0.0


class DroppedLines(Collector):
    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(
            "foretell_log_lines_dropped",
            "Lines that standard output or error did not take.",
            OUT.dropped_lines + ERR.dropped_lines,
        )


REGISTRY.register(DroppedLines())
