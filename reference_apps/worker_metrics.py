"""What a worker tells Prometheus: jobs by how they ended, batches, device seconds, leases, and its place on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from reference_apps.replica_metrics import DEVICE_BUCKETS_S

# From a moment to a night.
WAIT_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 28_800.0)
# ok: answered; poison: a dead letter at once; again: given back, for another try; late: nobody waits any more;
# known: its result was there already, from a delivery before.
ENDINGS = ("ok", "poison", "again", "late", "known")


class WorkerMetrics:
    """The metrics of one worker in a registry of their own. Names and units follow Prometheus' conventions."""

    def __init__(
        self,
        held: Callable[[], int],
        overruns: Callable[[], int],
        on_card: Callable[[], bool],
        max_batch_size: int,
    ) -> None:
        self._registry = registry = CollectorRegistry()
        under_lease = Gauge("rung_worker_held_jobs", "Jobs under a lease of this worker", registry=registry)
        under_lease.set_function(held)
        late = Gauge(
            "rung_worker_device_overruns",
            "Emulated batches whose real computation took longer than their pace",
            registry=registry,
        )
        late.set_function(overruns)
        card = Gauge("rung_worker_on_card", "Whether its model may be in the GPU's memory", registry=registry)
        card.set_function(lambda: float(on_card()))
        jobs = Counter("rung_worker_jobs", "Jobs by how they ended here", ["ending"], registry=registry)
        self._jobs = {ending: jobs.labels(ending) for ending in ENDINGS}
        sizes = sorted({2.0**power for power in range(13) if 2**power < max_batch_size} | {float(max_batch_size)})
        self._batch_size = Histogram("rung_worker_batch_size", "Jobs per batch", buckets=sizes, registry=registry)
        self._device = Histogram(
            "rung_worker_device_seconds", "Device time of a batch", buckets=DEVICE_BUCKETS_S, registry=registry
        )
        self._wait = Histogram(
            "rung_worker_wait_seconds",
            "From a job's coming to the start of its batch",
            buckets=WAIT_BUCKETS_S,
            registry=registry,
        )
        self._lost = Counter("rung_worker_leases_lost", "Leases that ran out under the worker", registry=registry)
        self._down = Counter("rung_worker_store_errors", "Calls that queue or results failed", registry=registry)
        self._moves = Counter("rung_worker_card_entries", "Times that its model came onto the GPU", registry=registry)

    def ended(self, ending: str, jobs: int = 1) -> None:
        """Counts jobs that ended so: one of ENDINGS."""
        self._jobs[ending].inc(jobs)

    def batch(self, waits_s: Iterable[float], batch_size: int, device_s: float) -> None:
        """Notes a batch that was run, the waits of its jobs and the device's time for it, in seconds."""
        self._batch_size.observe(batch_size)
        self._device.observe(device_s)
        for wait_s in waits_s:
            self._wait.observe(wait_s)

    def leases_lost(self, jobs: int) -> None:
        """Counts jobs that another may have by now."""
        self._lost.inc(jobs)

    def store_failed(self) -> None:
        """Counts a call that has to be made again."""
        self._down.inc()

    def entered_card(self) -> None:
        """Counts a load of the model onto the GPU that it shares."""
        self._moves.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self._registry)
