"""What a run costs: machine-seconds of every component, and dollars. Functions of what either world tells.

    records.replicas: start, stop ──▶ machines, several replicas on one with several GPUs ─┐
    gateway, jobs API, Redis servers: the whole window ────────────────────────────────────┴─▶ Bill ─▶ dollars per
                                                                          good answers ────────┘      1,000 good answers
    lives of a night's machines ──▶ bill_of_work, the same of work that nobody waits for

A replica is paid from its start to its stop, its cold start and all that it idles included, within the window of the
run. A machine with several GPUs is paid whole, from its first replica's start until its last one's stop. Not modelled:
what stages/cost.py leaves out, and Postgres servers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any

import polars as pl

from stages.arms import arm_of, arms_of, place_of, records_of
from stages.cost import Cost, host_usd_per_hour, hosts_described, machine_of, paid_by, price_of, usd_per_hour
from stages.records import Records
from stages.spec import Stage

FIGURES = ("cost_usd", "cost_usd_per_hour", "cost_usd_per_1000")


@dataclass(frozen=True)
class Item:
    """One line of the bill: all machines of one kind. `usd` is NaN where nothing says what they cost."""

    component: str  # "replica", "champion", "challenger", "worker", "gateway", "jobs API", "cache", "broker"
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


def bill(stage: Stage, records: Records, arm: str | None = None) -> Bill | None:
    """The bill of a run of the stage, measured or predicted; None for a stage without [cost].

    With `arm` that of one arm alone: its machines, and its good answers. What serves both arms is on neither's bill.
    """
    cost, window_s = stage.cost, records.window_s
    if cost is None:
        return None
    if arm is not None:
        records = records_of(records, stage, arm)
    items = _replicas(stage, cost, records)
    if arm is None:
        items += _hosts(stage, cost, window_s)
    requests = records.requests
    good = requests.select(
        (
            (pl.col("outcome") == "ok")
            & (pl.col("replied_s") <= window_s)
            & (pl.col("replied_s") - pl.col("scheduled_s") <= stage.slo.latency_s)
        ).sum()
    ).item()
    return Bill(tuple(items), int(good), window_s, caveats(stage))


def bill_of_work(
    stage: Stage, cost: Cost, lives: Sequence[tuple[int, float, float]], window_s: float, done: int
) -> Bill:
    """The bill of work that nobody waits for: `done` results, of workers with these lives (number, start, stop), and
    of all that stands beside them for `window_s` seconds. `cost` stands in for the stage's: of spot machines, say."""
    items = [*_machines(stage, cost, lives), *_hosts(stage, cost, window_s)]
    return Bill(tuple(items), done, window_s, caveats(stage, taken_away=True))


def mean_items(bills: Sequence[Bill]) -> tuple[Item, ...]:
    """The lines of several bills of the same stage in one: seconds and dollars are means, machines at once the most."""
    lines: dict[tuple[str, str], Item] = {}
    for each in bills:
        for item in each.items:
            seconds, usd = item.machine_s / len(bills), item.usd / len(bills)
            before = lines.get((item.component, item.machine), replace(item, machines_max=0, machine_s=0.0, usd=0.0))
            lines[item.component, item.machine] = replace(
                before,
                machines_max=max(before.machines_max, item.machines_max),
                machine_s=before.machine_s + seconds,
                usd=before.usd + usd,
            )
    return tuple(lines.values())


def document(found: Bill | None) -> dict[str, Any] | None:
    """A bill as `--json` prints it: plain values; None where there is none."""
    if found is None:
        return None
    totals = {"cost_usd": found.usd, "cost_usd_per_hour": found.usd_per_hour, "cost_usd_per_1000": found.usd_per_1000}
    return totals | {"good": found.good, "items": [asdict(item) for item in found.items], "notes": list(found.notes)}


