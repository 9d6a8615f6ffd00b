"""Measures this machine once for one stage: device time by batch size, and the host's time around the device.

    batch sweep   bursts of n requests at once, widely apart   → service times, gap between batches,
                  (n = 1 to twice the largest batch)             time of each further answer
    low load      Poisson at a tenth of capacity               → send and reply hops, waking an idle device

Nothing else is seen: no run that a prediction is judged on, and no wait in a queue.
"""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import psutil

from loadtests.checks import FOREIGN_CPU_MAX
from loadtests.load import Loaded, fire
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.up import runs_folder
from stages import catalogue
from stages.calibration import Calibration, HostCosts, ServiceTimes
from stages.policies.batching import leaves_at_s
from stages.records import Records
from stages.spec import Stage, device_label, with_overrides
from stages.streams import stream

# A burst's requests arrive within a few milliseconds; in the sweep a batch waits this long for all of them.
GATHER_S = 0.012
# Bursts follow closely, so that the device is about as busy as under load.
REST_S = 0.006
# A batch that starts sooner than this after another had been waiting for it.
WAITING_GAP_S = 0.001
ATTEMPTS = 3  # to find the machine quiet
QUANTILES = 101
LOW_LOAD = 0.1
Progress = Callable[[str, float, float], None]  # what is done now, seconds gone by, seconds in all


def calibrate(
    stage: Stage,
    folder: Path,
    *,
    rounds: int = 40,
    real_sweep_s: float = 60.0,
    low_load_duration_s: float = 25.0,
    command: str = "rung calibrate",
    on_progress: Progress = lambda *_: None,
) -> Calibration:
    """Calibrates `stage` on this machine with `rounds` bursts of each size; files and logs stay in `folder`.

    A real device's pace wanders from second to second: its sweep goes on for at least `real_sweep_s` seconds.

    Raises LaunchError when the stage does not start and LoadError when the load generator fails.
    """
    label = device_label(stage)
    swept = _sweep(stage, folder / "sweep", rounds, real_sweep_s, label, on_progress)
    sweep = swept.records
    services = service_times(sweep)
    low_rate_rps = LOW_LOAD * stage.batching.max_batch_size / services[-1].mean_s
    light = _low_load(stage, folder / "low-load", low_rate_rps, low_load_duration_s, label, on_progress)
    low_load = light.records
    return Calibration(
        stage=stage.name,
        machine=machine(),
        device=label,
        model=stage.model.name,
        made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=command,
        low_load_rate_rps=low_rate_rps,
        service_times=services,
        host=host_costs(stage, sweep, low_load),
        caveats=(*_busy("batch sweep", swept), *_busy("low load", light)),
    )


def kept_path(stage: Stage, short: bool) -> Path:
    """Where the calibration of this machine for this stage is kept: what it depends on is in the name's digest."""
    depends = (machine(), stage.model, stage.device, stage.batching, stage.traffic.input_format, short)
    digest = hashlib.sha256(repr(depends).encode()).hexdigest()[:10]
    return runs_folder() / "calibration" / f"{stage.name}-{stage.device.kind}-{digest}.json"


def machine() -> str:
    """This machine in words: processor, cores, memory, operating system."""
    memory_gib = psutil.virtual_memory().total / 2**30
    return f"{_processor()}, {psutil.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.system()} {platform.machine()}"


