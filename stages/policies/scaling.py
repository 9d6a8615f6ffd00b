"""How many replicas should there be? Kubernetes' rule with its windows and limits, KEDA's way to zero, times, steps.

    Seen ──▶ desired ──▶ stabilised over windows ──▶ limited a period ──▶ within min..max ──▶ State.wanted, and why
             by_mean, by_total, by_value, by_step, by_schedule       State: what was recommended and changed, and when

Sources: kubernetes/kubernetes, pkg/controller/podautoscaler/replica_calculator.go and horizontal.go, explained at
https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale/ ; kedacore/keda,
pkg/scaling/executor/scale_scaledobjects.go, explained at https://keda.sh/docs/latest/concepts/scaling-deployments/ .
What a metric's value is, out of scrapes, is in stages/policies/scraping.py. Not decided here: several metrics at once,
of which Kubernetes takes the largest wish.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stages.scaling import Metric, ScaleDown, ScaleUp, Scaling

# Quotients of floats miss whole numbers by a unit in the last place, which must not cost a machine.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Seen:
    """What is known at a decision."""

    ready: int  # replicas that serve and do not drain
    value: float | None  # of the metric, in its unit (rate: of all replicas together); None while nothing tells it
    missing: int = 0  # of the ready replicas, those that told nothing
    rate_rps: float | None = None  # all arrivals at the gateway, the refused too
    # Of a stage with a queue: jobs that wait or are worked on; the value is then one of the whole queue's.
    work: float | None = None


@dataclass(frozen=True)
class State:
    """What a policy remembers between two decisions; times in seconds of the autoscaler's own timetable."""

    wanted: int
    recommendations: tuple[tuple[float, int], ...]  # (when, desired before windows and limits)
    changes: tuple[tuple[float, int], ...] = ()  # (when, replicas more; negative for fewer)
    active_s: float = 0.0  # of keda: when a poll last found arrivals
    polled_s: float = -math.inf


def begin(replicas: int, now_s: float = 0.0) -> State:
    """The state of an autoscaler that finds `replicas`; they count as the first recommendation, as in Kubernetes."""
    return State(replicas, ((now_s, replicas),), active_s=now_s)


def decide(scaling: Scaling, state: State, seen: Seen, now_s: float) -> tuple[State, str]:
    """The state after a look at `now_s` seconds, its `wanted` decided anew, and why it is what it is."""
    if scaling.policy == "keda":
        wanted, state, why = _keda(scaling, state, seen, now_s)
    elif scaling.policy == "target-tracking":
        wanted, state, why = _tracked(scaling, state, seen, now_s)
    elif scaling.policy == "scheduled":
        times_s = [entry.at_s for entry in scaling.schedule]
        counts = [entry.replicas for entry in scaling.schedule]
        wanted, why = by_schedule(state.wanted, now_s, times_s, counts, scaling.day_s), "the schedule"
    else:
        wanted, why = _stepped(scaling, state, seen, now_s)
    return _changed(scaling, state, within(wanted, scaling.min_replicas, scaling.max_replicas), now_s), why


def within(desired: int, least: int, most: int) -> int:
    """The desired count, kept between the two bounds."""
    return max(least, min(most, desired))


def by_mean(
    current: int, ready: int, starting: int, missing: int, value: float, target: float, tolerance: float
) -> int:
    """Kubernetes' rule for a metric of each replica: ceil(ready * value / target), unless it is near the target.

    `value` is the mean over the replicas that told it. Replicas that start count as 0 where more are wanted; those
    that told nothing count as 0 where more, and as the target where fewer are wanted. A count that turns the
    direction round changes nothing (calcPlainMetricReplicas). 0 ready replicas change nothing.
    """
    told = ready - missing
    if told <= 0:
        return current
    ratio = value / target
    joining = starting if ratio > 1.0 else 0
    if not joining and not missing:
        return current if _near(ratio, tolerance) else _ceil(ratio * ready)
    assumed = missing if ratio < 1.0 else 0  # each with the target's value
    counted = told + missing + joining
    whole = (ratio * told + assumed) / counted
    if _near(whole, tolerance) or (ratio < 1.0) != (whole < 1.0):
        return current
    desired = _ceil(whole * counted)
    return current if (whole > 1.0) != (desired > current) else desired


