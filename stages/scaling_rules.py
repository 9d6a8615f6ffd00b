"""Rules over the keys of [scaling]: what a policy needs, what it would never do, and what would never come to rest.

Asked by stages/rules.py, like the rules there. A stage without [scaling] breaks none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

from stages.fleet import Fleet, Gateway
from stages.problems import Problem, shown
from stages.queue import Queue
from stages.scaling import QUEUE_METRICS, Scaling

_SCRAPES_MAX = 1000


def scaling_has_a_gateway(scaling: Scaling | None, gateway: Gateway | None, queue: Queue | None) -> Iterator[Problem]:
    """Clients without a gateway would not hear of new replicas, and nginx counts nothing by replica.

    Workers need to be heard of by nobody: they fetch their work.
    """
    if scaling is not None and gateway is None and queue is None:
        yield Problem(
            "scaling",
            "needs a [gateway]",
            "none",
            "Clients would know the first replica only.",
            "Write [gateway], or remove [scaling].",
        )
    if scaling is not None and gateway is not None and gateway.engine != "rung":
        yield Problem(
            "gateway.engine",
            'must be "rung" where there is [scaling]',
            f'"{gateway.engine}"',
            "It does not tell how many requests are inside each replica.",
            'Use engine = "rung", or remove [scaling].',
        )


def metric_can_be_read(scaling: Scaling | None, queue: Queue | None) -> Iterator[Problem]:
    """A queue tells how long it is and how old; the other metrics are those of requests that somebody waits for."""
    if scaling is None or scaling.policy == "scheduled":
        return
    if queue is not None and scaling.metric not in QUEUE_METRICS:
        yield Problem(
            "scaling.metric",
            'must be "queue-depth" or "queue-age" where there is a [queue]',
            shown(scaling.metric),
            "Nobody sends requests to workers: there is nothing of it to measure.",
            'Use "queue-depth" for so many waiting jobs a worker, "queue-age" for how long a job may wait.',
        )
    if queue is None and scaling.metric == "queue-age":
        yield Problem(
            "scaling.metric",
            'must not be "queue-age" without a [queue]',
            shown(scaling.metric),
            "Requests that somebody waits for have no queue in common.",
            'Use "latency-p95", or write [queue].',
        )


def fleet_is_within_scaling(scaling: Scaling | None, fleet: Fleet) -> Iterator[Problem]:
    """The fleet starts within the bounds that it is kept in."""
    if scaling is None:
        return
    least, most = scaling.min_replicas, scaling.max_replicas
    if least > most:
        yield Problem(
            "scaling.max_replicas",
            f"must be at least scaling.min_replicas ({least} replicas)",
            str(most),
            "No number of replicas would do.",
            "Raise it, or lower scaling.min_replicas.",
        )
    elif not least <= fleet.replicas <= most:
        yield Problem(
            "fleet.replicas",
            f"must be between scaling.min_replicas and scaling.max_replicas ({least} and {most} replicas)",
            str(fleet.replicas),
            "The first decision would undo the start.",
            f"Use {max(1, least) if fleet.replicas < least else most}.",
        )


def policy_has_its_numbers(scaling: Scaling | None) -> Iterator[Problem]:
    """A policy without the number that it compares with decides nothing."""
    if scaling is None:
        return
    policy = scaling.policy
    if policy in ("target-tracking", "keda") and scaling.target is None:
        yield Problem(
            "scaling.target",
            f'is required when scaling.policy is "{policy}"',
            None,
            f"Nothing says what {scaling.metric} to aim at.",
            "Use two batches for concurrency, 0.6 for utilisation, half of slo.latency_s for latency-p95.",
        )
    if policy == "step" and scaling.above is None:
        yield Problem(
            "scaling.above",
            'is required when scaling.policy is "step"',
            None,
            "No replica would ever come.",
            "Use 100.0 to double the replicas when there are over a hundred requests inside each.",
        )
    if policy == "scheduled" and not scaling.schedule:
        yield Problem(
            "scaling.schedule",
            'is required when scaling.policy is "scheduled"',
            None,
            "Nothing would ever change.",
            "Write [[scaling.schedule]] with at_s and replicas for each change.",
        )


def share_can_be_exceeded(scaling: Scaling | None) -> Iterator[Problem]:
    """No device is busier than always, so that a bound near 1 is never passed."""
    if scaling is None or scaling.metric != "utilisation":
        return
    step = scaling.policy == "step"
    bound, most = (scaling.above, 1.0) if step else (scaling.target, 1 / (1 + scaling.tolerance))
    if bound is not None and bound >= most:
        yield Problem(
            f"scaling.{'above' if step else 'target'}",
            f'must be less than {most:.3g} when scaling.metric is "utilisation"',
            f"{bound:g}",
            "A device is never busy for more than all of the time: no replica would ever come.",
            "Use 0.6 to keep some of it free for the time that a new replica takes.",
        )


def zero_can_be_left(scaling: Scaling | None) -> Iterator[Problem]:
    """Without a replica there is no metric of one, so that only a look at the arrivals, or the clock, finds the way."""
    if scaling is not None and scaling.min_replicas == 0 and scaling.policy not in ("keda", "scheduled"):
        yield Problem(
            "scaling.min_replicas",
            f'must be at least 1 replica when scaling.policy is "{scaling.policy}"',
            "0",
            "Without a replica there is nothing to measure, and none would ever come back.",
            'Use 1, or scaling.policy = "keda", which looks at the arrivals.',
        )


def steps_come_to_rest(scaling: Scaling | None) -> Iterator[Problem]:
    """A step up divides the load of each replica; it must not end where the step down begins."""
    if scaling is None or scaling.above is None or scaling.below is None:
        return
    most = scaling.above / scaling.factor_up
    if scaling.below > most:
        yield Problem(
            "scaling.below",
            f"must be at most scaling.above / scaling.factor_up ({most:g})",
            f"{scaling.below:g}",
            "A step up would be followed by a step down, and that by a step up, for ever.",
            "Lower it: half of that is a good start.",
        )


def schedule_is_in_order(scaling: Scaling | None) -> Iterator[Problem]:
    """Each entry holds until the next, within the day and within the bounds."""
    if scaling is None:
        return
    for before, after in pairwise(scaling.schedule):
        if after.at_s <= before.at_s:
            yield Problem(
                "scaling.schedule.at_s",
                f"must be greater than in the entry before ({before.at_s:g} seconds)",
                f"{after.at_s:g}",
                "Each entry holds until the next.",
                "Put the entries in order, each once.",
            )
    for entry in scaling.schedule:
        if scaling.day_s is not None and entry.at_s >= scaling.day_s:
            yield Problem(
                "scaling.schedule.at_s",
                f"must be less than scaling.day_s ({scaling.day_s:g} seconds)",
                f"{entry.at_s:g}",
                "The day would be over before.",
                "Lower it, or lengthen the day.",
            )
        if not scaling.min_replicas <= entry.replicas <= scaling.max_replicas:
            yield Problem(
                "scaling.schedule.replicas",
                "must be between scaling.min_replicas and scaling.max_replicas "
                f"({scaling.min_replicas} and {scaling.max_replicas} replicas)",
                str(entry.replicas),
                "The bounds would cut it off.",
                "Change it, or the bounds.",
            )


def intervals_fit(scaling: Scaling | None) -> Iterator[Problem]:
    """A window holds whole scrapes, and KEDA's poll is one of the looks."""
    if scaling is None:
        return
    scrape_s = scaling.scrape_interval_s
    if not scrape_s <= scaling.window_s <= _SCRAPES_MAX * scrape_s:
        yield Problem(
            "scaling.window_s",
            f"must be between 1 and {_SCRAPES_MAX} times scaling.scrape_interval_s ({scrape_s:g} seconds)",
            f"{scaling.window_s:g}",
            "A metric is a mean over the scrapes of the window, which are kept in memory.",
            "Use scaling.scrape_interval_s or a multiple of it.",
        )
    if scaling.policy == "keda" and scaling.polling_interval_s < scaling.interval_s:
        yield Problem(
            "scaling.polling_interval_s",
            f"must be at least scaling.interval_s ({scaling.interval_s:g} seconds)",
            f"{scaling.polling_interval_s:g}",
            "The autoscaler looks no oftener than that.",
            "Raise it, or lower scaling.interval_s.",
        )


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    scaling_has_a_gateway,
    metric_can_be_read,
    fleet_is_within_scaling,
    policy_has_its_numbers,
    share_can_be_exceeded,
    zero_can_be_left,
    steps_come_to_rest,
    schedule_is_in_order,
    intervals_fit,
)
