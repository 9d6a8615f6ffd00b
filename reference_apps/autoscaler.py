"""Starts and drains the replicas of a running stage as its [scaling] wants them.

    gateway, replicas ── GET /metrics ──▶ Scaler ── decide ──▶ launcher.add … cold start … in rotation
          every scrape_interval_s           every interval_s ──▶ launcher.drain … nothing outstanding … gone

The supervisor calls `look` often; it does what is due by the timetable and waits for nothing but its scrapes, which are
bounded. A process is ready within seconds where a machine takes minutes: the cold start of the stage is kept by holding
the new replica back until it is over. Every decision is a line of scaling.jsonl.

Twin: simulator/autoscaler.py; what both do at a look is stages/policies/autoscaling.py.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from reference_apps.launched_fleet import LaunchedFleet
from reference_apps.launchers.launcher import Launcher
from reference_apps.scrape import page, summed
from reference_apps.tolerated import Tolerated
from stages.policies.autoscaling import Fleet, Look, Scaler, timetable
from stages.policies.histogram import LATENCY_BOUNDS_S
from stages.policies.scraping import ReplicaSample, Sample
from stages.scaling import Scaling

__all__ = ["Autoscaler", "ScaledFleet"]

# A line a decision. A diary of so many bytes is put aside, in the place of the one before, and a new one is begun.
SCALING_FILE, EARLIER_FILE = "scaling.jsonl", "scaling-earlier.jsonl"
SCALING_MAX_BYTES = 16_777_216
LOOKS_MAX = 1000  # decisions that are remembered
BEGIN_FILE = "scaling-begin"
# Replicas that are asked at once, and how long one of them may take.
SCRAPES_MAX = 16
SCRAPE_TIMEOUT_S = 0.5

log = logging.getLogger("rung.autoscaler")


class ScaledFleet(LaunchedFleet):
    """The replicas of a launcher, as its gateway and they themselves tell of them."""

    def __init__(self, launcher: Launcher) -> None:
        super().__init__(launcher)
        stage = launcher.stage
        assert stage.gateway is not None and stage.scaling is not None
        self._edge = stage.gateway.edge
        self._asks_replicas = stage.scaling.metric in ("utilisation", "queue-depth")
        self._out: set[int] = set()  # those that the last scrape found out of rotation

    def sample(self) -> Sample:
        """What a scrape finds now: the gateway's metrics, and where the metric is theirs, those of its replicas."""
        gateway = self._launcher.gateway
        text = page(gateway.url, SCRAPE_TIMEOUT_S, self._edge) if gateway is not None and gateway.url else None
        at_s = time.monotonic()
        try:
            gauges, total = _by_replica(text or ""), summed(text or "", "gateway", LATENCY_BOUNDS_S)
        except ValueError:  # something else listens there
            text = None
        if text is None:
            return Sample(at_s)
        held_s = gauges["rung_gateway_outstanding_seconds_total"]
        self._out = {number for number, inside in gauges["rung_gateway_replica_in_rotation"].items() if not inside}
        # Not what is answered and what is inside: that falls when clients leave, which looks like a gateway begun anew.
        arrived = gauges["rung_gateway_arrived_total"].get(-1, 0.0)
        if self._asks_replicas:
            replicas = self._asked(held_s)
        else:
            replicas = {number: ReplicaSample(each_s) for number, each_s in held_s.items()}
        return Sample(at_s, arrived, total.answers_within, replicas)

    def ready(self) -> list[int]:
        """The members that the gateway has in rotation, as far as the last scrape knew."""
        return [r.number for r in self._launcher.replicas if r.state == "ready" and r.number not in self._out]

    def _asked(self, held_s: Mapping[int, float]) -> dict[int, ReplicaSample]:
        """Queue and device of each replica that answers."""
        urls = {r.number: r.url for r in self._launcher.replicas if r.number in held_s and r.url}
        with ThreadPoolExecutor(min(SCRAPES_MAX, max(1, len(urls)))) as pool:
            pages = dict(zip(urls, pool.map(lambda url: page(url, SCRAPE_TIMEOUT_S), urls.values()), strict=True))
        samples = {}
        for number, text in pages.items():
            with contextlib.suppress(ValueError):
                if text is not None:
                    found = summed(text, "replica", ())
                    samples[number] = ReplicaSample(held_s[number], found.queue_length, found.device_busy_s)
        return samples


class Autoscaler:
    """Looks at the fleet by the timetable of `scaling`, counted from its start.

    Writing a moment of the monotonic clock, in seconds, into scaling-begin in `folder` has it begin anew at that
    moment, as a run does whose timetable is to begin with its schedule.
    """

    def __init__(
        self, scaling: Scaling, fleet: Fleet, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._scaling, self._fleet, self._folder, self._clock = scaling, fleet, folder, clock
        self._begun = ""  # what scaling-begin said
        self._diary = Tolerated(f"{SCALING_FILE} cannot be written", log)
        self._next = (0.0, False, False)
        self._begin(clock())

    @property
    def looks(self) -> list[Look]:
        """The decisions since it began, the last LOOKS_MAX of them."""
        return list(self._scaler.looks)

    def look(self) -> bool:
        """Does what is due. True when replicas were started or are drained. What was missed is not made up for."""
        self._begin_if_told()
        at_s, scrapes, decides = -1.0, False, False
        while self._next[0] <= self._clock() - self._zero_s:
            at_s = self._next[0]
            scrapes, decides = scrapes or self._next[1], decides or self._next[2]
            self._next = next(self._timetable)
        if at_s < 0.0:
            return False
        before = self._scaler.looks[-1].wanted if self._scaler.looks else self._found
        look = self._scaler.look(at_s, scrapes, decides)
        if look is None:
            return False
        self._note(look._replace(at_s=self._zero_s + look.at_s))
        if look.wanted == before:
            return False
        log.info("replicas from %d to %d: %s", before, look.wanted, look.why)
        return True

    def _note(self, look: Look) -> None:
        """Writes a decision down. One that cannot be written is in force all the same."""
        file = self._folder / SCALING_FILE
        with self._diary:
            if file.exists() and file.stat().st_size >= SCALING_MAX_BYTES:
                file.replace(self._folder / EARLIER_FILE)
            with file.open("a", encoding="utf-8") as diary:
                diary.write(json.dumps(look._asdict()) + "\n")

    def _begin(self, zero_s: float) -> None:
        self._zero_s = zero_s
        self._found = len(self._fleet.members()) + len(self._fleet.starting())
        self._scaler = Scaler(self._scaling, self._fleet, self._found, LOOKS_MAX)
        self._timetable = timetable(self._scaling)
        self._next = next(self._timetable)

    def _begin_if_told(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # most have no such file
            told = (self._folder / BEGIN_FILE).read_text(encoding="utf-8")
            if told != self._begun:
                self._begun = told
                self._begin(float(told))


def _by_replica(text: str) -> dict[str, dict[int, float]]:
    """What the gateway tells by name and replica; -1 is for no replica. Raises ValueError for other text."""
    names = (
        "rung_gateway_arrived_total",
        "rung_gateway_outstanding_seconds_total",
        "rung_gateway_replica_in_rotation",
    )
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    families: Iterable[Metric] = text_string_to_metric_families(text)
    for sample in (sample for family in families for sample in family.samples):
        if sample.name in found:
            found[sample.name][int(sample.labels.get("replica", -1))] = float(sample.value)
    return found
