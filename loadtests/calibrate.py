"""Measures this machine once for one stage: device time by batch size, and the host's time around the device.

    batch sweep   bursts of n requests at once, widely apart   → service times, gap between batches,
                  (n = 1 to twice the largest batch)             time of each further answer
    low load      Poisson at a tenth of capacity               → send and reply hops, waking an idle device
    the same, through the stage's gateway                      → its hops, its processor time for a request
    and of one item, where the gateway has a cache            → the same of a kept answer
    through a queue's jobs API, which is always there          → the same of it: sweep and low load go through it too

Always one replica; of unequal ones each kind is swept. Nothing else is seen: no run that a prediction is judged on,
no wait in a queue, and no choice between replicas. What the records tell is in loadtests/costs.py.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import hashlib
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from loadtests.checks import FOREIGN_CPU_MAX
from loadtests.costs import gateway_costs, host_costs, service_times, with_hits
from loadtests.load import Loaded, fire
from reference_apps.launchers.launcher import Launcher
from reference_apps.launchers.process import ProcessLauncher
from reference_apps.up import runs_folder
from stages import catalogue
from stages.arms import replicas_of
from stages.calibration import Calibration, Door, GatewayCosts, ServiceTimes
from stages.spec import Stage, device_label, of_replica, with_overrides, without_version
from stages.streams import stream

# A burst's requests arrive within a few milliseconds; in the sweep a batch waits this long for all of them.
GATHER_S = 0.012
# Bursts follow closely, so that the device is about as busy as under load.
REST_S = 0.006
# The most of the cores that something else may take during one run of a calibration: the first try asks for a quiet
# machine, because a freak of a few milliseconds in a calibration is a tail in every prediction; the others give in.
FOREIGN_CPU_MAX_OF_ATTEMPT = (0.03, FOREIGN_CPU_MAX, FOREIGN_CPU_MAX)
LOW_LOAD = 0.1
# A gateway's hops hold no wait of the replica, so that its own low load may be higher: cores then are as awake as in
# the runs to be predicted, and the gateway still is nearly idle.
GATEWAY_LOW_LOAD, GATEWAY_LOW_RPS = 0.4, 60.0  # a share of one replica's capacity, and at most so many a second
IDLE_S = 3.0  # for so long a gateway that has nothing to do is watched
HITS_S = 12.0  # of the low load that a cache answers: requests that are all alike need no more
# What a stage with a cache is asked for where every request is to be computed: hardly any of so many comes twice.
ALL_DIFFERENT = {"traffic.items": {"popularity": "uniform", "count": 10_000_000}}
ALL_ALIKE = {"traffic.items": {"popularity": "uniform", "count": 1}}
Launch = Callable[[Stage, Path], Launcher]
Progress = Callable[[str, float, float], None]  # what is done now, seconds gone by, seconds in all


def calibrate(
    stage: Stage,
    folder: Path,
    *,
    rounds: int = 40,
    real_sweep_s: float = 60.0,
    low_load_duration_s: float = 25.0,
    command: str = "rung calibrate",
    launch: Launch = ProcessLauncher,
    on_progress: Progress = lambda *_: None,
) -> Calibration:
    """Calibrates `stage` on this machine with `rounds` bursts of each size; files and logs stay in `folder`.

    A real device's pace wanders from second to second: its sweep goes on for at least `real_sweep_s` seconds.

    Raises LaunchError when the stage does not start and LoadError when the load generator fails.
    """
    stage = stage.model_copy(update={"model": without_version(stage.model)})  # of the device, whoever answers
    first, *others = kinds(stage)
    swept = [
        _sweep(launch, alone(kind), folder / f"sweep-{number}", rounds, real_sweep_s, on_progress)
        for number, kind in enumerate((first, *others))
    ]
    services = [service_times(each.records, stage.device.kind == "emulated") for each in swept]
    rate_rps = LOW_LOAD * _slowest_rps(stage, services)
    light = _low_load(launch, alone(first), folder / "low-load", rate_rps, low_load_duration_s, "Low load", on_progress)
    caveats = [*(caveat for each in swept for caveat in _busy("batch sweep", each)), *_busy("low load", light.loaded)]
    gateway, through = None, None
    if stage.gateway is not None:
        through = before_one(first)
    elif stage.queue is not None:
        through = alone(first)
    if through is not None:
        through_rps = min(GATEWAY_LOW_LOAD * _slowest_rps(stage, services), GATEWAY_LOW_RPS)
        gateway, busy = _gateway(launch, through, folder, through_rps, low_load_duration_s, on_progress)
        caveats += busy
    return Calibration(
        stage=stage.name,
        machine=machine(),
        device=device_label(first),
        model=stage.model.name,
        made_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        command=command,
        low_load_rate_rps=rate_rps,
        service_times=services[0],
        other_devices={device_label(kind): times for kind, times in zip(others, services[1:], strict=True)},
        host=host_costs(stage, swept[0].records, light.loaded.records),
        gateway=gateway,
        caveats=tuple(caveats),
    )


def _gateway(
    launch: Launch, stage: Stage, folder: Path, rate_rps: float, duration_s: float, on_progress: Progress
) -> tuple[GatewayCosts, list[str]]:
    """The costs of the gateway of `stage` before one replica, or of its jobs API, and the caveats that go with them."""
    of: Door = "gateway" if stage.queue is None else "jobs API"
    what = f"low load through the {of}"
    asked = stage if stage.cache is None else with_overrides(stage, ALL_DIFFERENT)
    light = _low_load(launch, asked, folder / "gateway", rate_rps, duration_s, _capitalised(what), on_progress)
    costs, caveats = gateway_costs(light.loaded.records, light.gateway_busy_s, of), [*_busy(what, light.loaded)]
    costs = costs.model_copy(update={"low_load_rate_rps": rate_rps})
    if stage.cache is None:
        return costs, caveats
    what, asked = "low load of kept answers", with_overrides(stage, ALL_ALIKE)
    kept_s = min(HITS_S, duration_s)
    kept = _low_load(launch, asked, folder / "cache", rate_rps, kept_s, _capitalised(what), on_progress)
    return with_hits(costs, kept.loaded.records, kept.gateway_busy_s), [*caveats, *_busy(what, kept.loaded)]


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slowest_rps(stage: Stage, services: Sequence[tuple[ServiceTimes, ...]]) -> float:
    """What the slowest of the devices serves per second in its largest batches."""
    return stage.batching.max_batch_size / max(times[-1].mean_s for times in services)


# What a stage with two versions of its model has, and a calibration of its devices has not.
_OF_AN_EXPERIMENT = ("split", "feedback", "traffic.users", "traffic.user_popularity", "traffic.user_exponent")


def kinds(stage: Stage) -> list[Stage]:
    """The stage as one replica of each kind sees it, in the order of the fleet; one where all are alike.

    A kind is one of devices: which version of the model runs there does not matter.
    """
    each = (of_replica(stage, number) for number in range(replicas_of(stage)))
    replicas = [kind.model_copy(update={"model": without_version(kind.model)}) for kind in each]
    return list({device_label(replica): replica for replica in replicas}.values())


def alone(kind: Stage) -> Stage:
    """One replica of that kind, and nothing in front of it."""
    nothing: dict[str, object] = dict.fromkeys(("gateway", "cache", "fleet", "scaling", "cost", *_OF_AN_EXPERIMENT))
    return with_overrides(kind, {**nothing, "overload": True})


def before_one(kind: Stage) -> Stage:
    """One replica of that kind behind the gateway; whom it chooses is no choice, so that the policy does not matter."""
    names = ("gateway.policy", "gateway.sticky_load_bound", "fleet", "scaling", "cost", *_OF_AN_EXPERIMENT)
    plain: dict[str, object] = dict.fromkeys(names)
    return with_overrides(kind, {**plain, "overload": True})


def kept_path(stage: Stage, short: bool, on: str = "process") -> Path:
    """Where the calibration of this machine for this stage is kept: what it depends on is in the name's digest."""
    depends: tuple[object, ...] = (machine(), without_version(stage.model), kinds(stage)[0].device, stage.batching)
    depends += (stage.traffic.input_format, short)
    if stage.gateway is not None:
        others = tuple(kind.device for kind in kinds(stage)[1:])
        depends += (others, stage.gateway.engine, stage.gateway.edge.tls_certificate is not None)
        if stage.cache is not None:
            depends += (stage.cache.store, stage.cache.policy)
    if stage.queue is not None:
        depends += ("jobs API", stage.queue.broker, stage.queue.fsync, stage.queue.results_url_env)
    if on != "process":
        depends += (on, stage.machine)  # a container has the size of its machine
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


