"""The cheapest stage that meets its SLO: which, how sure that is, what lies beside it, and what breaks first.

    Workload ─▶ offers × architectures ─▶ Grid ─▶ Search ─▶ choice ─▶ neighbours  one change each, and what it does
                                                     │         └────▶ breaks      the rate is raised until it misses
                                                     └─▶ dearer ones ─▶ front of cost against p95
    ────────────────────────────────────────────────────────────────▶ Plan ─▶ plan_words, plan_plots

No twin: loadtests/plan_verify.py runs an answer for real. Not modelled: spot machines that are taken away, zones that
fail, and what disks and traffic cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from simulator import sweep
from simulator.beside import changes, dearer, none_of
from simulator.candidates import ARCHITECTURES, Candidate, Grid, candidates, replica_rps, sibling
from simulator.estimate import Estimate
from simulator.offers import Host, Offer
from simulator.planned_stage import stage_of
from simulator.search import FIRST, SECOND, Measure, Search, Tried, alike, front, in_doubt
from simulator.workload import SHARE, Workload
from stages.calibration import Calibration
from stages.spec import Stage
from stages.traffic import at_rate

OTHERS_MOST = 24  # candidates of another device or architecture that are looked at for the sake of comparison
GROWTH = ((1.1, 1.2), (1.35, 1.5), (1.75, 2.0), (2.5, 3.0), (4.0, 6.0), (8.0, 12.0))
FULL = 0.85  # of what it carries: whatever is less full than that is not what breaks


@dataclass(frozen=True)
class Neighbour:
    """The choice with one change; `tried` is None where `words` say why there is no such stage."""

    what: str
    tried: Tried | None
    words: str = ""


@dataclass(frozen=True)
class Breaks:
    """Where the choice stops keeping its promise as traffic grows: at `factor` times the rate; `holds` it still kept.

    `loads` are shares of what each component carries at that rate; `factor` is None where it never broke.
    """

    factor: float | None
    holds: float
    loads: dict[str, float]
    tried: Tried | None


@dataclass(frozen=True)
class Plan:
    """The answer and what it rests on. Without a `choice` nothing that was tried keeps the promise."""

    workload: Workload
    grid: Grid
    choice: Tried | None
    tried: tuple[Tried, ...]
    neighbours: tuple[Neighbour, ...] = ()
    breaks: Breaks | None = None
    requests: int = 0
    wall_s: float = 0.0
    calibrated: bool = False

    @property
    def front(self) -> list[Tried]:
        """The Pareto front of cost against p95."""
        return front(self.tried)

    @property
    def alike(self) -> list[Tried]:
        """Those that cannot be told from the choice."""
        return [] if self.choice is None else alike(self.choice, self.tried)

    @property
    def in_doubt(self) -> list[Tried]:
        """Cheaper ones that may keep the promise too."""
        return [] if self.choice is None else in_doubt(self.choice, self.tried)


class Planner:
    """Plans for one workload on what can be rented. `pool` are the processes that simulate; without one, this one."""

    def __init__(
        self,
        workload: Workload,
        rented: Sequence[Offer],
        *,
        replications: int = 10,
        calibration: Calibration | None = None,
        host: Host | None = None,
        pool: Executor | None = None,
        measure: Measure | None = None,
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._workload, self._rented, self._replications = workload, rented, replications
        self._calibration = None if calibration is None else host_only(calibration)
        self._host, self._pool, self._on_progress = host, pool, on_progress
        self.search = Search(measure or self._simulated, replications, on_progress)

    def plan(self, architectures: Sequence[str] = ARCHITECTURES) -> Plan:
        """The plan. Raises ValueError in words when a stage cannot be simulated."""
        began_s = time.perf_counter()
        grid = self.grid(architectures)
        choice = self.search.cheapest(grid.candidates)
        neighbours: tuple[Neighbour, ...] = ()
        breaks = None
        if choice is not None:
            self._on_progress("Looking at dearer ones")
            self.search.measured(dearer(grid, choice, self.search.tried), SECOND)
            self._on_progress("Looking at its neighbours")
            neighbours = tuple(self._neighbours(choice, grid, architectures))
            self._on_progress("Raising the rate until it breaks")
            breaks = self.breaks(choice)
            choice = self.search.measured([choice.candidate])[0]
        return Plan(
            self._workload,
            grid,
            choice,
            tuple(self.search.tried),
            neighbours,
            breaks,
            self.search.requests,
            time.perf_counter() - began_s,
            self._calibration is not None,
        )

    def grid(self, architectures: Sequence[str] = ARCHITECTURES, pruned: bool = True) -> Grid:
        """What there is to choose from."""
        return candidates(self._workload, self._rented, architectures=architectures, host=self._host, pruned=pruned)

    def breaks(self, choice: Tried) -> Breaks:
        """Raises the rate of the choice, over all of the run, until it misses its promise; and what is full then."""
        holds, broken = 1.0, None
        for factors in GROWTH:
            broken, holds = self._first_broken(choice, factors, holds, FIRST)
            if broken is not None:
                middle = [holds + part * (broken[0] - holds) for part in (1 / 3, 2 / 3)]
                nearer, holds = self._first_broken(choice, middle, holds, SECOND)
                broken = nearer or broken
                break
        if broken is None:
            return Breaks(None, holds, {}, None)
        factor, tried = broken
        return Breaks(factor, holds, self._loads(tried, factor), tried)

    def _first_broken(
        self, choice: Tried, factors: Sequence[float], holds: float, replications: int
    ) -> tuple[tuple[float, Tried] | None, float]:
        """The first of rising factors at which the promise is missed; and the last at which it was kept."""
        stage = stage_of(self._workload, choice.candidate)
        points = [
            stage.model_copy(
                update={"traffic": at_rate(stage.traffic, factor * self._workload.rate_rps), "overload": True}
            )
            for factor in factors
        ]
        estimates = self._evaluated(points, min(replications, self._replications), 0)
        for factor, estimate in zip(factors, estimates, strict=True):
            if estimate["slo_share"].mean < SHARE:
                return (factor, Tried(choice.candidate, estimate)), holds
            holds = factor
        return None, holds

    def _loads(self, tried: Tried, factor: float) -> dict[str, float]:
        """How full each component is at that factor of the highest rate, as a share of what it carries."""
        candidate, rate_rps = tried.candidate, factor * self._workload.peak_rps
        hits = tried.estimate["hit_ratio"].mean if candidate.architecture == "cached" else 0.0
        loads = {"devices": rate_rps * (1 - hits) / (candidate.replicas * replica_rps(candidate))}
        gateway = self._calibration.gateway if self._calibration else None
        if candidate.has_gateway and gateway is not None and gateway.busy_s:
            loads["gateway"] = rate_rps * gateway.busy_s
        return loads

    # ---- neighbours ----------------------------------------------------------------------------------------------

    def _neighbours(self, choice: Tried, grid: Grid, architectures: Sequence[str]) -> list[Neighbour]:
        """One change each; then the cheapest of every other device and architecture."""
        some_changes = changes(self._workload, choice.candidate)
        changed = [sibling(self._workload, self._rented, choice.candidate, **change) for _, change in some_changes]
        found = self.search.measured(changed, SECOND)
        near = [Neighbour(what, tried) for (what, _), tried in zip(some_changes, found, strict=True)]
        own = choice.candidate
        for gpu in dict.fromkeys(offer.gpu for offer in self._rented):
            if gpu != own.gpu:
                some = [each for each in grid.candidates if each.gpu == gpu]
                near.append(self._cheapest_of(f"on {gpu} instead", some))
        for architecture in architectures:
            if architecture != own.architecture:
                some = [each for each in grid.candidates if each.architecture == architecture]
                near.append(self._cheapest_of(f"{architecture} instead", some, architecture))
        return near

    def _cheapest_of(self, what: str, some: Sequence[Candidate], architecture: str | None = None) -> Neighbour:
        """The cheapest of some candidates that meets its SLO, if one of the first OTHERS_MOST does."""
        if not some:
            return Neighbour(what, None, none_of(self._workload, architecture))
        found = self.search.cheapest(some[:OTHERS_MOST])
        if found is None:
            tried = len(some[:OTHERS_MOST])
            most = f"none of the {tried} cheapest that it has" if tried < len(some) else f"none of {tried}"
            return Neighbour(what, None, f"{most} meets the SLO")
        return Neighbour(what, found)

    # ---- simulating ----------------------------------------------------------------------------------------------

    def _simulated(self, some: Sequence[Candidate], replications: int, first: int) -> list[Estimate]:
        return self._evaluated([stage_of(self._workload, each) for each in some], replications, first)

    def _evaluated(self, points: Sequence[Stage], replications: int, first: int) -> list[Estimate]:
        """Estimates of stages, on the pool where there is one."""
        workers = 1 if self._pool is None else None
        return sweep.evaluate_many(
            points,
            replications,
            self._workload.seed,
            calibration=self._calibration,
            workers=workers,
            first=first,
            pool=self._pool,
        )


def host_only(calibration: Calibration) -> Calibration:
    """What a calibration says of the host; devices keep the pace of the catalogue, because they are to be chosen."""
    return calibration.model_copy(update={"service_times": (), "other_devices": {}, "device": "of the catalogue"})


def plan_without_choice(plan: Plan) -> Tried | None:
    """Of a plan without a choice, what came nearest to its promise."""
    return max(plan.tried, key=lambda each: each.share.mean, default=None)
