"""Rules over the cache, and over the drift of the popularity that it lives on: what fits, what nothing would read.

Asked by stages/rules.py, like the rules there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stages import unread
from stages.advice import amount
from stages.cache import REDIS_POLICIES, Cache
from stages.demand import Traffic
from stages.fleet import Gateway
from stages.problems import Problem, shown

_EXCHANGES_MAX = 50_000_000


def no_unread_cache_keys(cache: Cache | None) -> Iterator[Problem]:
    """A key that nothing reads would look like a choice."""
    return (key.problem() for key in unread.of_cache(cache) if key.given)


def cache_has_a_gateway(cache: Cache | None, gateway: Gateway | None) -> Iterator[Problem]:
    """The cache is a part of our gateway."""
    if cache is None:
        return
    if gateway is None:
        yield Problem(
            "cache",
            "needs a [gateway]",
            "none",
            "Requests go to the replica itself, and nothing would look for kept answers.",
            "Write [gateway], or remove [cache].",
        )
    elif gateway.engine == "nginx":
        yield Problem(
            "gateway.engine",
            'must be "rung" where there is [cache]',
            '"nginx"',
            "[cache] is a part of our own gateway: nginx would not look into it.",
            'Use engine = "rung", or remove [cache].',
        )


def store_has_the_policy(cache: Cache | None) -> Iterator[Problem]:
    """A Redis-compatible server decides by itself what goes."""
    if cache is not None and cache.store == "redis" and cache.policy not in REDIS_POLICIES:
        choices = " or ".join(f'"{policy}"' for policy in REDIS_POLICIES)
        yield Problem(
            "cache.policy",
            f'must be {choices} when cache.store is "redis"',
            shown(cache.policy),
            "The server evicts by its own maxmemory-policy, and has no such one.",
            'Use one of these, or store = "process".',
        )


def drift_is_told_whole(traffic: Traffic) -> Iterator[Problem]:
    """How often ranks are exchanged, and how many: neither says anything alone."""
    items = traffic.items
    if not _may_drift(traffic):
        return
    given = {"drift_interval_s": items.drift_interval_s, "drift_share": items.drift_share}
    for name, other in (("drift_interval_s", "drift_share"), ("drift_share", "drift_interval_s")):
        if given[name] is None and given[other] is not None:
            yield Problem(
                f"traffic.items.{name}",
                f"is required when traffic.items.{other} is given",
                None,
                "Popularity would not drift.",
                "Use drift_interval_s = 10.0 with drift_share = 0.1, or remove both.",
            )


def drift_fits_the_run(traffic: Traffic) -> Iterator[Problem]:
    """There are at least two items to exchange, in an interval that ends within the run, and not too many in all."""
    items = traffic.items
    interval_s, share = items.drift_interval_s, items.drift_share
    if interval_s is None or share is None or not _may_drift(traffic):
        return
    if share * items.count < 2:
        yield Problem(
            "traffic.items.drift_share",
            f"must be at least 2 of the {amount(items.count, 'traffic.items.count')}",
            f"{share:g} ({share * items.count:g} items)",
            "A single item has nobody to exchange its rank with.",
            "Raise it, or raise traffic.items.count.",
        )
    if interval_s >= traffic.duration_s:
        yield Problem(
            "traffic.items.drift_interval_s",
            f"must be less than traffic.duration_s ({amount(traffic.duration_s, 'duration_s')})",
            f"{interval_s:g}",
            "The first exchange would come after the last request.",
            "Lower it, or lengthen the run.",
        )
    exchanges = share * items.count * traffic.duration_s / interval_s
    if exchanges > _EXCHANGES_MAX:
        yield Problem(
            "traffic.items.drift_interval_s",
            f"must leave at most {_EXCHANGES_MAX:,} exchanged ranks in traffic.duration_s",
            f"{exchanges:.3g} ({share:g} of {items.count} items every {interval_s:g} seconds)",
            "The schedule is made before the run, and would take too long.",
            "Raise it, or lower traffic.items.drift_share.",
        )


def _may_drift(traffic: Traffic) -> bool:
    """Whether anything reads the keys of a drift; where nothing does, another rule says so."""
    return traffic.loop == "open" and traffic.items.popularity == "zipf"


RULES: tuple[Callable[..., Iterator[Problem]], ...] = (
    no_unread_cache_keys,
    cache_has_a_gateway,
    store_has_the_policy,
    drift_is_told_whole,
    drift_fits_the_run,
)
