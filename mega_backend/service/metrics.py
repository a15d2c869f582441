"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """The counters of one application; each has a registry of its own, so that several may live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "mega_requests", "Requests by endpoint and status", ["endpoint", "status"], registry=registry
        )
        self.seconds = Histogram(
            "mega_request_seconds", "Time from a request to the end of its answer", ["endpoint"],
            registry=registry, buckets=SECONDS,
        )  # fmt: skip
        self.results = Counter("mega_results", "How accepted work ended", ["endpoint", "end"], registry=registry)
        self.people = Counter("mega_people", "People in results", registry=registry)
        self.batch_rows = Histogram(
            "mega_batch_rows", "Rows of device batches", ["function"], registry=registry, buckets=ROWS
        )
        self.batch_seconds = Histogram(
            "mega_batch_seconds", "Time of device batches", ["function"], registry=registry, buckets=SECONDS
        )
        self.batch_requests = Counter(
            "mega_batch_requests", "Requests in device batches, summed", ["function"], registry=registry
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A number that is read when asked for."""
        Gauge(name, text, registry=self.registry).set_function(value)

    def batch(self, function: str, rows: int, requests: int, seconds: float) -> None:
        """After each batch of the device."""
        self.batch_rows.labels(function).observe(rows)
        self.batch_seconds.labels(function).observe(seconds)
        self.batch_requests.labels(function).inc(requests)

    def page(self) -> bytes:
        """The text that Prometheus collects."""
        return generate_latest(self.registry)
