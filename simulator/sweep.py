"""Points of a grid, each simulated several times, on all cores: the estimates that plots and plans are made of.

    stage ─▶ evaluate: seed, seed + 1, … ─▶ fast.simulate ─▶ metrics, bill ─▶ Estimate
    points ─▶ evaluate_many: parts of points ─▶ processes ─▶ joined ─▶ Estimate a point, as each is done
    folder/points/<digest>.json ◀─ sweep ─▶ what is there already is not simulated again

Every point sees the same arrivals, items and service draws for the same replication. A run begins empty, as a measured
one does, and is as long as traffic.duration_s. No twin: loadtests measure one point at a time. Not modelled: what
simulator/run.py leaves out.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import polars as pl

from simulator import fast, kept_points
from simulator.estimate import Estimate
from simulator.grid import Point
from stages import bill, metrics
from stages.calibration import Calibration
from stages.records import Records
from stages.spec import Stage, with_overrides

METRICS = (*metrics.METRICS, "slo_share", *bill.FIGURES)
REPLICATIONS_MAX = 1000
_PARTS_PER_WORKER = 4  # of the work, at least: so that no core waits long for the others at the end
_WARM_UP_S = 120.0


class WorkersGoneError(RuntimeError):
    """A process of the pool has ended before its work was done."""


def evaluate(
    stage: Stage,
    replications: int = 10,
    seed: int | None = None,
    duration_s: float | None = None,
    *,
    calibration: Calibration | None = None,
    first: int = 0,
) -> Estimate:
    """The stage simulated `replications` times, in this process: replication k, from `first` on, has seed + k.

    `seed` stands in for traffic.seed, `duration_s` for traffic.duration_s. Raises ValueError, and StageError, which is
    one, in words: for a stage that cannot be simulated, and for bounds that are not kept.
    """
    _check(replications, first)
    if duration_s is not None:
        stage = with_overrides(stage, {"traffic.duration_s": float(duration_s)})
    seed = stage.traffic.seed if seed is None else seed
    seeds = tuple(range(seed + first, seed + first + replications))
    began, requests = time.perf_counter(), 0
    values: dict[str, list[float]] = {name: [] for name in METRICS}
    for each in seeds:
        try:
            records = fast.simulate(stage, calibration=calibration, seed=each)
        except ValueError as error:
            raise ValueError(f"{stage.name}: {error}") from error
        requests += records.requests.height
        for name, value in measures(stage, records).items():
            values[name].append(value)
    kept = {name: tuple(each) for name, each in values.items()}
    return Estimate(seeds, kept, requests, time.perf_counter() - began)


def measures(stage: Stage, records: Records) -> dict[str, float]:
    """Every metric of METRICS of one run, measured or predicted.

    Those of stages.metrics and of stages.bill; `slo_share` is of all requests: those answered within slo.latency_s.
    """
    slo_s, requests = stage.slo.latency_s, records.requests
    good = (pl.col("outcome") == "ok") & (pl.col("replied_s") - pl.col("scheduled_s") <= slo_s)
    share = int(requests.select(good.sum()).item()) / requests.height if requests.height else math.nan
    return metrics.summarise(records, slo_s) | {"slo_share": share} | bill.figures(stage, records)


def evaluate_many(
    points: Sequence[Stage],
    replications: int = 10,
    seed: int | None = None,
    duration_s: float | None = None,
    *,
    calibration: Calibration | None = None,
    workers: int | None = None,
    first: int = 0,
    each: Callable[[int, Estimate], None] | None = None,
    pool: Executor | None = None,
) -> list[Estimate]:
    """`evaluate` for each of the points, on `workers` processes (all cores without it; 1: in this one).

    `each` is told of a point's number and estimate as soon as it is done. A `pool` of workers_pool is used and left
    open. Raises what evaluate raises, for the first point that does, and WorkersGoneError.
    """
    _check(replications, first)
    cores = workers or cores_here()
    if pool is None and cores == 1:
        done = []
        for number, stage in enumerate(points):
            done.append(evaluate(stage, replications, seed, duration_s, calibration=calibration, first=first))
            if each is not None:
                each(number, done[-1])
        return done
    with nullcontext(pool) if pool is not None else workers_pool(cores) as executor:
        parts = _parts(len(points), replications, cores)
        point = partial(evaluate, seed=seed, duration_s=duration_s, calibration=calibration)
        futures = {
            executor.submit(partial(point, points[number], count, first=first + start)): (number, start)
            for number in range(len(points))
            for start, count in parts
        }
        return _joined(futures, len(points), len(parts), each)


@contextmanager
def workers_pool(workers: int | None = None) -> Iterator[Executor]:
    """Processes that `evaluate_many` may use again and again; each is there, with its imports, when this is entered.

    They are started anew and not forked: polars has threads, of which a fork has none. Each has one thread for polars,
    because there are as many processes as cores.
    """
    count = workers or cores_here()
    before = os.environ.get("POLARS_MAX_THREADS")
    executor = ProcessPoolExecutor(
        count,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=signal.signal,  # Ctrl-C ends them without a word: this process says what there is to say
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        os.environ["POLARS_MAX_THREADS"] = "1"
        for future in [executor.submit(_is_there, number) for number in range(count)]:
            future.result(timeout=_WARM_UP_S)
    finally:
        if before is None:
            os.environ.pop("POLARS_MAX_THREADS", None)
        else:
            os.environ["POLARS_MAX_THREADS"] = before
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def cores_here() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(
    points: Sequence[Point],
    replications: int = 10,
    seed: int | None = None,
    *,
    calibration: Calibration | None = None,
    workers: int | None = None,
    folder: Path | None = None,
    each: Callable[[int, Estimate, bool], None] | None = None,
) -> list[Estimate]:
    """The estimates of the points of a grid; what `folder` has of the same code, stages and seeds is read from there.

    `each` is told of each point: its number, its estimate, and whether it was there already. Every estimate is
    written as soon as it is done. Raises what evaluate raises, and OSError for a folder that cannot be written.
    """
    digests = [kept_points.digest(point.stage, replications, seed, calibration) for point in points]
    found = [kept_points.read(folder, digest) if folder is not None else None for digest in digests]
    for number, estimate in enumerate(found):
        if estimate is not None and each is not None:
            each(number, estimate, True)
    missing = [number for number, estimate in enumerate(found) if estimate is None]

    def done(place: int, estimate: Estimate) -> None:
        number = missing[place]
        if folder is not None:
            kept_points.write(folder, digests[number], estimate)
        if each is not None:
            each(number, estimate, False)

    if missing:
        stages = [points[number].stage for number in missing]
        new = evaluate_many(stages, replications, seed, calibration=calibration, workers=workers, each=done)
        for number, estimate in zip(missing, new, strict=True):
            found[number] = estimate
    return [estimate for estimate in found if estimate is not None]


def _is_there(number: int) -> int:
    time.sleep(0.05)  # long enough for the next one to go to another process
    return number


def _check(replications: int, first: int) -> None:
    if not 1 <= replications <= REPLICATIONS_MAX or first < 0:
        raise ValueError(
            f"replications: must be 1 to {REPLICATIONS_MAX}, from 0 on, got {replications} from {first}. "
            "There would be no estimate. Use 10."
        )


def _parts(points: int, replications: int, workers: int) -> list[tuple[int, int]]:
    """The parts of a point's replications: (first, how many). Few points are cut into more parts than many are."""
    wanted = math.ceil(_PARTS_PER_WORKER * workers / max(1, points))
    size = math.ceil(replications / min(replications, wanted))
    return [(start, min(size, replications - start)) for start in range(0, replications, size)]


def _joined(
    futures: dict[Future[Estimate], tuple[int, int]],
    points: int,
    parts: int,
    each: Callable[[int, Estimate], None] | None,
) -> list[Estimate]:
    """Each point's parts as one estimate, in the order of their seeds. On the way out, what is left is called off."""
    had: dict[int, dict[int, Estimate]] = {}
    whole: dict[int, Estimate] = {}
    try:
        for future in as_completed(futures):
            number, start = futures[future]
            own = had.setdefault(number, {})
            own[start] = future.result()
            if len(own) == parts:
                first, *others = (own[key] for key in sorted(own))
                del had[number]
                for other in others:
                    first = first.plus(other)
                whole[number] = first
                if each is not None:
                    each(number, first)
    except BrokenProcessPool:
        raise WorkersGoneError(
            "A process of the sweep ended before its work was done, as one does that takes more memory than there is. "
            "Shorten traffic.duration_s, or use fewer --workers."
        ) from None
    finally:
        for future in futures:
            future.cancel()
    return [whole[number] for number in range(points)]
