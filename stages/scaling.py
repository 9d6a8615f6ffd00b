"""The tables of a stage that say when replicas come and go.

    [scaling] policy, metric, target ──▶ wanted replicas      [scaling.up] [scaling.down] how fast it may change
    [scaling.cold_start] what a new replica takes until it serves

How a policy decides is in stages/policies/scaling.py; rules over several keys are in stages/scaling_rules.py. The
defaults are those of Kubernetes (sync period, tolerance, behaviour), of KEDA (polling, cool-down), and of the
cool-down of AWS' step scaling.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stages.table import Table

ScalingPolicy = Literal["target-tracking", "keda", "scheduled", "step"]
Metric = Literal["utilisation", "concurrency", "queue-depth", "rate", "latency-p95", "queue-age"]
# Those that the queue of a stage with [queue] tells, whatever its workers say.
QUEUE_METRICS: tuple[Metric, ...] = ("queue-depth", "queue-age")


class ScaleUp(Table):
    """How fast replicas may come: the lowest wish of a window, and at most so many more in any period."""

    stabilisation_window_s: float = Field(0.0, ge=0.0, le=86_400.0)
    replicas: int = Field(4, ge=1, le=1000)  # at most so many, or
    share: float = Field(1.0, ge=0.0, le=100.0)  # so many times the replicas at the period's start: whichever is more
    period_s: float = Field(15.0, gt=0.0, le=86_400.0)


class ScaleDown(Table):
    """How fast replicas may go: the highest wish of a window, and at most so many fewer in any period."""

    stabilisation_window_s: float = Field(300.0, ge=0.0, le=86_400.0)
    replicas: int = Field(1, ge=1, le=1000)
    share: float = Field(1.0, ge=0.0, le=1.0)
    period_s: float = Field(15.0, gt=0.0, le=86_400.0)


class ColdStart(Table):
    """From the decision to a replica that serves: a machine, the image on it, the model in its memory."""

    machine_s: float = Field(0.0, ge=0.0, le=86_400.0)
    image_s: float = Field(0.0, ge=0.0, le=86_400.0)
    model_s: float = Field(0.0, ge=0.0, le=86_400.0)

    @property
    def total_s(self) -> float:
        """Seconds from the decision until the replica serves."""
        return self.machine_s + self.image_s + self.model_s


class ScheduledReplicas(Table):
    """So many replicas from then on, until the next entry."""

    at_s: float = Field(ge=0.0, le=1e7)
    replicas: int = Field(ge=0, le=1000)


class Scaling(Table):
    """How many replicas there are to be, looked at every `interval_s`.

    `metric` is the mean over the ready replicas: device-busy share (utilisation), requests inside (concurrency),
    requests that wait (queue-depth), arrivals at the gateway per second (rate); or the 95th percentile of the
    gateway's latency in seconds. `target` is in the same unit.

    With [queue] the replicas are workers, and the metric is the queue's: jobs that wait, `target` of them for a worker
    (queue-depth), or how long the oldest has waited, in seconds (queue-age).
    """

    policy: ScalingPolicy = "target-tracking"
    min_replicas: int = Field(1, ge=0, le=1000)
    max_replicas: int = Field(ge=1, le=1000)
    metric: Metric = "concurrency"
    interval_s: float = Field(15.0, gt=0.0, le=3600.0)
    scrape_interval_s: float = Field(15.0, gt=0.0, le=3600.0)  # decisions see what the last scrape found
    window_s: float = Field(15.0, gt=0.0, le=86_400.0)  # metrics are means over it, in whole scrapes
    target: float | None = Field(None, gt=0.0, le=1e6)  # of target-tracking and keda
    tolerance: float = Field(0.1, ge=0.0, lt=1.0)  # so near to the target, as a share of it, nothing changes
    polling_interval_s: float = Field(30.0, gt=0.0, le=3600.0)  # of keda: between two looks for any request at all
    activation_rps: float = Field(0.0, ge=0.0, le=1e6)  # of keda: more arrivals than this make the first replica
    cooldown_s: float = Field(300.0, ge=0.0, le=86_400.0)  # of keda: idle before zero; of step: between two changes
    above: float | None = Field(None, gt=0.0, le=1e6)  # of step: more than this multiplies the replicas
    factor_up: float = Field(2.0, gt=1.0, le=100.0)
    below: float | None = Field(None, gt=0.0, le=1e6)  # of step: less than this; without it none ever goes
    factor_down: float = Field(0.5, ge=0.0, lt=1.0)
    schedule: tuple[ScheduledReplicas, ...] = Field((), strict=False, max_length=1000)
    day_s: float | None = Field(None, gt=0.0, le=1e7)  # of scheduled: begins anew after so many seconds
    up: ScaleUp = ScaleUp()
    down: ScaleDown = ScaleDown()
    cold_start: ColdStart = ColdStart()
