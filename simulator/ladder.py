"""Every stage at 1, 10, 100 … 10 million users a day: what it costs, how soon it answers, and where it is not enough.

    users ─▶ a day of their requests ─▶ for each stage: the cheapest of its kind on one device (simulator/search.py)
                                          ├─▶ Step: dollars a day, p95      none meets the SLO: it is not enough
                                          └─▶ Limit: up to how many users, to an eighth of a decade
    steps ─▶ Beside: spot against on demand, one larger machine against several

Each level has a day of its own, squeezed so that a run has some ten thousand requests. A queued stage is promised hours
and not milliseconds: its wait is that of a fluid in the whole day. No twin: nobody has ten million users at hand. Not
modelled: a second gateway, regions, and what users do when they wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from simulator.beside import none_of
from simulator.candidates import ARCHITECTURES, QUEUED, Candidate, replica_rps
from simulator.offers import Host, Offer
from simulator.plan import Planner
from simulator.search import Measure, Tried
from simulator.workload import AMPLITUDE, DAY_S, Workload
from stages.calibration import Calibration
from stages.prices import prices

LEVELS = tuple(10**power for power in range(8))
STAGES = (*ARCHITECTURES, QUEUED)
ALONE = ("single-vm", "micro-batched")
DUE_S = 8 * 3600.0  # when what is queued has to be done
REQUESTS = 12_000  # of a run, about
SHORTEST_S = 40.0
LOOKS_MOST = 600  # of an autoscaler in a run
REPLICATIONS = 4
BISECTIONS = 3


@dataclass(frozen=True)
class User:
    """What a user does: so many requests a day, most at noon, for one of `items` inputs by Zipf's law."""

    requests_a_day: float = 20.0
    items: int = 100_000
    zipf: float = 1.0

    @property
    def in_words(self) -> str:
        """What it does, in a sentence."""
        return (
            f"A user sends {self.requests_a_day:g} requests a day, each for one of {self.items:,} inputs (Zipf, "
            f"exponent {self.zipf:g}); at noon come {1 + AMPLITUDE:g} times the day's mean."
        )


@dataclass(frozen=True)
class Step:
    """A stage at a number of users. `tried` is None where it is not enough, and `why` says why.

    `p95_s` is in seconds of the world, `usd_per_day` in US dollars.
    """

    stage: str
    users: int
    rate_rps: float
    tried: Tried | None
    p95_s: float = math.nan
    usd_per_day: float = math.nan
    usd_per_1000: float = math.nan
    why: str = ""


@dataclass(frozen=True)
class Limit:
    """Up to how many users a day a stage is enough; `beyond` are the fewest that were too many, None: none were."""

    stage: str
    enough: int
    beyond: int | None


@dataclass(frozen=True)
class Beside:
    """What else could be done at a number of users, in US dollars a day; NaN where it cannot."""

    users: int
    on_demand_usd: float
    spot_usd: float
    up: Tried | None  # one machine, whatever its device
    up_usd: float
    out: Tried | None  # several of the ladder's own device
    out_usd: float


@dataclass(frozen=True)
class Ladder:
    """All of it."""

    user: User
    p95_s: float
    steps: tuple[Step, ...]
    limits: tuple[Limit, ...]
    beside: tuple[Beside, ...]
    calibrated: bool

    def of(self, stage: str) -> list[Step]:
        """The steps of a stage, users rising."""
        return [step for step in self.steps if step.stage == stage]


