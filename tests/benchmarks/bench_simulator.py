"""How many requests a second of wall time the simulator gets through, as a ratio to plain SimPy on the same queue.

    python -m tests.benchmarks.bench_simulator [REQUESTS] [REPEATS]

Plain SimPy is what one writes first: a process a request, a Resource for the machine, a Store for a batcher. All
contenders replay the same schedule, take turns within each repeat, and must give the same latencies. Ratios, not
rates: the machine's speed and its other work fall out. `simulate` is timed from the schedule to the record, with
and without the data frames; plain SimPy from the schedule to a list of latencies.
"""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import simpy
from rich.console import Console
from rich.table import Table

from simulator import ahead
from simulator.device import open_device
from simulator.draws import Floats
from simulator.host import Host
from simulator.run import Serve, capacity_rps, serve_by_event, simulate
from stages.calibration import HostCosts
from stages.records import Records
from stages.spec import Stage, load_stage
from stages.traffic import Schedule, at_rate, schedule
from tests.benchmarks.plain_simpy import Process, batching_server

LOAD = 0.7


def plain_one_at_a_time(stage: Stage, arrivals_s: Floats) -> list[float]:
    """Latencies in seconds of a single server, as SimPy's own examples write it."""
    env = simpy.Environment()
    machine = simpy.Resource(env, capacity=1)
    service_time_s = open_device(stage).service_time_s(1)
    latencies_s = []

    def request() -> Process:
        arrived_s = env.now
        with machine.request() as turn:
            yield turn
            yield env.timeout(service_time_s)
        latencies_s.append(env.now - arrived_s)

    def source() -> Process:
        for arrived_s in arrivals_s.tolist():
            yield env.timeout(arrived_s - env.now)
            env.process(request())

    env.process(source())
    env.run()
    return latencies_s


def plain_batches(stage: Stage, arrivals_s: Floats) -> list[float]:
    """Latencies in seconds of a batching server: requests in a Store, one process that collects and serves."""
    env = simpy.Environment()
    queue = simpy.Store(env)
    service_time_s = open_device(stage).service_time_s
    latencies_s = []

    def request() -> Process:
        arrived_s, done = env.now, env.event()
        yield queue.put((arrived_s, done))
        yield done
        latencies_s.append(env.now - arrived_s)

    def source() -> Process:
        for arrived_s in arrivals_s.tolist():
            yield env.timeout(arrived_s - env.now)
            env.process(request())

    env.process(batching_server(env, queue, stage.batching, service_time_s))
    env.process(source())
    env.run()
    return latencies_s


def without_frames(stage: Stage, arrivals: Schedule, serve: Serve) -> None:
    """What `simulate` does, up to the record: schedule to the times of every batch."""
    host = Host(HostCosts(), 1)
    serve(stage, host.arrivals_s(arrivals.arrivals_s), open_device(stage), host)


def contenders(stage: Stage, arrivals: Schedule) -> dict[str, Callable[[], object]]:
    """What is timed, by name; the first is what the others are held against."""
    plain = plain_one_at_a_time if stage.batching.max_batch_size == 1 else plain_batches
    return {
        "plain SimPy": lambda: plain(stage, arrivals.arrivals_s),
        "ours": lambda: simulate(stage, arrivals),
        "ours, without data frames": lambda: without_frames(stage, arrivals, ahead.serve),
        "ours, event by event": lambda: simulate(stage, arrivals, serve=serve_by_event),
    }


def check_same_queue(stage: Stage, arrivals: Schedule, timed: dict[str, Callable[[], object]]) -> None:
    """Raises AssertionError unless all contenders simulate the same thing, to rounding."""
    answers = [run() for run in timed.values()]
    wanted_s = np.sort(np.array(answers[0]))
    for records in answers[1:]:
        if isinstance(records, Records):
            latency_s = (records.requests["replied_s"] - records.requests["scheduled_s"]).to_numpy()
            np.testing.assert_allclose(np.sort(latency_s), wanted_s, rtol=1e-6, atol=1e-9)


def seconds(run: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def bench(name: str, requests: int, repeats: int) -> Table:
    """One stage at LOAD of its capacity: median rate, median ratio to the first contender, least and most."""
    stage = load_stage(name, {"admission.max_queue_length": 1_000_000})
    rate_rps = LOAD * capacity_rps(stage)
    lasting = stage.traffic.model_copy(update={"duration_s": requests / rate_rps})
    stage = stage.model_copy(update={"traffic": at_rate(lasting, rate_rps)})
    arrivals = schedule(stage.traffic)
    timed = contenders(stage, arrivals)
    check_same_queue(stage, arrivals, timed)
    took_s: dict[str, list[float]] = {key: [] for key in timed}
    for _ in range(repeats):
        for key, run in timed.items():
            took_s[key].append(seconds(run))
    plain_s = next(iter(took_s.values()))
    table = Table(title=f"{name} at {LOAD:g} of capacity, {arrivals.arrivals_s.size:,} requests, {repeats} repeats")
    for heading in ("", "requests/s", "ratio, median", "min", "max"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for key, own_s in took_s.items():
        ratios = [plain / own for plain, own in zip(plain_s, own_s, strict=True)]
        figures = (statistics.median(ratios), min(ratios), max(ratios))
        rate = arrivals.arrivals_s.size / statistics.median(own_s)
        table.add_row(key, f"{rate:,.0f}", *(f"{figure:.2f}" for figure in figures))
    return table


def main() -> None:
    requests, repeats = (int(arg) for arg in (*sys.argv[1:], *("200000", "7")[len(sys.argv) - 1 :]))
    console = Console()
    console.print(f"Python {platform.python_version()}, SimPy {simpy.__version__}, {platform.machine()}")
    for name in ("single-vm", "micro-batched"):
        console.print(bench(name, requests, repeats))


if __name__ == "__main__":
    main()