def _sweep(
    launch: Launch, stage: Stage, folder: Path, rounds: int, real_sweep_s: float, on_progress: Progress
) -> Loaded:
    """Bursts of every size in mixed order, and of twice the largest, so that one batch waits for another."""
    largest, label = stage.batching.max_batch_size, device_label(stage)
    sizes = [*sweep_sizes(largest), 2 * largest]
    base: dict[str, object] = {
        "batching.batch_wait_timeout_s": GATHER_S if largest > 1 else 0.0,
        # Of a queue there is none: jobs wait in the broker.
        **({"admission.max_queue_length": max(64, 2 * largest)} if stage.queue is None else {}),
        "admission.deadline_s": None,
        "slo.latency_s": 60.0,
        "overload": True,
    }
    with launch(with_overrides(stage, base), folder) as launcher:
        guess_s = _probe_service_s(stage, launcher, folder)
        takes_s = {size: burst_s(size, largest, guess_s) for size in sizes}
        if stage.device.kind != "emulated":
            rounds = max(rounds, math.ceil(real_sweep_s / sum(takes_s.values())))
        order = stream(stage.traffic.seed, "sweep order").permutation(np.tile(sizes, rounds))
        arrivals, at_s = [], 0.0
        for size in order.tolist():
            arrivals += [at_s] * size
            at_s += takes_s[size]
        bursts = traced(with_overrides(stage, base), arrivals, at_s + 0.2, folder / "bursts.csv")
        total_s = bursts.traffic.duration_s
        what = f"Batch sweep of {label}"
        return _fire_in_quiet(bursts, launcher, folder, lambda s: on_progress(what, s, total_s)).loaded


