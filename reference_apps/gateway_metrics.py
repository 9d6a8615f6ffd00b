"""What a gateway tells Prometheus: requests by outcome and reason, tries, times, and each replica as it sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from reference_apps.shadowing import Shadow
    from reference_apps.splitter import Splitter

# A counter that is there from the start shows its first increase, too; one that appears with it does not.
ENDINGS = (
    *(("ok", ""), ("failed", "bad_input"), ("failed", "model_error"), ("failed", "upstream_lost")),
    *(("shed", "queue_full"), ("shed", "draining"), ("shed", "gateway_full"), ("shed", "no_replica")),
    *(("timed_out", "deadline"), ("timed_out", "upstream_timeout")),
)

# Number, outstanding requests, seconds that requests have spent there, ready by its probes, ejected for its failures,
# draining.
Seen = tuple[int, int, float, bool, bool, bool]


class GatewayMetrics:
    """The metrics of one gateway in a registry of their own. Names and units follow Prometheus' conventions.

    Those of its cache are registered there by CacheMetrics.
    """

    def __init__(
        self,
        in_flight: Callable[[], int],
        replicas: Callable[[], Iterable[Seen]],
        bounds_s: Sequence[float],
        arms: Sequence[str] = ("",),
    ) -> None:
        self.registry = registry = CollectorRegistry()
        inside = Gauge("rung_gateway_in_flight", "Requests inside the gateway", registry=registry)
        inside.set_function(in_flight)
        self._arms = tuple(arm for arm in arms if arm)  # none where one version of the model answers all
        labels = ["outcome", "reason", *(["arm"] if self._arms else [])]
        self._requests = Counter("rung_gateway_requests", "Requests by outcome and reason", labels, registry=registry)
        self._seconds = Histogram(
            "rung_gateway_request_seconds",
            "From read to answered",
            ["outcome"],
            buckets=bounds_s,
            registry=registry,
        )
        self._arm_seconds = self._of_arms(bounds_s)
        self._copies: Counter | None = None
        self._copies_dropped: Counter | None = None
        # Looked up once: a label costs a request as much as its count.
        self._endings = {(*ending, arm): self._ending(*ending, arm) for ending in ENDINGS for arm in arms}
        self._arrived = Counter("rung_gateway_arrived", "Requests that came, the refused too", registry=registry)
        self._retries = Counter("rung_gateway_retries", "Further tries by their cause", ["reason"], registry=registry)
        self._refused = Counter(
            "rung_gateway_retries_refused", "Retries that were safe, and over the budget", registry=registry
        )
        self._ejections = Counter(
            "rung_gateway_ejections",
            "Ejections of a replica for its failures",
            ["replica"],
            registry=registry,
        )
        self._gone = Counter("rung_gateway_clients_gone", "Clients that did not wait for an answer", registry=registry)
        self._unauthorized = Counter("rung_gateway_unauthorized", "Requests without a key", registry=registry)
        registry.register(_Replicas(replicas))

    def arrived(self) -> None:
        """Counts a request that came."""
        self._arrived.inc()

    def answered(self, outcome: str, reason: str, took_s: float, arm: str = "") -> None:
        """Counts a request that came to its end, `took_s` after it was read; "" for one that has no arm."""
        requests, seconds = self._endings.get((outcome, reason, arm)) or self._ending(outcome, reason, arm)
        requests.inc()
        seconds.observe(took_s)
        if (of_arm := self._arm_seconds.get(arm)) is not None and outcome == "ok":
            of_arm.observe(took_s)

    def copied(self, outcome: str, reason: str) -> None:
        """Counts a copy of a request that the challenger has come to an end with."""
        if self._copies is not None:
            self._copies.labels(outcome, reason).inc()

    def copy_dropped(self) -> None:
        """Counts a copy that was not made, because too many were under way."""
        if self._copies_dropped is not None:
            self._copies_dropped.inc()

    def watch_split(self, splitter: Splitter, shadow: Shadow | None) -> None:
        """Tells the challenger's share from now on, and in shadow mode of its copies."""
        registry = self.registry
        share = Gauge("rung_gateway_challenger_share", "The share of the challenger", registry=registry)
        share.set_function(lambda: splitter.share)
        stopped = Gauge("rung_gateway_challenger_stopped", "1 once a guardrail has stopped it", registry=registry)
        stopped.set_function(lambda: float(bool(splitter.experiment.wanted.stopped)))
        if shadow is None:
            return
        under_way = Gauge("rung_gateway_copies_in_flight", "Copies at the challenger", registry=registry)
        under_way.set_function(lambda: shadow.outstanding)
        self._copies = Counter(
            "rung_gateway_copies", "Copies by outcome and reason", ["outcome", "reason"], registry=registry
        )
        for ending in ENDINGS:
            self._copies.labels(*ending)
        self._copies_dropped = Counter("rung_gateway_copies_dropped", "Copies that were not made", registry=registry)

    def retried(self, reason: str) -> None:
        """Counts a further try; `reason` is how the one before it ended."""
        self._retries.labels(reason).inc()

    def over_budget(self) -> None:
        """Counts a retry that the budget did not allow."""
        self._refused.inc()

    def ejected(self, replica: int) -> None:
        """Counts that a replica was ejected."""
        self._ejections.labels(str(replica)).inc()

    def client_gone(self) -> None:
        """Counts a client that left before its answer."""
        self._gone.inc()

    def unauthorized(self) -> None:
        """Counts a request that was turned away for want of a key."""
        self._unauthorized.inc()

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _of_arms(self, bounds_s: Sequence[float]) -> dict[str, Histogram]:
        """A histogram for each arm beside the one of all, whose series stay as they are for those who read them."""
        if not self._arms:
            return {}
        seconds = Histogram(
            "rung_gateway_arm_seconds", "From read to answered", ["arm"], buckets=bounds_s, registry=self.registry
        )
        return {arm: seconds.labels(arm) for arm in self._arms}

    def _ending(self, outcome: str, reason: str, arm: str) -> tuple[Counter, Histogram]:
        own = (arm,) if self._arms else ()
        return self._requests.labels(outcome, reason, *own), self._seconds.labels(outcome)


