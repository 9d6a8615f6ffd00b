"""What a gateway tells Prometheus of its predictions and labels, in its own registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from reference_apps.feedback_store import How, Written

ENDINGS = ("bad_input", "feedback_full", "feedback_down", "deadline")
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class FeedbackMetrics:
    """Counters of what was written, lost, told and refused. Names and units follow Prometheus' conventions."""

    def __init__(self, registry: CollectorRegistry, arms: Sequence[str] = ("",)) -> None:
        self._registry = registry
        self._predictions = Counter("rung_feedback_predictions", "Predictions that were written", registry=registry)
        lost = Counter(
            "rung_feedback_predictions_lost", "Predictions that were not, by why", ["why"], registry=registry
        )
        self._lost = {why: lost.labels(why) for why in ("full", "refused", "closed")}
        told = Counter("rung_feedback_labels", "Labels by what became of them", ["how"], registry=registry)
        self._told = {how: told.labels(how) for how in (*get_args(How), *ENDINGS)}
        self._late = Counter("rung_feedback_labels_late", "Labels that came after their window", registry=registry)
        self._judged = Counter(
            "rung_feedback_judged", "Answers that a label found right or wrong", ["arm", "right"], registry=registry
        )
        for arm in arms:  # a counter that appears with its first count shows no increase
            for right in ("yes", "no"):
                self._judged.labels(arm, right)
        self._orphans = Gauge("rung_feedback_orphans", "Labels whose prediction is not known", registry=registry)
        self._seconds = Histogram(
            "rung_feedback_write_seconds", "Of one transaction", buckets=_SECONDS, registry=registry
        )

    def watch(self, waiting: Callable[[], int]) -> None:
        """Tells how many predictions wait to be written, from now on."""
        gauge = Gauge("rung_feedback_waiting", "Predictions that are not written yet", registry=self._registry)
        gauge.set_function(waiting)

    def wrote(self, predictions: int, written: Written, took_s: float) -> None:
        """Counts what a transaction did. A judgement that is taken back stays counted: counters only rise."""
        self._predictions.inc(predictions)
        self._seconds.observe(took_s)
        self._orphans.set(written.orphans)
        for told in written.told:
            self._told[told.how].inc()
            if told.late:
                self._late.inc()
        for judged in written.judged:
            if judged.change > 0:
                self._judged.labels(judged.arm, "yes" if judged.right else "no").inc()

    def lost(self, predictions: int, why: str) -> None:
        """Counts predictions that nobody will find."""
        self._lost[why].inc(predictions)

    def refused(self, why: str) -> None:
        """Counts a label that was not taken, by one of ENDINGS."""
        self._told[why].inc()