def burst_s(size: int, largest: int, guess_s: Callable[[int], float]) -> float:
    """Seconds from one burst of `size` requests to the next: gathered, worked off, and a rest."""
    batches = -(-size // largest)
    return (GATHER_S if size < largest else 0.0) + REST_S + 1.1 * batches * guess_s(min(size, largest))


def _probe_service_s(stage: Stage, launcher: Launcher, folder: Path) -> Callable[[int], float]:
    """About how long a batch of n takes: the profile's word, or a few single requests that also warm the device."""
    if stage.device.kind == "emulated":
        profile = catalogue.profiles()[str(stage.device.profile)]
        return lambda n: profile.service_time_s(n) * stage.device.slowdown
    singles = traced(stage, [0.25 * k for k in range(8)], 2.2, folder / "singles.csv")
    record = fire(singles, launcher.url, folder / "warm-up", device=device_label(stage), pids=launcher.pids).records
    one_s = float((record.batches["finished_s"] - record.batches["started_s"]).to_numpy()[-4:].mean())
    return lambda n: one_s * (1.0 + 0.6 * (n - 1))


def _low_load(
    launch: Launch,
    stage: Stage,
    folder: Path,
    rate_rps: float,
    duration_s: float,
    what: str,
    on_progress: Progress,
) -> _Metered:
    traffic = {
        "traffic.rate": {"shape": "constant", "rate_rps": rate_rps},
        "traffic.arrivals": "poisson",
        "traffic.loop": "open",
        "traffic.duration_s": duration_s,
        "traffic.seed": stage.traffic.seed + 7919,  # not the schedule of any run that is judged
        "traffic.coefficient_of_variation": None,
    }
    light = with_overrides(stage, traffic)
    with launch(light, folder) as launcher:
        time.sleep(0.5)
        idle_share = _gateway_idle_share(launcher)
        return _fire_in_quiet(light, launcher, folder, lambda s: on_progress(what, s, duration_s), idle_share)


@dataclass(frozen=True)
class _Metered:
    """A run, and the processor seconds that the gateway took for each of its requests; 0 without one."""

    loaded: Loaded
    gateway_busy_s: float


def _fire_in_quiet(
    stage: Stage, launcher: Launcher, folder: Path, on_second: Callable[[float], None], idle_share: float = 0.0
) -> _Metered:
    """Fires the stage's traffic, and again while the host is busy with something else; gives the quietest run.

    `idle_share` is what the gateway takes of a core when it has nothing to do: it is no request's.
    """
    runs: list[_Metered] = []
    for attempt, foreign_cpu_max in enumerate(FOREIGN_CPU_MAX_OF_ATTEMPT):
        if stage.cache is not None:
            launcher.empty_cache()
        began_s, before_s = time.monotonic(), _gateway_cpu_s(launcher)
        loaded = fire(
            stage,
            launcher.url,
            folder / f"attempt-{attempt + 1}",
            device=device_label(stage),
            pids=launcher.pids,
            on_second=on_second,
        )
        took_s = _gateway_cpu_s(launcher) - before_s - idle_share * (time.monotonic() - began_s)
        runs.append(_Metered(loaded, max(0.0, took_s) / max(1, loaded.records.requests.height)))
        if loaded.check.foreign_cpu_share <= foreign_cpu_max:
            return runs[-1]
    return min(runs, key=lambda run: run.loaded.check.foreign_cpu_share)


def _gateway_idle_share(launcher: Launcher) -> float:
    """The share of a core that the gateway takes for its probes and looks at files; 0 without one."""
    if launcher.gateway is None:
        return 0.0
    began_s, before_s = time.monotonic(), _gateway_cpu_s(launcher)
    time.sleep(IDLE_S)
    return (_gateway_cpu_s(launcher) - before_s) / (time.monotonic() - began_s)


def _gateway_cpu_s(launcher: Launcher) -> float:
    """Processor seconds of the gateway and its children so far; 0 where there is none to be seen from here."""
    if launcher.gateway is None:
        return 0.0
    with contextlib.suppress(psutil.Error):
        gateway = psutil.Process(launcher.gateway.pid)
        return sum(_cpu_s(process) for process in (gateway, *gateway.children(recursive=True)))
    return 0.0


def _cpu_s(process: psutil.Process) -> float:
    """Processor seconds of a process: of its main thread to the nanosecond where Linux tells, else of all, in ticks.

    A gateway's event loop is its main thread.
    """
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        times = process.cpu_times()
        return float(times.user + times.system)


def _busy(what: str, loaded: Loaded) -> Iterator[str]:
    share = loaded.check.foreign_cpu_share
    if share > FOREIGN_CPU_MAX:
        yield (
            f"Calibrated on a busy machine: other processes took {share:.0%} of its cores during the {what}. "
            "Predictions are off by what that cost; calibrate again on a quiet one."
        )


def traced(stage: Stage, arrivals_s: list[float], duration_s: float, path: Path) -> Stage:
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


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
