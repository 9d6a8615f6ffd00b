"""The workers of a queued stage as its autoscaler sees them, and the queue that says how many there should be.

    jobs API ── GET /metrics: jobs by state, age of the oldest ──▶ Sample ──▶ Scaler ──▶ launcher.add, launcher.drain

A worker that drains claims nothing more, finishes what it has, and goes; nobody has to take it out of a rotation first.
Decisions are those of every autoscaler: stages/policies/autoscaling.py.
"""

from __future__ import annotations

import contextlib
import logging
import time

from prometheus_client.parser import text_string_to_metric_families

from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.member import LaunchError, Member
from reference_apps.scrape import page
from stages.policies.scraping import QueueSample, Sample

SCRAPE_TIMEOUT_S = 0.5

log = logging.getLogger("rung.autoscaler")


class QueueFleet:
    """The workers of a launcher, and the queue as its jobs API tells of it."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def sample(self) -> Sample:
        """What a scrape finds now; nothing of the queue where the API, or its broker, does not answer."""
        api = self._launcher.gateway
        text = page(api.url, SCRAPE_TIMEOUT_S) if api is not None and api.url else None
        return Sample(time.monotonic(), queue=None if text is None else _queue(text))

    def members(self) -> list[int]:
        """Those that work, or are dead and about to be started again."""
        return [w.number for w in self._launcher.replicas if w.state in ("ready", "died") or _again(w)]

    def ready(self) -> list[int]:
        """Those that work."""
        return [w.number for w in self._launcher.replicas if w.state == "ready"]

    def starting(self) -> list[int]:
        """Those that were started and have never worked."""
        return [w.number for w in self._launcher.replicas if w.state == "starting" and not _again(w)]

    def start(self, cold_start_s: float) -> None:
        """One more, which claims no job sooner than in `cold_start_s` seconds. If it cannot start, it is left out."""
        try:
            self._launcher.add_cold(cold_start_s)
        except (LaunchError, OSError) as error:
            log.warning("no worker could be started: %s", error)

    def drain(self, number: int) -> None:
        """Has it finish what it has, and go."""
        with contextlib.suppress(KeyError):  # gone by itself
            self._launcher.drain(number)


def _again(worker: Member) -> bool:
    """Whether it is being started in the place of one that died."""
    return worker.state == "starting" and worker.restarts > 0


def _queue(text: str) -> QueueSample | None:
    """The queue on a page of metrics; None where the page says nothing of it."""
    jobs: dict[str, float] = {}
    oldest_s = 0.0
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "rung_queue_jobs":
                    jobs[sample.labels["state"]] = float(sample.value)
                elif sample.name == "rung_queue_oldest_seconds":
                    oldest_s = float(sample.value)
    except (ValueError, KeyError):  # something else listens there
        return None
    return QueueSample(jobs["waiting"], jobs["leased"], oldest_s) if {"waiting", "leased"} <= jobs.keys() else None
