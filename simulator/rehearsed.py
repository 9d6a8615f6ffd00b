"""A run of a stage's open loop in which a challenger ramps up, and what becomes of it: when is it out, who noticed?

    schedule ─▶ Gateway with its Splitter ─▶ both arms' replicas ─▶ ends, labels ─▶ guardrails ─▶ Stopped, records

No twin: loadtests/rehearse.py runs the real one. On which inputs a version crashes or is wrong is nobody's choice: the
caller says what is known of the inputs, or gives each run dice of its own, and has a range.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from simpy import Environment, Event

from simulator.gateway import Gateway
from simulator.outcomes import fleet_records
from simulator.run import arrivals, open_devices, submitting
from simulator.splitter import Right, Stopped
from stages.calibration import Calibration, HostCosts
from stages.policies.crashing import position
from stages.records import Records
from stages.spec import Stage
from stages.traffic import Schedule

_LOOK_S = 1.0
Position = Callable[[int | str], float]


@dataclass(frozen=True)
class Rehearsed:
    """The record of the run; `stopped` is None where the challenger was not stopped."""

    records: Records
    stopped: Stopped | None


def rehearsed(
    stage: Stage,
    schedule: Schedule,
    calibration: Calibration | None = None,
    *,
    seed: int | None = None,
    crash_position: Position | None = None,
    right: Right | None = None,
) -> Rehearsed:
    """The predicted run, to its end. `seed` gives the dice of service times, hops and labels, and of the inputs that a
    version crashes on and is right on, unless `crash_position` and `right` know them.

    Raises ValueError, in words, where nothing says how long a batch takes.
    """
    env, gateway = _begun(stage, schedule, calibration, seed, crash_position, right)
    env.run()
    times = {"timeout_s": stage.traffic.timeout_s, "window_s": schedule.duration_s}
    records = fleet_records(schedule.arrivals_s, schedule.items, gateway.log(), gateway.lives(), **times)
    assert gateway.splitter is not None
    return Rehearsed(records, gateway.splitter.stopped)


def stop_of(
    stage: Stage,
    schedule: Schedule,
    calibration: Calibration | None = None,
    *,
    seed: int | None = None,
    crash_position: Position | None = None,
    right: Right | None = None,
) -> Stopped | None:
    """The same, only until the challenger is stopped; None where it is not."""
    env, gateway = _begun(stage, schedule, calibration, seed, crash_position, right)
    assert gateway.splitter is not None
    drained = env.process(_drained(env, gateway, schedule.duration_s))
    env.run(gateway.splitter.stopping | drained)
    return gateway.splitter.stopped


def _begun(
    stage: Stage,
    schedule: Schedule,
    calibration: Calibration | None,
    seed: int | None,
    crashes_at: Position | None,
    right: Right | None,
) -> tuple[Environment, Gateway]:
    """A gateway with its replicas to which the schedule's requests are about to come."""
    seed = stage.traffic.seed if seed is None else seed
    env = Environment()
    costs = (calibration.host, calibration.gateway) if calibration else (HostCosts(), None)
    gateway = Gateway(stage, env, *costs, seed)
    gateway.crash_position = crashes_at or (lambda item: position(f"{seed} {item}".encode()))
    if right is not None:
        assert gateway.splitter is not None
        gateway.splitter.right = right
    for number, device in enumerate(open_devices(stage, calibration, seed)):
        gateway.join(number, device)
    arrived_s = gateway.from_clients.arrivals_s(schedule.arrivals_s)
    env.process(arrivals(env, submitting(gateway, schedule, stage.traffic.timeout_s), arrived_s))
    return env, gateway


def _drained(env: Environment, gateway: Gateway, window_s: float) -> Generator[Event, None, None]:
    """Until the schedule is over, and everybody has been answered."""
    yield env.timeout(window_s)
    while gateway.in_flight:
        yield env.timeout(_LOOK_S)
