"""A whole run of a stage on the virtual clock: its traffic in, the record of every request out.

    Stage ─▶ schedule ─▶ host: send ─▶ replica ─▶ host: reply ─▶ Records          open loop
    Stage ─▶ users: think ─▶ send ─▶ replica ─▶ reply ─▶ think …  ─▶ Records      closed loop

No twin: the running stack is run by reference_apps/up.py and loaded by loadtests. Not modelled: start-up, a load
generator that lags, the network between machines, and anything that simulator/host.py and device.py leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from simpy import Environment, Event

from simulator import ahead
from simulator.clock import At
from simulator.device import Device, open_device, service_quantiles
from simulator.draws import Floats
from simulator.host import Host
from simulator.outcomes import ReplicaLog, to_records
from simulator.replica import Replica
from stages import traffic
from stages.calibration import Calibration, HostCosts
from stages.records import Records
from stages.spec import Stage, device_label, mean_rate_rps

Serve = Callable[[Stage, Floats, Device, Host], ReplicaLog]


def simulate(
    stage: Stage,
    schedule: traffic.Schedule | None = None,
    *,
    calibration: Calibration | None = None,
    seed: int | None = None,
    device: Device | None = None,
    serve: Serve = ahead.serve,
) -> Records:
    """The predicted record of a run of the stage, drained: every request of the schedule has its outcome.

    `schedule` stands in for the stage's own open loop, `seed` for the traffic's, `device` for the one that stage and
    calibration describe. `serve` says how an open loop is worked through: both ways give the same record.
    Without a calibration the host takes no time. Raises ValueError when nothing says how long a batch takes, and
    for a closed loop with a schedule.
    """
    seed = stage.traffic.seed if seed is None else seed
    device = device or open_device(stage, calibration, seed=seed)
    host = Host(calibration.host if calibration else HostCosts(), seed)
    if stage.traffic.loop == "closed":
        if schedule is not None:
            raise ValueError("a closed loop has no schedule: its next request waits for a reply. Leave it out.")
        users = Users(stage, device, host, seed)
        scheduled_s, items, arrived_s, log = users.run()
        window_s = stage.traffic.duration_s
    else:
        schedule = schedule or traffic.schedule(stage.traffic, seed=seed)
        scheduled_s, items, window_s = schedule.arrivals_s, schedule.items, schedule.duration_s
        arrived_s = host.arrivals_s(scheduled_s)
        log = serve(stage, arrived_s, device, host)
    timeout_s = stage.traffic.timeout_s
    return to_records(
        scheduled_s, items, arrived_s, log, host, timeout_s=timeout_s, window_s=window_s, device_label=device.label
    )


def serve_by_event(stage: Stage, arrivals_s: Floats, device: Device, host: Host) -> ReplicaLog:
    """What `ahead.serve` gives, an event a request: the way for replicas whose arrivals are not known up front."""
    env = Environment()
    replica = Replica(stage, env, device, host)
    env.process(arrivals(env, replica, arrivals_s))
    env.run()
    return replica.log()


def arrivals(env: Environment, replica: Replica, arrivals_s: Floats) -> Generator[Event, None, None]:
    """The process that brings request i to a replica at `arrivals_s[i]` (ascending, seconds)."""
    for number, arrived_s in enumerate(arrivals_s.tolist()):
        if arrived_s > env.now:
            yield At(env, arrived_s)
        replica.submit(number)


class Users:
    """A closed loop: each user thinks, sends, waits for the reply or gives up, and thinks again while traffic lasts."""

    def __init__(self, stage: Stage, device: Device, host: Host, seed: int) -> None:
        self._traffic, self._host, self._seed = stage.traffic, host, seed
        self._env = Environment()
        self._replica = Replica(stage, self._env, device, host, self._settled)
        self._scheduled_s: list[float] = []
        self._items: list[int] = []
        self._arrived_s: list[float] = []
        self._waiting: dict[int, Event] = {}  # request → the user who waits for it

    def run(self) -> tuple[Floats, np.ndarray, Floats, ReplicaLog]:
        """Scheduled times, items and arrivals in the order of sending, and what the replica did with them."""
        for user in range(self._traffic.users):
            self._env.process(self._user(user))
        self._env.run()
        items = np.array(self._items, dtype=np.int64)
        return np.array(self._scheduled_s), items, np.array(self._arrived_s), self._replica.log()

    def _user(self, user: int) -> Generator[Event, None, None]:
        env = self._env
        for think_s, item in traffic.user_draws(self._traffic, user, seed=self._seed):
            send_s = env.now + think_s
            if send_s >= self._traffic.duration_s:
                return
            yield At(env, send_s)
            yield self._sent(item)

    def _sent(self, item: int) -> Event:
        """Sends a request now; the event is the user's return to thinking."""
        env, number = self._env, len(self._scheduled_s)
        arrived_s = self._host.arrival_s(number, env.now)
        self._scheduled_s.append(env.now)
        self._items.append(item)
        self._arrived_s.append(arrived_s)
        self._waiting[number] = back = env.event()
        self._at(arrived_s, lambda: self._replica.submit(number))
        self._at(env.now + self._traffic.timeout_s, lambda: self._back(number))
        return back

    def _settled(self, number: int, replied_s: float) -> None:
        self._at(replied_s, lambda: self._back(number))

    def _back(self, number: int) -> None:
        """The reply, or the end of the user's patience: the first of the two counts."""
        back = self._waiting.pop(number, None)
        if back is not None:
            back.succeed()

    def _at(self, time_s: float, call: Callable[[], object]) -> None:
        At(self._env, time_s).add_callback(lambda _: call())


def capacity_rps(stage: Stage, calibration: Calibration | None = None) -> float:
    """The most requests per second that one replica serves: the best of n / (service time + gap) over batch sizes n.

    Raises ValueError when nothing says how long a batch takes.
    """
    gap_s = calibration.host.between_batches_s if calibration else 0.0
    quantiles = service_quantiles(stage, calibration)
    return max(size / (times.mean_s + gap_s) for size, times in quantiles.items())


def beyond_calibration(stage: Stage, calibration: Calibration) -> list[str]:
    """Where a prediction for the stage leaves what the calibration saw: a sentence each, none when it stays within."""
    notes = []
    label, model = device_label(stage), f"{stage.model.name}"
    if stage.name != calibration.stage:
        notes.append(f"Calibrated on the stage {calibration.stage}: the host's costs of {stage.name} may differ.")
    if label != calibration.device:
        notes.append(f"Calibrated on the device {calibration.device}, not on {label}.")
    if model not in calibration.model:
        notes.append(f"Calibrated with the model {calibration.model}, not with {model}.")
    swept = {times.batch_size for times in calibration.service_times}
    between = sorted(set(range(1, stage.batching.max_batch_size + 1)) - swept)
    if between and swept and label == calibration.device:
        sizes = ", ".join(map(str, between))
        notes.append(f"Batches of {sizes} were not in the sweep: their times are interpolated.")
    rate_rps, low_rps = mean_rate_rps(stage.traffic), calibration.low_load_rate_rps
    if rate_rps is not None and rate_rps < low_rps:
        notes.append(
            f"{rate_rps:.1f} requests per second are below the {low_rps:.1f} at which host costs were measured: "
            "idle cores wake more slowly."
        )
    return notes