def in_words(found: Bill) -> str:
    """A bill in a line: what the window cost, an hour of it, 1,000 good answers, and which machines are in it."""
    per_1000 = f"{found.usd_per_1000:.3g} per 1,000 good answers" if found.good else "no good answer"
    parts = [f"{item.component}: {item.machine}" for item in found.items if not math.isnan(item.usd)]
    return (
        f"Cost: {found.usd:.3g} US dollars in {found.window_s:g} s, {found.usd_per_hour:.3g} an hour, {per_1000} "
        f"({'; '.join(parts)})."
    )


def figures(stage: Stage, records: Records, arm: str | None = None) -> dict[str, float]:
    """FIGURES by name, with `arm` of that one alone; NaN for a stage without [cost]."""
    found = bill(stage, records, arm)
    values = (math.nan,) * 3 if found is None else (found.usd, found.usd_per_hour, found.usd_per_1000)
    return dict(zip(FIGURES, values, strict=True))


def replica_usd_per_hour(stage: Stage, number: int) -> float:
    """US dollars an hour of one replica, on the machine of its arm; of one with several GPUs, its share.

    Raises ValueError for a stage without [cost].
    """
    if stage.cost is None:
        raise _without_cost()
    challenger = arm_of(stage, number) == "challenger"
    return usd_per_hour(paid_by(stage.cost, challenger), place_of(stage, number))


def beside_usd_per_hour(stage: Stage) -> float:
    """US dollars an hour of all that stands beside the replicas; 0 where nothing says what it costs."""
    return 0.0 if stage.cost is None else len(hosts(stage)) * (host_usd_per_hour(stage.cost) or 0.0)


def fleet_usd_per_hour(stage: Stage, replicas: int) -> float:
    """US dollars an hour of the stage with so many replicas all the time, and of what stands beside them.

    Raises ValueError for a stage without [cost].
    """
    cost = stage.cost
    if cost is None:
        raise _without_cost()
    lives = [(number, 0.0, 3600.0) for number in range(replicas)]
    return beside_usd_per_hour(stage) + sum(item.usd for item in _machines(stage, cost, lives))


def caveats(stage: Stage, taken_away: bool = False) -> tuple[str, ...]:
    """What to know of every bill of the stage: a sentence each; none without [cost].

    `taken_away`: that spot machines may be taken away is in it.
    """
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
    named = (cost.machine or "", cost.challenger_machine or "", *cost.machines)
    spot = cost.pricing == "spot" or any(name.endswith("-spot") for name in named)
    if spot and not taken_away:
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


def _without_cost() -> ValueError:
    return ValueError(
        "cost: must be there, got a stage without [cost]. Nothing says what it costs. "
        'Add --set cost.machine="aws/g4dn.xlarge", or another one of `rung prices`.'
    )


def _replicas(stage: Stage, cost: Cost, records: Records) -> list[Item]:
    window_s = records.window_s
    lives = [
        (number, max(0.0, started_s), min(window_s, stopped_s))
        for number, started_s, stopped_s in records.replicas.select("replica", "started_s", "stopped_s").iter_rows()
    ]
    return _machines(stage, cost, [life for life in lives if life[2] > life[1]])


def _machines(stage: Stage, cost: Cost, lives: Sequence[tuple[int, float, float]]) -> list[Item]:
    """A line a kind of machine; `lives` has number, start and stop of each replica. Two arms share no machine."""
    kinds: dict[tuple[str, str | None], list[tuple[int, float, float]]] = {}
    paid = {arm: paid_by(cost, arm == "challenger") for arm in arms_of(stage)}
    for life in lives:
        arm = arm_of(stage, life[0])
        kinds.setdefault((arm, machine_of(paid[arm], place_of(stage, life[0]))), []).append(life)
    items = []
    for (arm, _), own in kinds.items():
        first = place_of(stage, own[0][0])
        price = price_of(paid[arm], first)
        spans = packed(((start, stop) for _, start, stop in own), 1 if price is None else max(1, price.gpu_count))
        seconds = sum(stop - start for start, stop in spans)
        hourly = usd_per_hour(paid[arm], first) if price is None else price.usd_per_hour
        items.append(
            Item(
                arm or ("worker" if stage.queue is not None else "replica"),
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