def sweep_sizes(max_batch_size: int) -> list[int]:
    """Batch sizes to sweep: each up to 8, then in steps of about a half; the maximum is always one of them."""
    sizes = list(range(1, min(max_batch_size, 8) + 1))
    while sizes[-1] < max_batch_size:
        sizes.append(min(max_batch_size, sizes[-1] + max(1, sizes[-1] // 2)))
    return sizes


def service_times(sweep: Records) -> tuple[ServiceTimes, ...]:
    """Device time of each batch size that the sweep saw at least 5 times, as quantiles."""
    seconds = sweep.batches.with_columns((pl.col("finished_s") - pl.col("started_s")).alias("service_s"))
    result = []
    for (size,), rows in sorted(seconds.group_by("batch_size"), key=lambda group: int(str(group[0][0]))):
        if rows.height >= 5:
            result.append(ServiceTimes(batch_size=int(str(size)), quantiles_s=_quantiles(rows["service_s"])))
    return tuple(result)


def host_costs(stage: Stage, sweep: Records, low_load: Records) -> HostCosts:
    """What the host takes around the device, from the sweep's batches and the low load's requests."""
    answered = low_load.requests.filter(pl.col("outcome") == "ok").sort("finished_s", "replied_s")
    firsts = answered.group_by("batch", maintain_order=True).first()
    return HostCosts(
        send_quantiles_s=_quantiles(answered["arrived_s"] - answered["scheduled_s"]),
        wake_s=wake_s(stage, low_load),
        between_batches_s=between_batches_s(sweep),
        reply_quantiles_s=_quantiles(firsts["replied_s"] - firsts["finished_s"]),
        reply_per_item_s=reply_per_item_s(sweep),
    )


def wake_s(stage: Stage, low_load: Records) -> float:
    """Median seconds from the moment at which a batch may leave to its start, on an idle device."""
    batching = stage.batching
    rows = low_load.requests.filter(pl.col("outcome") == "ok").sort("batch", "arrived_s")
    late_s = []
    idle_from_s = 0.0
    for (_,), batch in rows.group_by("batch", maintain_order=True):
        arrived, started_s = batch["arrived_s"].to_list(), float(batch["started_s"][0])
        leaves_s = max(
            arrived[-1],
            leaves_at_s(len(arrived), arrived[0], batching.max_batch_size, batching.batch_wait_timeout_s),
        )
        if leaves_s > idle_from_s:
            late_s.append(max(0.0, started_s - leaves_s))
        idle_from_s = float(batch["finished_s"][0])
    return float(np.median(late_s)) if late_s else 0.0


def between_batches_s(sweep: Records) -> float:
    """Median seconds between the end of a batch and the start of the next, where the next was waiting."""
    gaps = (
        sweep.batches.sort("batch")
        .with_columns((pl.col("started_s") - pl.col("finished_s").shift(1)).alias("gap_s"))
        .filter(pl.col("gap_s") < WAITING_GAP_S)["gap_s"]
    )
    return max(0.0, float(np.median(gaps.to_numpy()))) if gaps.len() else 0.0


def reply_per_item_s(sweep: Records) -> float:
    """Median seconds from one answer of a batch to its next at the client."""
    spans = (
        sweep.requests.filter(pl.col("outcome") == "ok")
        .group_by("batch")
        .agg(((pl.col("replied_s").max() - pl.col("replied_s").min()) / (pl.len() - 1)).alias("step_s"), pl.len())
        .filter(pl.col("len") >= 2)
    )
    return float(np.median(spans["step_s"].to_numpy())) if spans.height else 0.0


def _sweep(stage: Stage, folder: Path, rounds: int, real_sweep_s: float, label: str, on_progress: Progress) -> Loaded:
    """Bursts of every size in mixed order, and of twice the largest, so that one batch waits for another."""
    largest = stage.batching.max_batch_size
    sizes = [*sweep_sizes(largest), 2 * largest]
    base = {
        "batching.batch_wait_timeout_s": GATHER_S if largest > 1 else 0.0,
        "admission.max_queue_length": max(64, 2 * largest),
        "admission.deadline_s": None,
        "slo.latency_s": 60.0,
        "overload": True,
    }
    with ProcessLauncher(with_overrides(stage, base), folder) as launcher:
        url, pid = launcher.replicas[0].url, launcher.replicas[0].process.pid
        guess_s = _probe_service_s(stage, url, folder, label, pid)
        takes_s = {size: _burst_s(size, largest, guess_s) for size in sizes}
        if stage.device.kind != "emulated":
            rounds = max(rounds, math.ceil(real_sweep_s / sum(takes_s.values())))
        order = stream(stage.traffic.seed, "sweep order").permutation(np.tile(sizes, rounds))
        arrivals, at_s = [], 0.0
        for size in order.tolist():
            arrivals += [at_s] * size
            at_s += takes_s[size]
        bursts = _traced(with_overrides(stage, base), arrivals, at_s + 0.2, folder / "bursts.csv")
        total_s = bursts.traffic.duration_s
        return _fire_in_quiet(
            bursts, url, folder, label, pid, on_second=lambda s: on_progress("Batch sweep", s, total_s)
        )


def _burst_s(size: int, largest: int, guess_s: Callable[[int], float]) -> float:
    """Seconds from one burst of `size` requests to the next: gathered, worked off, and a rest."""
    batches = -(-size // largest)
    return (GATHER_S if size < largest else 0.0) + REST_S + 1.1 * batches * guess_s(min(size, largest))


def _probe_service_s(stage: Stage, url: str, folder: Path, label: str, pid: int) -> Callable[[int], float]:
    """About how long a batch of n takes: the profile's word, or a few single requests that also warm the device."""
    if stage.device.kind == "emulated":
        profile = catalogue.profiles()[str(stage.device.profile)]
        return lambda n: profile.service_time_s(n) * stage.device.slowdown
    singles = _traced(stage, [0.25 * k for k in range(8)], 2.2, folder / "singles.csv")
    record = fire(singles, url, folder / "warm-up", device=label, pids=(pid,)).records
    one_s = float((record.batches["finished_s"] - record.batches["started_s"]).to_numpy()[-4:].mean())
    return lambda n: one_s * (1.0 + 0.6 * (n - 1))


def _low_load(
    stage: Stage, folder: Path, rate_rps: float, duration_s: float, label: str, on_progress: Progress
) -> Loaded:
    traffic = {
        "traffic.rate": {"shape": "constant", "rate_rps": rate_rps},
        "traffic.arrivals": "poisson",
        "traffic.loop": "open",
        "traffic.duration_s": duration_s,
        "traffic.seed": stage.traffic.seed + 7919,  # not the schedule of any run that is judged
        "traffic.coefficient_of_variation": None,
    }
    light = with_overrides(stage, traffic)
    with ProcessLauncher(light, folder) as launcher:
        replica = launcher.replicas[0]
        time.sleep(0.5)
        return _fire_in_quiet(
            light,
            replica.url,
            folder,
            label,
            replica.process.pid,
            on_second=lambda s: on_progress("Low load", s, duration_s),
        )


def _fire_in_quiet(
    stage: Stage, url: str, folder: Path, label: str, pid: int, *, on_second: Callable[[float], None]
) -> Loaded:
    """Fires the stage's traffic, and again while the host is busy with something else; gives the quietest run."""
    loaded = []
    for attempt in range(ATTEMPTS):
        run = fire(stage, url, folder / f"attempt-{attempt + 1}", device=label, pids=(pid,), on_second=on_second)
        if run.check.foreign_cpu_share <= FOREIGN_CPU_MAX:
            return run
        loaded.append(run)
    return min(loaded, key=lambda run: run.check.foreign_cpu_share)


def _busy(what: str, loaded: Loaded) -> Iterator[str]:
    share = loaded.check.foreign_cpu_share
    if share > FOREIGN_CPU_MAX:
        yield (
            f"Calibrated on a busy machine: other processes took {share:.0%} of its cores during the {what}. "
            "Predictions are off by what that cost; calibrate again on a quiet one."
        )


def _traced(stage: Stage, arrivals_s: list[float], duration_s: float, path: Path) -> Stage:
    """The stage with arrivals at just these times; one more at the end tells how long the trace lasts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"])
        writer.writerows([f"{at_s:.6f}", "sweep", 0, 0, 0, ""] for at_s in [*arrivals_s, duration_s + 0.01])
    traffic = {
        "traffic.rate": {"shape": "trace", "path": str(path.absolute()), "format": "burstgpt"},
        "traffic.duration_s": duration_s,
        "traffic.loop": "open",
        "traffic.arrivals": None,
        "traffic.coefficient_of_variation": None,
    }
    return with_overrides(stage, traffic)


def _quantiles(values: pl.Series) -> tuple[float, ...]:
    """The sample's quantiles at (i + 1/2) / QUANTILES, so that its most, one freak of many, is not drawn often."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    return tuple(round(float(max(0.0, point)), 7) for point in np.quantile(values.to_numpy(), at))


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