def by_total(current: int, total: float, target: float, tolerance: float) -> int:
    """Kubernetes' rule for a total that the replicas share: ceil(total / target), unless it is near the target.

    Replicas that start count as if they shared it already (GetExternalPerPodMetricReplicas).
    """
    if current > 0 and _near(total / (target * current), tolerance):
        return current
    return _ceil(total / target)


def by_value(current: int, ready: int, value: float, target: float, tolerance: float) -> int:
    """Kubernetes' rule for one value of the whole service: ceil(ready * value / target), unless near the target.

    (getUsageRatioReplicaCount.) 0 ready replicas change nothing.
    """
    ratio = value / target
    return current if ready == 0 or _near(ratio, tolerance) else _ceil(ratio * ready)


def by_step(current: int, value: float, above: float, factor_up: float, below: float | None, factor_down: float) -> int:
    """Steps: so many times the replicas when the value is above the one bound, so many when below the other.

    A step is at least one replica.
    """
    if value > above:
        return max(current + 1, _ceil(current * factor_up))
    if below is not None and value < below:
        return max(0, min(current - 1, _floor(current * factor_down)))
    return current


def by_schedule(
    current: int, now_s: float, times_s: Sequence[float], counts: Sequence[int], day_s: float | None
) -> int:
    """The count of the last entry whose time has come; before the first, the current one.

    `times_s` ascend. Where there are days, an entry holds over the end of its day.
    """
    time_of_day_s = now_s if day_s is None else now_s % day_s
    come = sum(1 for at_s in times_s if at_s <= time_of_day_s)
    if come:
        return counts[come - 1]
    return counts[-1] if day_s is not None and now_s >= day_s else current


def stabilised(
    current: int,
    desired: int,
    recommendations: Sequence[tuple[float, int]],
    now_s: float,
    up_window_s: float,
    down_window_s: float,
) -> int:
    """The current count, brought up to the least wish of the one window and down to the greatest of the other.

    Windows are open at their old end, and the new wish counts in both (stabilizeRecommendationWithBehaviors).
    """
    up = min([desired, *(n for at_s, n in recommendations if at_s > now_s - up_window_s)])
    down = max([desired, *(n for at_s, n in recommendations if at_s > now_s - down_window_s)])
    return min(max(current, up), down)


def limited(
    current: int, desired: int, changes: Sequence[tuple[float, int]], now_s: float, up: ScaleUp, down: ScaleDown
) -> int:
    """The desired count, no further from the period's start than the limits allow; of two limits the wider counts.

    (calculateScaleUpLimitWithScalingRules, calculateScaleDownLimitWithBehaviors with selectPolicy Max.)
    """
    if desired > current:
        start = current - sum(n for at_s, n in changes if n > 0 and at_s > now_s - up.period_s)
        most = max(start + up.replicas, _ceil(start * (1 + up.share)))
        return min(desired, max(current, most))
    start = current - sum(n for at_s, n in changes if n < 0 and at_s > now_s - down.period_s)
    least = min(start - down.replicas, _floor(start * (1 - down.share)))
    return max(desired, min(current, least))


def leaving(starting: Iterable[int], ready: Iterable[int], surplus: int) -> list[int]:
    """Which replicas go when `surplus` are too many: those that do not serve yet before those that do, newest first.

    The newest has the largest number. Kubernetes ranks the pods that it deletes by the same two, among others.
    """
    return [*sorted(starting, reverse=True), *sorted(ready, reverse=True)][: max(0, surplus)]


