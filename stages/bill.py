"""What a run costs: machine-seconds of every component, and dollars. A function of records of either world.

    records.replicas: start, stop ──▶ machines, several replicas on one with several GPUs ─┐
    gateway, jobs API, Redis servers: the whole window ────────────────────────────────────┴─▶ Bill ─▶ dollars per
                                                                          good answers ────────┘      1,000 good answers

A replica is paid from its start to its stop, its cold start and all that it idles included, within the window of the
run. A machine with several GPUs is paid whole, from its first replica's start until its last one's stop. Not modelled:
what stages/cost.py leaves out, and Postgres servers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import polars as pl

from stages.cost import Cost, host_usd_per_hour, hosts_described, machine_of, price_of, usd_per_hour
from stages.records import Records
from stages.spec import Stage

FIGURES = ("cost_usd", "cost_usd_per_hour", "cost_usd_per_1000")


@dataclass(frozen=True)
class Item:
    """One line of the bill: all machines of one kind. `usd` is NaN where nothing says what they cost."""

    component: str  # "replica", "worker", "gateway", "jobs API", "cache", "broker"
    machine: str  # its name, or "a figure of the stage's own"
    machines_max: int  # as many as were ever paid at once
    machine_s: float
    usd: float


@dataclass(frozen=True)
class Bill:
    """What the window of a run cost. `good` are answers within the SLO that were back within the window."""

    items: tuple[Item, ...]
    good: int
    window_s: float
    notes: tuple[str, ...]

    @property
    def usd(self) -> float:
        """US dollars of the window, without what nobody gave a price for."""
        return sum(item.usd for item in self.items if not math.isnan(item.usd))

    @property
    def usd_per_hour(self) -> float:
        """US dollars an hour, if it went on like that."""
        return self.usd / self.window_s * 3600.0

    @property
    def usd_per_1000(self) -> float:
        """US dollars per 1,000 good answers; infinite where there is none."""
        return 1000.0 * self.usd / self.good if self.good else math.inf


def bill(stage: Stage, records: Records) -> Bill | None:
    """The bill of a run of the stage, measured or predicted; None for a stage without [cost]."""
    cost, window_s = stage.cost, records.window_s
    if cost is None:
        return None
    items = [*_replicas(stage, cost, records), *_hosts(stage, cost, window_s)]
    requests = records.requests
    good = requests.select(
        (
            (pl.col("outcome") == "ok")
            & (pl.col("replied_s") <= window_s)
            & (pl.col("replied_s") - pl.col("scheduled_s") <= stage.slo.latency_s)
        ).sum()
    ).item()
    return Bill(tuple(items), int(good), window_s, caveats(stage))


def figures(stage: Stage, records: Records) -> dict[str, float]:
    """FIGURES by name; NaN for a stage without [cost]."""
    found = bill(stage, records)
    values = (math.nan,) * 3 if found is None else (found.usd, found.usd_per_hour, found.usd_per_1000)
    return dict(zip(FIGURES, values, strict=True))


def beside_usd_per_hour(stage: Stage) -> float:
    """US dollars an hour of all that stands beside the replicas; 0 where nothing says what it costs."""
    return 0.0 if stage.cost is None else len(hosts(stage)) * (host_usd_per_hour(stage.cost) or 0.0)


def fleet_usd_per_hour(stage: Stage, replicas: int) -> float:
    """US dollars an hour of the stage with so many replicas all the time, and of what stands beside them.

    Raises ValueError for a stage without [cost].
    """
    cost = stage.cost
    if cost is None:
        raise ValueError(
            "cost: must be there, got a stage without [cost]. Nothing says what it costs. "
            'Add --set cost.machine="aws/g4dn.xlarge", or another one of `rung prices`.'
        )
    lives = [(number, 0.0, 3600.0) for number in range(replicas)]
    return beside_usd_per_hour(stage) + sum(item.usd for item in _machines(stage, cost, lives))


def caveats(stage: Stage) -> tuple[str, ...]:
    """What to know of every bill of the stage: a sentence each; none without [cost]."""
    cost = stage.cost
    if cost is None:
        return ()
    unpaid = hosts(stage) if host_usd_per_hour(cost) is None else ()
    notes = []
    if unpaid:
        notes.append(
            f"Without the machine of {' and '.join(unpaid)}: nothing says what it costs. "
            "Give cost.host_machine, or cost.host_usd_per_hour."
        )
    if cost.pricing == "spot" or any(name.endswith("-spot") for name in (cost.machine or "", *cost.machines)):
        notes.append("Spot machines are taken to stay: what it costs when one is taken away is left out.")
    if stage.device.slowdown != 1.0:
        notes.append(
            f"The device is {stage.device.slowdown:g} times slower than the one that is paid: "
            "so much dearer is each answer."
        )
    return tuple(notes)


def hosts(stage: Stage) -> tuple[str, ...]:
    """The components beside the replicas that have a machine of their own."""
    found = ["gateway"] if stage.gateway is not None else []
    if stage.queue is not None:
        found.append("jobs API")
    if stage.cache is not None and stage.cache.store == "redis":
        found.append("cache")
    if stage.queue is not None and stage.queue.broker == "redis":
        found.append("broker")
    return tuple(found)


def packed(lives: Iterable[tuple[float, float]], gpus: int) -> list[tuple[float, float]]:
    """When each machine with `gpus` GPUs is paid, in seconds: from, until; in the order of their first replica.

    `lives` has start and stop of each replica, which takes one GPU. Who starts goes to the first machine that has a
    GPU to spare; a machine that has no replica left is given back.
    """
    if gpus == 1:
        return sorted(lives)
    machines: list[list[tuple[float, float]]] = []
    for started_s, stopped_s in sorted(lives):
        for there in machines:
            running = sum(until_s > started_s for _, until_s in there)
            if 0 < running < gpus:
                there.append((started_s, stopped_s))
                break
        else:
            machines.append([(started_s, stopped_s)])
    return [(there[0][0], max(until_s for _, until_s in there)) for there in machines]


def _replicas(stage: Stage, cost: Cost, records: Records) -> list[Item]:
    window_s = records.window_s
    lives = [
        (number, max(0.0, started_s), min(window_s, stopped_s))
        for number, started_s, stopped_s in records.replicas.select("replica", "started_s", "stopped_s").iter_rows()
    ]
    return _machines(stage, cost, [life for life in lives if life[2] > life[1]])


def _machines(stage: Stage, cost: Cost, lives: Sequence[tuple[int, float, float]]) -> list[Item]:
    """A line a kind of machine; `lives` has number, start and stop of each replica."""
    kinds: dict[str | None, list[tuple[int, float, float]]] = {}
    for life in lives:
        kinds.setdefault(machine_of(cost, life[0]), []).append(life)
    items = []
    for own in kinds.values():
        price = price_of(cost, own[0][0])
        spans = packed(((start, stop) for _, start, stop in own), 1 if price is None else max(1, price.gpu_count))
        seconds = sum(stop - start for start, stop in spans)
        hourly = usd_per_hour(cost, own[0][0]) if price is None else price.usd_per_hour
        items.append(
            Item(
                "worker" if stage.queue is not None else "replica",
                "a figure of the stage's own" if price is None else f"{price.machine}, {price.pricing}, {price.region}",
                _at_once(spans),
                seconds,
                seconds / 3600.0 * hourly,
            )
        )
    return items


def _at_once(spans: Sequence[tuple[float, float]]) -> int:
    """As many as there ever are at one time; one that comes as another goes is not beside it."""
    changes = sorted([(start, 1) for start, _ in spans] + [(stop, -1) for _, stop in spans])
    return max(accumulate(change for _, change in changes), default=0)


def _hosts(stage: Stage, cost: Cost, window_s: float) -> list[Item]:
    hourly = host_usd_per_hour(cost)
    usd = math.nan if hourly is None else window_s / 3600.0 * hourly
    return [Item(component, hosts_described(cost), 1, window_s, usd) for component in hosts(stage)]
