"""How many requests a second of wall time a sweep gets through, as a ratio to plain SimPy on the same fleet.

    python -m tests.benchmarks.bench_sweep [REQUESTS] [REPEATS]

Plain SimPy is what one writes first: a process a request, a Store and a server process a replica, on one core, up to a
list of latencies; where choices are known beforehand it is given them. The sweep is timed as it is used, from the stage
to every metric with its interval and the bill: in one process, and on all cores. Both simulate the same requests, take
turns within each repeat, and must give the same latencies. Ratios, not rates: the machine's speed falls out. A core is
compared by processor time, all cores by the clock on the wall, so that only these suffer from what else runs.
"""

from __future__ import annotations

import cProfile
import gc
import platform
import pstats
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import simpy
from rich.console import Console
from rich.table import Table

from simulator import fast
from simulator.device import open_device
from simulator.run import capacity_rps
from simulator.sweep import cores_here, evaluate, evaluate_many, workers_pool
from stages.policies.balancing import Balancer, first_dice, known_choices
from stages.spec import Stage, load_stage, with_overrides
from stages.traffic import Schedule, at_rate, schedule
from tests.benchmarks.plain_simpy import Process, batching_server

LOAD = 0.7
REPLICATIONS = 4
WIDE = {"admission.max_queue_length": 1_000_000}
FLEET = {
    **WIDE,
    "device.slowdown": 1.0,
    "batching.batch_wait_timeout_s": 0.005,
    "fleet.replicas": 4,
    "gateway.max_in_flight": 100_000,
    "gateway.connections_per_replica": 100_000,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "single replica, one at a time": ("single-vm", WIDE),
    "single replica, batches": ("micro-batched", WIDE),
    "random": ("load-balanced", {**FLEET, "gateway.policy": "random"}),
    "round-robin": ("load-balanced", {**FLEET, "gateway.policy": "round-robin"}),
    "sticky without a bound": (
        "load-balanced",
        {**FLEET, "gateway.policy": "sticky", "gateway.sticky_load_bound": 4.0},
    ),
    "sticky": ("load-balanced", {**FLEET, "gateway.policy": "sticky"}),
    "least-outstanding": ("load-balanced", FLEET),
    "power-of-two": ("load-balanced", {**FLEET, "gateway.policy": "power-of-two"}),
}
# What the profile is divided into: the parts of a replication, and the functions that they are the time of.
PARTS: dict[str, tuple[str, ...]] = {
    "arrivals, items": ("schedule_of",),
    "who gets which": ("known_choices",),
    "queues and devices": ("serve",),
    "records": ("fleet_records", "to_records"),
    "metrics, bill": ("measures",),
}


def plain(stage: Stage, arrivals: Schedule, choices: list[int] | None) -> list[float]:
    """Latencies in seconds of a fleet of batching servers, in plain SimPy."""
    env, replicas = simpy.Environment(), stage.fleet.replicas
    queues = [simpy.Store(env) for _ in range(replicas)]
    service_time_s = open_device(stage).service_time_s
    gateway = stage.gateway
    balancer = None
    if gateway is not None:  # its dice are thrown beforehand, as the sweep's are
        seed, throws = stage.traffic.seed, gateway.policy == "power-of-two"
        thrown = first_dice(seed, arrivals.arrivals_s.size).tolist() if throws else []
        balancer = Balancer(gateway.policy, seed, gateway.sticky_load_bound, [(one, two) for one, two in thrown])
    outstanding = dict.fromkeys(range(replicas), 0)
    keys = arrivals.items.tolist()
    latencies_s: list[float] = []

    def request(number: int) -> Process:
        arrived_s, done = env.now, env.event()
        if choices is not None:
            replica = choices[number]
        else:
            assert balancer is not None
            replica = balancer.choose(keys[number], outstanding, env.now, number)
            outstanding[replica] += 1
        yield queues[replica].put((arrived_s, done))
        yield done
        outstanding[replica] -= 1
        latencies_s.append(env.now - arrived_s)

    def source() -> Process:
        for number, arrived_s in enumerate(arrivals.arrivals_s.tolist()):
            yield env.timeout(arrived_s - env.now)
            env.process(request(number))

    for queue in queues:
        env.process(batching_server(env, queue, stage.batching, service_time_s))
    env.process(source())
    env.run()
    return latencies_s


