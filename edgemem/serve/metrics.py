"""The figures for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
OPS = ("step", "feed", "open", "fork", "snapshot", "restore", "reset", "finish", "close")
"""What a message can ask for."""


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        latency = Histogram(
            "edgemem_message_seconds", "Time to answer a message.", ["op"], registry=registry, buckets=_SECONDS
        )
        self.latency = {op: latency.labels(op) for op in (*OPS, "unknown")}
        self.first_token = Histogram(
            "edgemem_first_token_seconds", "Time to the first token of a text.", registry=registry, buckets=_SECONDS
        )
        self.joules = Counter(
            "edgemem_joules", "Energy by sensor. Some sensors feed others.", ["sensor", "covers"], registry=registry
        )
        self.tokens = Counter("edgemem_tokens", "Tokens read and generated.", ["kind"], registry=registry)
        self.errors = Counter("edgemem_errors", "Requests that failed, by error.", ["code"], registry=registry)
        self.late = Counter("edgemem_deadlines_missed", "Steps that took longer than the deadline.", registry=registry)
        self.connections = Gauge("edgemem_connections", "WebSockets that are open.", registry=registry)
        self._pool = Gauge("edgemem_pool", "Figures of a pool.", ["model", "figure"], registry=registry)

    def joules_by_sensor(self) -> dict[str, float]:
        """Joules of each sensor since the start."""
        samples = (sample for metric in self.joules.collect() for sample in metric.samples)
        return {sample.labels["sensor"]: sample.value for sample in samples if sample.name.endswith("_total")}

    def text(self, pools: Mapping[str, Mapping[str, int]]) -> bytes:
        """Everything in Prometheus' format.

        Args:
            pools: Figures of each model's pool.
        """
        for model, figures in pools.items():
            for figure, value in figures.items():
                self._pool.labels(model, figure).set(value)
        return generate_latest(self.registry)
