"""A run of a stage's open loop through its gateway in which something fails: who noticed, who suffered.

    schedule ─▶ Gateway ─▶ replicas            keep_probing, strike ─▶ the same replicas
                   └── looked at all the time ──▶ which were in rotation, and when

No twin: loadtests/drill.py runs the real one. When a probe is due relative to the schedule is nothing that can be known
beforehand: it is the caller's to say. Not modelled: an autoscaler that helps, and what simulator/drills.py leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count

from simpy import Environment, Event

from simulator.clock import At
from simulator.device import open_device
from simulator.drills import Failure, rolling, strike
from simulator.gateway import Gateway
from simulator.outcomes import fleet_records
from simulator.probes import keep_probing
from simulator.run import CrashPosition, arrivals, submitting
from stages.arms import kinds_of, replicas_of
from stages.calibration import Calibration, HostCosts
from stages.policies.crashing import item_position
from stages.records import Records
from stages.spec import Stage, of_replica
from stages.traffic import Schedule

LOOK_S = 0.01  # from one look at the rotation to the next
Look = tuple[float, frozenset[int]]  # when, and the replicas that were in rotation


@dataclass(frozen=True)
class Drilled:
    """The record of the run, and who was in rotation at each look. `done_s` is when a rolling restart was done."""

    records: Records
    looks: list[Look]
    done_s: float | None = None


@dataclass(frozen=True)
class Restart:
    """Every replica is replaced from `at_s` on; a new one is there `start_s` after it was started."""

    at_s: float
    start_s: float


def drilled(
    stage: Stage,
    schedule: Schedule,
    failure: Failure | Restart,
    calibration: Calibration | None,
    *,
    probe_phase: float = 0.5,
    seed: int | None = None,
    crash_position: CrashPosition = item_position,
) -> Drilled:
    """The predicted run in which `failure` happens. `probe_phase`, 0 to 1, is when within its interval a probe is due;
    `crash_position` says where an item stands among those that a version crashes on.

    Raises ValueError, in words, where nothing says how long a batch takes.
    """
    assert stage.gateway is not None
    seed = stage.traffic.seed if seed is None else seed
    env, config = Environment(), stage.gateway
    costs = (calibration.host, calibration.gateway) if calibration else (HostCosts(), None)
    gateway = Gateway(stage, env, *costs, seed)
    gateway.crash_position = crash_position
    total, window_s = schedule.arrivals_s.size, schedule.duration_s
    numbers = count(replicas_of(stage))

    def over() -> bool:
        return bool(env.now >= window_s and gateway.arrived == total and not gateway.in_flight)

    def join(number: int, like: int, started_s: float, first_probe_s: float) -> None:
        device = open_device(of_replica(stage, like), calibration, seed=seed, number=number)
        gateway.join(number, device, started_s)
        env.process(keep_probing(env, gateway, config, number, first_probe_s, over))

    def add(like: int, started_s: float) -> int:
        kinds = kinds_of(stage)
        number = next(each for each in numbers if each % kinds == like % kinds)
        join(number, like, started_s, env.now + config.probe_interval_s)
        return number

    def again(started_s: float) -> None:
        assert isinstance(failure, Failure)
        join(failure.replica, failure.replica, started_s, env.now + config.probe_interval_s)

    for number in range(replicas_of(stage)):
        join(number, number, 0.0, probe_phase * config.probe_interval_s)
    restarting = None
    if isinstance(failure, Restart):
        restarting = env.process(_timed(env, rolling(env, gateway, failure.at_s, failure.start_s, add)))
    else:
        env.process(strike(env, gateway, failure, again))
    looks: list[Look] = []
    env.process(_watch(env, gateway, looks, over))
    arrived_s = gateway.from_clients.arrivals_s(schedule.arrivals_s)
    env.process(arrivals(env, submitting(gateway, schedule, stage.traffic.timeout_s), arrived_s))
    env.run()
    times = {"timeout_s": stage.traffic.timeout_s, "window_s": window_s}
    records = fleet_records(schedule.arrivals_s, schedule.items, gateway.log(), gateway.lives(), **times)
    return Drilled(records, looks, restarting.value if restarting is not None else None)


def _timed(env: Environment, work: Generator[Event, None, object]) -> Generator[Event, None, float]:
    """Does the work, and gives the time at which it was done."""
    yield from work
    return float(env.now)


def _watch(
    env: Environment, gateway: Gateway, looks: list[Look], over: Callable[[], bool]
) -> Generator[Event, None, None]:
    """Looks at the rotation until all is over."""
    while not over():
        looks.append((env.now, frozenset(gateway.rotation.in_rotation())))
        yield At(env, env.now + LOOK_S)
