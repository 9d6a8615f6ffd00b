"""Is the plan's answer the best of the whole grid? `python -m loadtests.bench_plan [WORKLOADS] [REPLICATIONS] [SEED]`.

    a random workload ─┬─▶ plan: bound and prune, race                   ─▶ its choice ─┐
                       └─▶ every stage there is, none refused, in full   ─▶ the cheapest ┴─▶ the same, or within
                                                                                            its interval?

`make bench-plan` draws five. Small ones, because the whole grid is simulated: one or two devices, some tens of replicas
at most. Both sides have the same arrivals for the same replication; the brute force sees every replication of all.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import Executor
from dataclasses import dataclass

from rich import box
from rich.table import Table

from simulator.candidates import ARCHITECTURES, Candidate
from simulator.offers import host_of, offers
from simulator.plan import Planner
from simulator.planned_stage import stage_of
from simulator.search import SAME_USD, Tried
from simulator.sweep import evaluate_many, workers_pool
from simulator.workload import Workload, workload
from stages.streams import stream
from stages.terminal import Exit, err, out

DEVICES = (("t4",), ("v100",), ("a100",), ("t4", "a100"))
WITHOUT = tuple(
    name for name in ARCHITECTURES if name != "autoscaled"
)  # random workloads are steady: nothing to follow


@dataclass(frozen=True)
class Result:
    """One workload both ways. `planned` and `brute` are None where nothing meets the SLO."""

    workload: Workload
    devices: tuple[str, ...]
    planned: Tried | None
    brute: Tried | None
    simulated: int  # replications of stages that the plan needed
    whole: int  # those of the whole grid
    planned_s: float
    brute_s: float

    @property
    def verdict(self) -> str:
        """same, alike (as dear, and p95 within its interval), doubt (the dearer one's rival is not sure), or worse."""
        if self.planned is None or self.brute is None:
            return "same" if self.planned is self.brute else "worse"
        if self.planned.candidate == self.brute.candidate:
            return "same"
        usd = self.planned.usd_per_hour.mean / self.brute.usd_per_hour.mean - 1
        apart = self.planned.estimate.difference(self.brute.estimate, "latency_s_p95")
        if abs(usd) <= SAME_USD and apart.low <= 0 <= apart.high:
            return "alike"
        return "doubt" if usd < 0 else "worse"


def drawn(seed: int) -> tuple[Workload, tuple[str, ...]]:
    """A random workload, and the devices that may serve it."""
    dice = stream(seed, "bench plan")
    rate_rps = round(float(60 * 12 ** dice.random()), 1)
    p95_s = round(float(0.03 * 6 ** dice.random()), 4)
    devices = DEVICES[int(dice.integers(len(DEVICES)))]
    items = None if dice.random() < 0.6 else int(10 ** (3 + 2 * dice.random()))
    return workload(rate_rps, p95_s, items=items, zipf=None if items is None else 1.0, seed=seed), devices


def both(work: Workload, devices: tuple[str, ...], replications: int, pool: Executor | None) -> Result:
    """The plan's answer, and that of the whole grid."""
    began_s = time.perf_counter()
    host = host_of(None)
    planner = Planner(work, offers(devices=devices), replications=replications, pool=pool, host=host)
    planned = planner.search.cheapest(planner.grid(WITHOUT).candidates)
    simulated = sum(each.replications for each in planner.search.tried)
    middle_s = time.perf_counter()
    all_offers = offers(devices=devices, pruned=False)
    everything = Planner(work, all_offers, host=host).grid(WITHOUT, pruned=False).candidates
    best = brute_force(work, everything, replications, pool)
    return Result(
        *(work, devices, planned, best, simulated, replications * len(everything)),
        *(middle_s - began_s, time.perf_counter() - middle_s),
    )


def brute_force(
    work: Workload, everything: tuple[Candidate, ...], replications: int, pool: Executor | None
) -> Tried | None:
    """The best of all, each simulated in full."""
    points = [stage_of(work, each) for each in everything]
    workers = 1 if pool is None else None
    estimates = evaluate_many(points, replications, work.seed, workers=workers, pool=pool)
    tried = [Tried(*pair) for pair in zip(everything, estimates, strict=True)]
    return min((each for each in tried if each.verdict == "meets"), key=lambda each: each.rank, default=None)


def show(results: list[Result]) -> None:
    """Prints a line a workload."""
    table = Table(box=box.SIMPLE_HEAD, title="Plan against brute force", title_justify="left")
    for name in ("workload", "devices", "planned", "brute force", "verdict", "simulated", "wall time"):
        table.add_column(name, overflow="fold")
    for each in results:
        table.add_row(
            each.workload.in_words + ("" if each.workload.items is None else f"; {each.workload.items} items"),
            ", ".join(each.devices),
            *(_told(side) for side in (each.planned, each.brute)),
            each.verdict,
            f"{each.simulated / max(1, each.whole):.0%} of {each.whole:,}",
            f"{each.planned_s / max(1e-9, each.brute_s):.0%} of brute force",
        )
    out.print(table, soft_wrap=False)
    out.print(
        "same: the very stage; alike: as dear, and p95 differs by less than the paired 95 % interval; doubt: cheaper, "
        "by another draw of what is sure; worse: dearer, or slower for as much.",
        highlight=False,
    )


def _told(tried: Tried | None) -> str:
    if tried is None:
        return "none meets it"
    return f"{tried.candidate}; {tried.usd_per_hour.mean:.4g} USD/h, p95 {1e3 * tried.p95_s.mean:.4g} ms"


def main(workloads: int, replications: int, seed: int) -> int:
    """Prints the table; 0 where every answer is the same, or within its interval."""
    results = []
    with workers_pool() as pool, err.status("Starting …") as status:
        for number in range(workloads):
            work, devices = drawn(seed + number)
            status.update(f"Workload {number + 1} of {workloads}: {work.in_words} …")
            results.append(both(work, devices, replications, pool))
    show(results)
    good = all(each.verdict in ("same", "alike") for each in results)
    return int(Exit.DONE if good else Exit.FAILED)


if __name__ == "__main__":
    numbers = [int(word) for word in [*sys.argv[1:], *("5", "10", "1")[len(sys.argv) - 1 :]]]
    sys.exit(main(*numbers))
