"""The workers of a queued stage as its autoscaler sees them, and the queue that says how many there should be.

    jobs API ── GET /metrics: jobs by state, age of the oldest ──▶ Sample ──▶ Scaler ──▶ launcher.add, launcher.drain

A worker that drains claims nothing more, finishes what it has, and goes; nobody has to take it out of a rotation first.
Decisions are those of every autoscaler: stages/policies/autoscaling.py.
"""

from __future__ import annotations

import time

from prometheus_client.parser import text_string_to_metric_families

from reference_apps.launched_fleet import LaunchedFleet
from reference_apps.scrape import page
from stages.policies.scraping import QueueSample, Sample

SCRAPE_TIMEOUT_S = 0.5


class QueueFleet(LaunchedFleet):
    """The workers of a launcher, and the queue as its jobs API tells of it."""

    def sample(self) -> Sample:
        """What a scrape finds now; nothing of the queue where the API, or its broker, does not answer."""
        api = self._launcher.gateway
        text = page(api.url, SCRAPE_TIMEOUT_S) if api is not None and api.url else None
        return Sample(time.monotonic(), queue=None if text is None else _queue(text))


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
