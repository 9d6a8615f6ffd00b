"""What a replica tells Prometheus: queue, batches, device seconds, and outcomes by reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reference_apps.batcher import Batcher

WAIT_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
DEVICE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

# A counter that is there from the start shows its first increase, too; one that appears with it does not.
ENDINGS = (
    *(("ok", ""), ("failed", "bad_input"), ("failed", "model_error")),
    *(("shed", "queue_full"), ("shed", "draining"), ("timed_out", "deadline")),
)


class ReplicaMetrics:
    """The metrics of one replica in a registry of their own. Names and units follow Prometheus' conventions."""

    def __init__(
        self, batcher: Batcher, max_batch_size: int, overruns: Callable[[], int], bounds_s: Sequence[float]
    ) -> None:
        self._registry = CollectorRegistry()
        depth = Gauge("rung_queue_depth", "Requests waiting for a batch", registry=self._registry)
        depth.set_function(lambda: batcher.queue_length)
        age = Gauge("rung_queue_age_seconds", "Wait of the oldest of them", registry=self._registry)
        age.set_function(lambda: batcher.oldest_wait_s)
        self._batch_size = Histogram(
            "rung_batch_size", "Requests per batch", buckets=_sizes(max_batch_size), registry=self._registry
        )
        self._batch_wait = Histogram(
            "rung_batch_wait_seconds",
            "Arrival to start of the batch",
            buckets=WAIT_BUCKETS_S,
            registry=self._registry,
        )
        self._device = Histogram(
            "rung_device_seconds", "Device time of a batch", buckets=DEVICE_BUCKETS_S, registry=self._registry
        )
        late = Gauge(
            "rung_device_overruns",
            "Emulated batches whose real computation took longer than their pace",
            registry=self._registry,
        )
        late.set_function(overruns)
        self._requests = Counter(
            "rung_requests", "Requests by outcome and reason", ["outcome", "reason"], registry=self._registry
        )
        self._seconds = Histogram(
            "rung_request_seconds", "From read to answered", ["outcome"], buckets=bounds_s, registry=self._registry
        )
        # Looked up once: a label costs a request as much as its count.
        self._endings = {ending: self._ending(*ending) for ending in ENDINGS}

    def answered(self, outcome: str, reason: str, took_s: float) -> None:
        """Counts a request that came to its end, `took_s` after it was read."""
        requests, seconds = self._endings.get((outcome, reason)) or self._ending(outcome, reason)
        requests.inc()
        seconds.observe(took_s)

    def batch(self, batch_size: int, waits_s: Iterable[float], device_s: float) -> None:
        """Notes a batch that was run, the waits of its requests and the device's time for it, in seconds."""
        self._batch_size.observe(batch_size)
        self._device.observe(device_s)
        for wait_s in waits_s:
            self._batch_wait.observe(wait_s)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _ending(self, outcome: str, reason: str) -> tuple[Counter, Histogram]:
        return self._requests.labels(outcome, reason), self._seconds.labels(outcome)


def _sizes(max_batch_size: int) -> list[float]:
    """1, 2, 4 … up to the maximum, which is always a bucket of its own."""
    sizes = [float(2**power) for power in range(max_batch_size.bit_length()) if 2**power < max_batch_size]
    return [*sizes, float(max_batch_size)]
