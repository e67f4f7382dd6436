"""Readings as Prometheus' text format.

prometheus_client is imported by the first who asks: it brings an HTTP server and its own defaults along, which a daemon
that nobody watches does without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from kmsd.metrics.families import FAMILIES, Distribution, Family, Kind, Reading

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


def exposition(readings: Iterable[Reading]) -> str:
    """Return readings as text, by family in the order of FAMILIES; of one without any, nothing."""
    from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - see above
    from prometheus_client.registry import CollectorRegistry  # noqa: PLC0415

    registry = CollectorRegistry()
    registry.register(_Collector(readings))
    return generate_latest(registry).decode()


class _Collector:
    """What prometheus_client collects from."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._read: dict[Family, list[Reading]] = {family: [] for family in FAMILIES}
        for reading in readings:
            self._read[reading.family].append(reading)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics that there are readings of."""
        return (_metric(family, read) for family, read in self._read.items() if read)


def _metric(family: Family, readings: Iterable[Reading]) -> Metric:
    from prometheus_client.metrics_core import (  # noqa: PLC0415 - see above
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

    if family.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(family.name, family.meaning, labels=family.labels)
        for reading in readings:
            if isinstance(reading.value, Distribution):
                histogram.add_metric(reading.labels, _buckets(reading.value), reading.value.total)
        return histogram
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(family.name, family.meaning, labels=family.labels)
    for reading in readings:
        if not isinstance(reading.value, Distribution):
            metric.add_metric(reading.labels, reading.value)
    return metric


def _buckets(value: Distribution) -> list[tuple[str, float]]:
    """Return the buckets as Prometheus counts them: each with those of all smaller ones."""
    names = (*map(str, value.bounds), "+Inf")
    return list(zip(names, accumulate(value.counts), strict=True))