def _tracked(scaling: Scaling, state: State, seen: Seen, now_s: float) -> tuple[int, State, str]:
    """Target tracking: desired, stabilised, limited. What nothing tells changes nothing."""
    if seen.value is None or state.wanted == 0:
        return state.wanted, state, f"no {scaling.metric} is known"
    target = scaling.target or math.inf  # a stage without one is refused
    starting = max(0, state.wanted - seen.ready)
    shared = scaling.metric == "rate" or (scaling.metric == "queue-depth" and seen.work is not None)
    if shared:
        desired = by_total(state.wanted, seen.value, target, scaling.tolerance)
    elif scaling.metric in ("latency-p95", "queue-age"):
        desired = by_value(state.wanted, seen.ready, seen.value, target, scaling.tolerance)
    else:
        desired = by_mean(state.wanted, seen.ready, starting, seen.missing, seen.value, target, scaling.tolerance)
    up, down = scaling.up, scaling.down
    windows_s = (up.stabilisation_window_s, down.stabilisation_window_s)
    wanted = stabilised(state.wanted, desired, state.recommendations, now_s, *windows_s)
    recent = tuple(past for past in state.recommendations if past[0] > now_s - max(windows_s))
    state = replace(state, recommendations=(*recent, (now_s, desired)))
    wanted = limited(state.wanted, wanted, state.changes, now_s, up, down)
    return wanted, state, f"{told(scaling.metric, seen.value)}, target {target:g}: {desired} desired"


def _keda(scaling: Scaling, state: State, seen: Seen, now_s: float) -> tuple[int, State, str]:
    """KEDA: its operator makes the first replica and takes the last; in between it leaves all to target tracking.

    The cool-down counts from the last poll that found arrivals, at first from the autoscaler's start. A poll that
    nothing answers changes nothing.

    Of a queue, work that is there is activity, whenever it arrived: a backlog is worked off before the last one goes.
    """
    if now_s >= state.polled_s + scaling.polling_interval_s:
        arrived_rps = scaling.activation_rps if seen.rate_rps is None else seen.rate_rps
        active = arrived_rps > scaling.activation_rps or (seen.work or 0.0) > 0.0
        state = replace(state, polled_s=now_s, active_s=now_s if active else state.active_s)
        if active and state.wanted == 0:
            why = f"{told('rate', arrived_rps)} arrived" if seen.work is None else f"{seen.work:g} jobs are there"
            return max(1, scaling.min_replicas), state, why
        idle_s = now_s - state.active_s
        known = seen.rate_rps is not None or seen.work is not None
        idle = known and not active and idle_s > scaling.cooldown_s
        if idle and scaling.min_replicas == 0 < state.wanted:
            return 0, state, f"idle for {idle_s:g} s"
    if state.wanted == 0:
        return 0, state, "idle"
    wanted, state, why = _tracked(scaling, state, seen, now_s)
    return max(1, wanted), state, why


def _stepped(scaling: Scaling, state: State, seen: Seen, now_s: float) -> tuple[int, str]:
    """A step, unless the last change is younger than the cool-down."""
    if seen.value is None or state.wanted == 0:
        return state.wanted, f"no {scaling.metric} is known"
    if state.changes and now_s - state.changes[-1][0] < scaling.cooldown_s:
        return state.wanted, f"{told(scaling.metric, seen.value)}, in the cool-down"
    shared = scaling.metric == "rate" or (scaling.metric == "queue-depth" and seen.work is not None)
    value = seen.value / max(1, seen.ready) if shared else seen.value
    bounds = (scaling.above or math.inf, scaling.factor_up, scaling.below, scaling.factor_down)
    return by_step(state.wanted, value, *bounds), told(scaling.metric, value)


def _changed(scaling: Scaling, state: State, wanted: int, now_s: float) -> State:
    """The state with its new count; changes are kept as long as a limit or a cool-down may ask for them."""
    if wanted == state.wanted:
        return state
    kept_s = max(scaling.up.period_s, scaling.down.period_s, scaling.cooldown_s)
    recent = tuple(past for past in state.changes if past[0] > now_s - kept_s)
    return replace(state, wanted=wanted, changes=(*recent, (now_s, wanted - state.wanted)))


def told(metric: Metric, value: float) -> str:
    """A metric's value in words, with its unit."""
    units = {
        "utilisation": "of the device's time busy",
        "concurrency": "requests inside a replica",
        "queue-depth": "waiting",
        "rate": "requests per second",
        "latency-p95": "s at the 95th percentile",
        "queue-age": "s that the oldest has waited",
    }
    return f"{value:.3g} {units[metric]}"


def _near(ratio: float, tolerance: float) -> bool:
    return abs(1.0 - ratio) <= tolerance + _ROUNDING


def _ceil(x: float) -> int:
    return math.ceil(x - _ROUNDING * max(1.0, abs(x)))


def _floor(x: float) -> int:
    return math.floor(x + _ROUNDING * max(1.0, abs(x)))