class CacheMetrics:
    """The metrics of a gateway's cache, in that gateway's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        looks = Counter("rung_cache_requests", "Requests by what the cache had", ["result"], registry=registry)
        self._looks = {result: looks.labels(result) for result in ("hit", "joined", "miss")}
        gone = Counter("rung_cache_evictions", "Entries that had to go, by the reason", ["why"], registry=registry)
        self._gone = {why: gone.labels(why) for why in ("full", "too_large")}
        self._failures = Counter(
            "rung_cache_store_errors", "Times that the cache's server failed or was too slow", registry=registry
        )

    def watch(self, holds: Callable[[], tuple[int, int] | None]) -> None:
        """Tells bytes and entries from now on, where `holds` knows them: a server keeps count of its own."""
        if holds() is None:
            return
        size = Gauge("rung_cache_bytes", "What the kept answers take", registry=self._registry)
        size.set_function(lambda: (holds() or (0, 0))[0])
        entries = Gauge("rung_cache_entries", "Kept answers", registry=self._registry)
        entries.set_function(lambda: (holds() or (0, 0))[1])

    def looked_up(self, result: str) -> None:
        """Counts a request by what became of its look: "hit", "joined" or "miss"."""
        self._looks[result].inc()

    def evicted(self, why: str) -> None:
        """Counts an entry that went: the cache was "full", or it was "too_large" to be kept at all."""
        self._gone[why].inc()

    def store_failed(self) -> None:
        """Counts a failure of the server that keeps the answers."""
        self._failures.inc()


class _Replicas(Collector):
    """Gauges of the replicas that there are when somebody asks."""

    def __init__(self, replicas: Callable[[], Iterable[Seen]]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterable[Metric]:
        """The gauges, with a sample a replica."""
        out = GaugeMetricFamily("rung_gateway_outstanding", "Requests at the replica", labels=["replica"])
        ready = GaugeMetricFamily("rung_gateway_replica_ready", "1 by its probes", labels=["replica"])
        rotation = GaugeMetricFamily("rung_gateway_replica_in_rotation", "1 if requests go there", labels=["replica"])
        held_help = "Seconds that requests have spent at the replica, all together"
        held = CounterMetricFamily("rung_gateway_outstanding_seconds", held_help, labels=["replica"])
        for number, outstanding, held_s, is_ready, ejected, draining in self._replicas():
            out.add_metric([str(number)], outstanding)
            held.add_metric([str(number)], held_s)
            ready.add_metric([str(number)], is_ready)
            rotation.add_metric([str(number)], is_ready and not ejected and not draining)
        return out, held, ready, rotation