class Climb:
    """Works the ladder out. `rented` are the devices of its stages, `larger` all that one machine may have."""

    def __init__(
        self,
        user: User,
        p95_s: float,
        rented: Sequence[Offer],
        larger: Sequence[Offer],
        *,
        host: Host | None = None,
        calibration: Calibration | None = None,
        replications: int = REPLICATIONS,
        seed: int = 1,
        pool: Executor | None = None,
        measure: Measure | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._user, self._p95_s, self._rented, self._larger = user, p95_s, rented, larger
        self._host, self._calibration, self._replications = host, calibration, replications
        self._seed, self._pool, self._measure, self._on_progress = seed, pool, measure, on_progress

    def ladder(self, levels: Sequence[int] = LEVELS, stages: Sequence[str] = STAGES) -> Ladder:
        """Every stage at every level. Raises ValueError in words when a stage cannot be simulated."""
        steps = [self.step(stage, users) for users in levels for stage in stages]
        limits = [self._limit(stage, [step for step in steps if step.stage == stage]) for stage in stages]
        beside = [self._beside(users, [step for step in steps if step.users == users]) for users in levels]
        calibrated = self._calibration is not None
        return Ladder(self._user, self._p95_s, tuple(steps), tuple(limits), tuple(beside), calibrated)

    def step(self, stage: str, users: int) -> Step:
        """The cheapest of that kind that is enough for so many users."""
        self._on_progress(f"{stage} for {users:,} users a day")
        work = day_of(self._user, users, self._p95_s, self._seed)
        asked = replace(work, p95_s=min(3600.0, DUE_S / work.compression)) if stage == QUEUED else work
        found, left = self._cheapest(asked, (stage,), self._rented)
        if found is None:
            why = "none of its fleets answers in time" if left else none_of(asked, stage)
            return Step(stage, users, work.rate_rps, None, why=why)
        p95_s = found.p95_s.mean
        if stage == QUEUED:
            p95_s = max(p95_s, _fluid_wait_s(work, found.candidate)) if _waits(work, found.candidate) else p95_s
        usd, per_1000 = found.usd_per_hour.mean, found.estimate["cost_usd_per_1000"].mean
        return Step(stage, users, work.rate_rps, found, p95_s, 24 * usd, per_1000)

    def _cheapest(
        self, work: Workload, architectures: Sequence[str], rented: Sequence[Offer]
    ) -> tuple[Tried | None, int]:
        """What is cheapest, and how many candidates arithmetic had left."""
        planner = Planner(
            *(work, rented),
            replications=self._replications,
            calibration=self._calibration,
            host=self._host,
            pool=self._pool,
            measure=self._measure,
        )
        grid = planner.grid(architectures)
        return planner.search.cheapest(grid.candidates), len(grid.candidates)

    def _limit(self, stage: str, steps: Sequence[Step]) -> Limit:
        """Between the last level at which it is enough and the next, by bisection of the decade."""
        enough = 0
        for step in steps:
            if step.tried is None:
                low, high = max(1, enough), step.users
                for _ in range(BISECTIONS if enough else 0):
                    middle = round(math.sqrt(low * high))
                    if self.step(stage, middle).tried is None:
                        high = middle
                    else:
                        low = middle
                return Limit(stage, low if enough else 0, high)
            enough = step.users
        return Limit(stage, enough, None)

    def _beside(self, users: int, steps: Sequence[Step]) -> Beside:
        """The comparisons at one level: prices of the same stage, and one machine of any device against several."""
        self._on_progress(f"one larger machine for {users:,} users a day")
        work = day_of(self._user, users, self._p95_s, self._seed)
        up, _ = self._cheapest(work, ALONE, self._larger)
        there = [step.tried for step in steps if step.tried is not None and step.stage != QUEUED]
        fleets = (each for each in there if each.candidate.architecture in ("load-balanced", "autoscaled"))
        out = min(fleets, key=lambda each: each.rank, default=None)
        best = min(there, key=lambda each: each.rank, default=None)
        return Beside(
            users,
            math.nan if best is None else 24 * best.usd_per_hour.mean,
            math.nan if best is None else 24 * spot_usd_per_hour(best),
            up,
            math.nan if up is None else 24 * up.usd_per_hour.mean,
            out,
            math.nan if out is None else 24 * out.usd_per_hour.mean,
        )


def day_of(user: User, users: int, p95_s: float, seed: int) -> Workload:
    """A day of so many users, squeezed until a run has about REQUESTS requests, though into no less than SHORTEST_S."""
    rate_rps = users * user.requests_a_day / DAY_S
    duration_s = min(DAY_S, max(SHORTEST_S, REQUESTS / rate_rps))
    return Workload(
        *(rate_rps, p95_s, "diurnal", duration_s, DAY_S / duration_s),
        items=user.items,
        zipf=user.zipf,
        seed=seed,
        # So that a look still counts some hundred requests, and there are no more than LOOKS_MOST of them.
        least_interval_s=max(duration_s / LOOKS_MOST, min(1.0, max(0.05, 500 / rate_rps))),
        least_cold_start_s=0.05,
    )


def spot_usd_per_hour(tried: Tried) -> float:
    """The same stage on the cheapest spot machines of its GPU, in US dollars an hour; NaN where there is no such price.

    The gateway stays on demand. How often machines are taken away is not counted.
    """
    own = tried.candidate
    rows = [row for row in prices() if row.pricing == "spot" and row.gpu_family == own.gpu]
    if not rows:
        return math.nan
    host = own.host.usd_per_hour if own.host else 0.0
    replicas = (tried.usd_per_hour.mean - host) / own.price.usd_per_gpu_hour
    return host + replicas * min(row.usd_per_gpu_hour for row in rows)


def _fluid_wait_s(work: Workload, candidate: Candidate) -> float:
    """The 95th percentile of a fluid's wait in a whole day, in seconds of the world."""
    rates, step_s = work.rates_rps(), work.duration_s / work.rates_rps().size
    carried_rps = candidate.replicas * replica_rps(candidate)
    backlog, waits = 0.0, []
    for rate in [*rates, *rates]:  # the second day begins with what the first has left over
        backlog = max(0.0, backlog + (float(rate) - carried_rps) * step_s)
        waits.append(backlog / carried_rps)
    second = np.array(waits[rates.size :])
    order = np.argsort(second)
    reached = np.cumsum(rates[order]) / rates.sum()
    return float(second[order][np.searchsorted(reached, 0.95)]) * work.compression


def _waits(work: Workload, candidate: Candidate) -> bool:
    """Whether more comes at noon than its workers do."""
    return work.peak_rps > candidate.replicas * replica_rps(candidate)
