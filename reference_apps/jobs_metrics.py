"""What the jobs API tells Prometheus: requests by outcome and reason, callbacks, and the queue as its broker has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reference_apps.broker import Depth

# A counter that is there from the start shows its first increase, too; one that appears with it does not.
ENDINGS = (
    *(("ok", ""), ("failed", "bad_input"), ("failed", "model_error"), ("failed", "not_found")),
    *(("shed", "queue_full"), ("shed", "gateway_full"), ("shed", "draining"), ("shed", "broker_down")),
    *(("timed_out", "deadline"), ("timed_out", "upstream_timeout")),
)


class JobsMetrics:
    """The metrics of one jobs API in a registry of their own. Names and units follow Prometheus' conventions."""

    def __init__(self, inside: Callable[[], int], waiting: Callable[[], int], bounds_s: Sequence[float]) -> None:
        self._registry = registry = CollectorRegistry()
        in_flight = Gauge("rung_jobs_in_flight", "Requests inside the API", registry=registry)
        in_flight.set_function(inside)
        watched = Gauge("rung_jobs_waiters", "Clients that wait for a job's end", registry=registry)
        watched.set_function(waiting)
        self._requests = Counter(
            "rung_jobs_requests",
            "POST /jobs and POST /predict by outcome and reason",
            ["outcome", "reason"],
            registry=registry,
        )
        self._seconds = Histogram(
            "rung_jobs_request_seconds", "From read to answered", ["outcome"], buckets=bounds_s, registry=registry
        )
        # Looked up once: a label costs a request as much as its count.
        self._endings = {reason: self._ending(outcome, reason) for outcome, reason in ENDINGS}
        self._accepted = Counter("rung_jobs_accepted", "Jobs that were accepted here", registry=registry)
        self._duplicates = Counter(
            "rung_jobs_duplicates", "Requests that named a job which was there already", registry=registry
        )
        self._looks = Counter("rung_jobs_looks", "GET /jobs/{id}", registry=registry)
        self._gone = Counter("rung_jobs_clients_gone", "Clients that did not wait for an answer", registry=registry)
        self._callbacks = Counter(
            "rung_jobs_callbacks", "Tries to call back by how they ended", ["how"], registry=registry
        )
        for how in ("delivered", "put_off", "given_up"):
            self._callbacks.labels(how)
        self._queue = _Queue()
        registry.register(self._queue)

    def answered(self, reason: str, took_s: float) -> None:
        """Counts a request that came to its end, `took_s` after it was read."""
        requests, seconds = self._endings[reason]
        requests.inc()
        seconds.observe(took_s)

    def accepted(self, duplicate: bool) -> None:
        """Counts a job, or a request for one that was there already."""
        (self._duplicates if duplicate else self._accepted).inc()

    def looked(self) -> None:
        """Counts a look for a job."""
        self._looks.inc()

    def client_gone(self) -> None:
        """Counts a client that went away before its answer."""
        self._gone.inc()

    def called_back(self, how: str) -> None:
        """Counts a try to call back."""
        self._callbacks.labels(how).inc()

    def text(self, depth: Depth | None) -> bytes:
        """The metrics in Prometheus' text format. Without a depth nothing is said of the queue: 0 would be a lie."""
        self._queue.depth = depth
        return generate_latest(self._registry)

    def _ending(self, outcome: str, reason: str) -> tuple[Counter, Histogram]:
        return self._requests.labels(outcome, reason), self._seconds.labels(outcome)


class _Queue(Collector):
    """The queue as it was found for this page."""

    depth: Depth | None = None

    def collect(self) -> Iterable[Metric]:
        if (depth := self.depth) is None:
            return
        jobs = GaugeMetricFamily("rung_queue_jobs", "Jobs in the queue by state", labels=["state"])
        for state in ("waiting", "leased", "delayed", "dead"):
            jobs.add_metric([state], getattr(depth, state))
        yield jobs
        yield GaugeMetricFamily("rung_queue_oldest_seconds", "How long the first in line has waited", depth.oldest_s)
