"""A whole run of a stage on the virtual clock: its traffic in, the record of every request out.

    Stage ─▶ schedule ─▶ host: send ─▶ replica ─▶ host: reply ─▶ Records            open loop
    Stage ─▶ users: think ─▶ send ─▶ replica ─▶ reply ─▶ think …  ─▶ Records        closed loop
    either ─▶ send ─▶ gateway ─▶ replicas ─▶ gateway ─▶ reply ─▶ …                  a stage with a gateway
    either ─▶ send ─▶ jobs API ─▶ broker ◀─ workers ─▶ jobs API ─▶ reply ─▶ …       a stage with a queue

No twin: the running stack is run by reference_apps/up.py and loaded by loadtests. Not modelled: start-up, a load
generator that lags, the network between machines, and anything that simulator/host.py and device.py leave out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from math import inf

import numpy as np
from simpy import Environment, Event

from simulator import ahead
from simulator.autoscaler import Autoscaler, ScaledFleet
from simulator.clock import At
from simulator.device import Device, open_device, service_quantiles
from simulator.draws import Floats
from simulator.drills import Slowdown, slow_down
from simulator.gateway import Gateway
from simulator.host import Host
from simulator.outcomes import ReplicaLog, fleet_records, to_records
from simulator.queued import Jobs, QueueFleet
from simulator.replica import Replica
from simulator.users import Users
from stages import traffic
from stages.arms import replicas_of
from stages.calibration import Calibration, HostCosts
from stages.policies.crashing import item_position
from stages.records import Records, looks_frame
from stages.spec import Stage, device_label, mean_rate_rps, of_replica

Serve = Callable[[Stage, Floats, Device, Host], ReplicaLog]
CrashPosition = Callable[[int | str], float]


def simulate(
    stage: Stage,
    schedule: traffic.Schedule | None = None,
    *,
    calibration: Calibration | None = None,
    seed: int | None = None,
    devices: Sequence[Device] | None = None,
    serve: Serve = ahead.serve,
    slowdowns: Sequence[Slowdown] = (),
    crash_position: CrashPosition = item_position,
) -> Records:
    """The predicted record of a run of the stage, drained: every request of the schedule has its outcome.

    `schedule` stands in for the stage's own open loop, `seed` for the traffic's, `devices` (one a replica) for those
    that stage and calibration describe. `serve` says how the open loop of a replica without a gateway is worked
    through: both ways give the same record. `slowdowns` slow devices during the run. `crash_position` says where an
    item stands in [0, 1): a version that crashes on a share of all inputs fails on those below it.
    Without a calibration the host takes no time. Raises ValueError when nothing says how long a batch takes, for a
    closed loop with a schedule, and for several replicas without a gateway or a queue.
    """
    seed = stage.traffic.seed if seed is None else seed
    if stage.traffic.loop == "closed" and schedule is not None:
        raise ValueError("a closed loop has no schedule: its next request waits for a reply. Leave it out.")
    if stage.traffic.loop == "open":
        schedule = schedule or traffic.schedule(stage.traffic, seed=seed)
    devices = devices or open_devices(stage, calibration, seed)
    if stage.gateway is not None or stage.queue is not None:
        return _through_door(stage, schedule, calibration, seed, devices, slowdowns, crash_position)
    if len(devices) != 1:
        raise ValueError(f"fleet.replicas: must be 1 without a [gateway], got {len(devices)}. Add one, or lower it.")
    if schedule is not None and (slowdowns or stage.model.known.crash_share):
        asked = schedule.items.tolist()
        of_request = partial(_of_request, crash_position, asked)
        serve = partial(serve_by_event, slowdowns=slowdowns, crash_position=of_request)
    host = Host(calibration.host if calibration else HostCosts(), seed)
    if schedule is None:
        scheduled_s, items, arrived_s, log = _closed_loop(stage, devices[0], host, seed, slowdowns, crash_position)
    else:
        scheduled_s, items, arrived_s = schedule.arrivals_s, schedule.items, host.arrivals_s(schedule.arrivals_s)
        log = serve(stage, arrived_s, devices[0], host)
    return to_records(
        *(scheduled_s, items, arrived_s, log, host),
        timeout_s=stage.traffic.timeout_s,
        window_s=_window_s(stage, schedule),
        device_label=devices[0].label,
    )


def open_devices(stage: Stage, calibration: Calibration | None, seed: int) -> list[Device]:
    """The device of each replica of the fleet. Raises ValueError when nothing says how long a batch takes."""
    return [device_of(stage, calibration, seed, number) for number in range(replicas_of(stage))]


def device_of(stage: Stage, calibration: Calibration | None, seed: int, number: int) -> Device:
    """The device of replica `number`, whether it is there from the start or not."""
    return open_device(of_replica(stage, number), calibration, seed=seed, number=number)


def serve_by_event(
    stage: Stage,
    arrivals_s: Floats,
    device: Device,
    host: Host,
    *,
    slowdowns: Sequence[Slowdown] = (),
    crash_position: Callable[[int], float] | None = None,
) -> ReplicaLog:
    """What `ahead.serve` gives, an event a request: the way for replicas whose arrivals are not known up front."""
    env = Environment()
    replica = Replica(stage, env, device, host, None, crash_position)
    slow_down(env, {0: device}, slowdowns)
    env.process(arrivals(env, replica.submit, arrivals_s))
    env.run()
    return replica.log()


def _of_request(position: CrashPosition, items: Sequence[int], request: int) -> float:
    """Where the input of a request stands, given what each request is for."""
    return position(items[request])


def arrivals(env: Environment, submit: Callable[[int], object], arrivals_s: Floats) -> Generator[Event, None, None]:
    """The process that calls `submit` with i at `arrivals_s[i]` (ascending, seconds)."""
    for number, arrived_s in enumerate(arrivals_s.tolist()):
        if arrived_s > env.now:
            yield At(env, arrived_s)
        submit(number)


def _through_door(
    stage: Stage,
    schedule: traffic.Schedule | None,
    calibration: Calibration | None,
    seed: int,
    devices: Sequence[Device],
    slowdowns: Sequence[Slowdown],
    crash_position: CrashPosition,
) -> Records:
    """The record of a run through the gateway of the stage, or through its queue."""
    env = Environment()
    users = Users(stage, env, seed)
    costs = (calibration.host, calibration.gateway) if calibration else (HostCosts(), None)
    settled = users.settled if schedule is None else None
    door: Gateway | Jobs
    fleet: ScaledFleet | QueueFleet | None = None
    if stage.queue is not None:
        door = Jobs(stage, env, *costs, seed, settled)
    else:
        door = Gateway(stage, env, *costs, seed, settled)
        door.crash_position = crash_position
    for number, device in enumerate(devices):
        door.join(number, device)
    slow_down(env, dict(enumerate(devices)), slowdowns)
    window_s = _window_s(stage, schedule)
    autoscaler = None
    if stage.scaling is not None:

        def over() -> bool:
            return bool(env.now >= window_s and not door.in_flight)

        another = partial(device_of, stage, calibration, seed)
        if isinstance(door, Jobs):
            fleet = QueueFleet(env, door, another, len(devices), over)
        else:
            fleet = ScaledFleet(env, door, another, len(devices), over)
        autoscaler = Autoscaler(stage.scaling, env, fleet, len(devices), over)
    if schedule is None:

        def submit(request: int, item: int) -> None:
            if isinstance(door, Gateway):
                door.submit(request, item, users.leaves_s(request), users.senders[request])
            else:
                door.submit(request, item, users.leaves_s(request))

        users.begin(door.from_clients.arrival_s, submit)
        env.run()
        scheduled_s, items = users.scheduled_s, users.items
    else:
        scheduled_s, items = schedule.arrivals_s, schedule.items
        submit_it = submitting(door, schedule, stage.traffic.timeout_s)
        env.process(arrivals(env, submit_it, door.from_clients.arrivals_s(scheduled_s)))
        env.run()
    lives = [*door.lives(), *(fleet.never_served() if fleet else ())]
    timeout_s = stage.traffic.timeout_s
    records = fleet_records(scheduled_s, items, door.log(), lives, timeout_s=timeout_s, window_s=window_s)
    return replace(records, scaling=looks_frame(autoscaler.looks)) if autoscaler else records


def submitting(door: Gateway | Jobs, schedule: traffic.Schedule, timeout_s: float) -> Callable[[int], None]:
    """What has request `number` of the schedule come to the door."""
    keys, leave_s = schedule.items.tolist(), (schedule.arrivals_s + timeout_s).tolist()
    who = None if schedule.users is None else schedule.users.tolist()
    if isinstance(door, Gateway):
        return lambda number: door.submit(number, keys[number], leave_s[number], None if who is None else who[number])
    return lambda number: door.submit(number, keys[number], leave_s[number])


def _closed_loop(
    stage: Stage,
    device: Device,
    host: Host,
    seed: int,
    slowdowns: Sequence[Slowdown],
    crash_position: CrashPosition,
) -> tuple[Floats, np.ndarray, Floats, ReplicaLog]:
    """Scheduled times, items and arrivals in the order of sending, and what the replica did with them."""
    env = Environment()
    users = Users(stage, env, seed)
    of_request = partial(_of_request, crash_position, users.listed)
    replica = Replica(stage, env, device, host, users.settled, of_request)
    slow_down(env, {0: device}, slowdowns)
    users.begin(host.arrival_s, lambda request, _: replica.submit(request))
    env.run()
    return users.scheduled_s, users.items, users.arrived_s, replica.log()


def _window_s(stage: Stage, schedule: traffic.Schedule | None) -> float:
    return stage.traffic.duration_s if schedule is None else schedule.duration_s


def capacity_rps(stage: Stage, calibration: Calibration | None = None) -> float:
    """The most requests per second that the replicas compute together, and no more than the gateway's loop passes on.

    A replica's is the best of n / (service time + gap) over batch sizes n. What a cache answers comes on top; the loop
    of a queue's jobs API counts like a gateway's. With [split] neither arm may be given more than it can do.
    With [scaling] it is that of the replicas that the stage starts with.
    Raises ValueError when nothing says how long a batch takes.
    """
    fleet_rps = _fleet_rps(stage, calibration)
    has_door = stage.gateway is not None or stage.queue is not None
    busy_s = calibration.gateway.busy_s if has_door and calibration and calibration.gateway else 0.0
    return min(fleet_rps, 1 / busy_s) if busy_s else fleet_rps


def _fleet_rps(stage: Stage, calibration: Calibration | None) -> float:
    """What the replicas compute together. With two arms, the rate at which the first of them has all it can do."""
    each = [_replica_rps(of_replica(stage, n), calibration) for n in range(replicas_of(stage))]
    champions_rps, challengers_rps = sum(each[: stage.fleet.replicas]), sum(each[stage.fleet.replicas :])
    split = stage.split
    if split is None or split.mode == "shadow":
        return champions_rps
    least = most = split.challenger_share
    if split.ramp is not None:
        least, most = min(split.ramp.shares), max(split.ramp.shares)
    of_champions = champions_rps / (1.0 - least) if least < 1.0 else inf
    return min(of_champions, challengers_rps / most if most > 0.0 else inf)


def _replica_rps(stage: Stage, calibration: Calibration | None) -> float:
    gap_s = calibration.host.between_batches_s if calibration else 0.0
    quantiles = service_quantiles(stage, calibration)
    return max(size / (times.mean_s + gap_s) for size, times in quantiles.items())


def beyond_calibration(stage: Stage, calibration: Calibration) -> list[str]:
    """Where a prediction for the stage leaves what the calibration saw: a sentence each, none when it stays within."""
    notes = []
    model = f"{stage.model.name}"
    if stage.name != calibration.stage:
        notes.append(f"Calibrated on the stage {calibration.stage}: the host's costs of {stage.name} may differ.")
    for label in dict.fromkeys(device_label(of_replica(stage, n)) for n in range(replicas_of(stage))):
        if label != calibration.device and label not in calibration.other_devices:
            notes.append(f"Calibrated on the device {calibration.device}, not on {label}.")
        swept = {times.batch_size for times in calibration.times_of(label)}
        between = sorted(set(range(1, stage.batching.max_batch_size + 1)) - swept)
        if between and swept:
            sizes = ", ".join(map(str, between))
            notes.append(f"Batches of {sizes} were not in the sweep: their times are interpolated.")
    if model not in calibration.model:
        notes.append(f"Calibrated with the model {calibration.model}, not with {model}.")
    if stage.queue is not None and stage.model.known.crash_share:
        notes.append("The inputs that this version crashes on are left out: the predicted workers never fail.")
    door = "gateway" if stage.gateway is not None else "jobs API" if stage.queue is not None else None
    if door is not None and calibration.gateway is None:
        notes.append(f"Calibrated without a {door}: the time that it takes itself is left out.")
    elif door is not None and calibration.gateway is not None and calibration.gateway.of != door:
        notes.append(f"Calibrated through a {calibration.gateway.of}: the time that a {door} takes may differ.")
    elif stage.cache is not None and calibration.gateway is not None and calibration.gateway.hit_busy_s is None:
        notes.append("Calibrated without a cache: a kept answer is taken to cost the gateway half of a computed one.")
    rate_rps, low_rps = mean_rate_rps(stage.traffic), calibration.low_load_rate_rps
    if rate_rps is not None and rate_rps < low_rps:
        notes.append(
            f"{rate_rps:.1f} requests per second are below the {low_rps:.1f} at which host costs were measured: "
            "idle cores wake more slowly."
        )
    return notes