def plain_choices(stage: Stage, arrivals: Schedule) -> list[int] | None:
    """What plain SimPy is given: who gets which request, where that is known beforehand."""
    if stage.gateway is None:
        return [0] * arrivals.arrivals_s.size
    config = stage.gateway
    bound = config.sticky_load_bound
    found = known_choices(config.policy, arrivals.items, stage.fleet.replicas, stage.traffic.seed, bound)
    return None if found is None else found.tolist()


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """On the wall's clock, and of this process' processor time."""
    gc.collect()
    started, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - started, time.process_time() - busy


def case_of(name: str, requests: int) -> Stage:
    """The stage of a case at LOAD of its capacity, for as long as about that many requests take."""
    stage_name, changes = CASES[name]
    stage = load_stage(stage_name, {**changes, "overload": True})
    rate_rps = LOAD * capacity_rps(stage)
    stage = stage.model_copy(update={"traffic": at_rate(stage.traffic, rate_rps)})
    return with_overrides(stage, {"traffic.duration_s": requests / rate_rps})


def check_same(stage: Stage) -> None:
    """Raises AssertionError unless both simulate the same thing, to rounding."""
    arrivals = schedule(stage.traffic)
    wanted_s = np.sort(plain(stage, arrivals, plain_choices(stage, arrivals)))
    requests = fast.simulate(stage).requests
    found_s = np.sort((requests["replied_s"] - requests["scheduled_s"]).to_numpy())
    np.testing.assert_allclose(found_s, wanted_s, rtol=1e-6, atol=1e-9)


def bench(requests: int, repeats: int) -> Table:
    """A row a case: rates of the sweep, and median, least and most of its ratios to plain SimPy on one core."""
    cores = cores_here()
    table = Table(title=f"{LOAD:g} of capacity, {requests:,} requests x {REPLICATIONS}, {repeats} repeats")
    for heading in ("", "requests/s of a core", "ratio a core", f"requests/s, {cores} cores", "ratio, all cores"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    with workers_pool() as pool:
        for name in CASES:
            stage = case_of(name, requests)
            check_same(stage)
            arrivals = schedule(stage.traffic)
            choices, count = plain_choices(stage, arrivals), arrivals.arrivals_s.size
            alone, together = [], []
            for _ in range(repeats):
                plain_s, plain_busy_s = seconds(lambda: plain(stage, arrivals, choices))  # noqa: B023 - called at once
                _, busy_s = seconds(lambda: evaluate(stage, REPLICATIONS))  # noqa: B023
                all_s, _ = seconds(lambda: evaluate_many([stage], REPLICATIONS, pool=pool))  # noqa: B023
                alone.append((REPLICATIONS * count / busy_s, count / plain_busy_s))
                together.append((REPLICATIONS * count / all_s, count / plain_s))
            table.add_row(name, *(cell for of in (alone, together) for cell in _cells(of)))
    return table


def _cells(rates: list[tuple[float, float]]) -> tuple[str, str]:
    ratios = [own / plain_rps for own, plain_rps in rates]
    spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
    return f"{statistics.median(own for own, _ in rates):,.0f}", spread


def profile(requests: int) -> Table:
    """A row a case: which share of a replication's time goes where, as cProfile counts it."""
    table = Table(title="Where the time goes, in percent")
    for heading in ("", *PARTS, "the rest"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for name in CASES:
        stage = case_of(name, requests)
        evaluate(stage, 1)
        watch = cProfile.Profile()
        watch.runcall(evaluate, stage, 1, first=1)
        stats: Any = pstats.Stats(watch)
        whole_s = stats.total_tt
        shares = [100 * _cumulative_s(stats, names) / whole_s for names in PARTS.values()]
        table.add_row(name, *(f"{share:.0f}" for share in (*shares, 100 - sum(shares))))
    return table


def _cumulative_s(stats: Any, names: tuple[str, ...]) -> float:
    ours = ("simulator", "stages", "policies")
    return sum(
        cumulative_s
        for (file, _, function), (_, _, _, cumulative_s, _) in stats.stats.items()
        if function in names and any(f"/{part}/" in file for part in ours)
    )


def main() -> None:
    requests, repeats = (int(arg) for arg in (*sys.argv[1:], *("100000", "5")[len(sys.argv) - 1 :]))
    console = Console(width=140)
    console.print(f"Python {platform.python_version()}, SimPy {simpy.__version__}, {platform.machine()}")
    console.print(bench(requests, repeats))
    console.print(profile(requests))


if __name__ == "__main__":
    main()
