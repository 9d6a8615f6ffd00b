"""A whole run of a stage without SimPy where the stage allows it: the record of simulator/run.py, bit for bit.

    one replica, no gateway ───────────────────────────────────────────▶ simulator/ahead.py (by run.py)
    a gateway that takes no time, choices that are known beforehand ───▶ each replica by itself: ahead.py, and arrays
    any other gateway before a fleet that stays as it is ──────────────▶ simulator/fast_fleet.py: a heap of plain tuples
    the same, under an autoscaler ─────────────────────────────────────▶ simulator/fast_scaled.py
    all else (queues, caches, closed loops) ───────────────────────────▶ simulator/run.py

Where somebody's patience ends, or a gateway's connections are used up, run.py does it over again. No twin, and nothing
that is not modelled there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from simulator import ahead, fast_fleet, fast_scaled, run
from simulator.draws import Floats
from simulator.fast_fleet import Served
from simulator.host import Hop, Host, less
from simulator.outcomes import GatewayLog, Life, fleet_records, places
from stages import traffic
from stages.calibration import Calibration, GatewayCosts, HostCosts
from stages.demand import Traffic
from stages.policies.balancing import known_choices
from stages.records import Records, looks_frame
from stages.spec import Stage, mean_rate_rps

_KEPT_REQUESTS = 2_000_000  # longer schedules are made anew each time, and not kept in memory


def simulate(
    stage: Stage,
    schedule: traffic.Schedule | None = None,
    *,
    calibration: Calibration | None = None,
    seed: int | None = None,
) -> Records:
    """What `run.simulate` gives for these arguments, and raises."""
    seed = stage.traffic.seed if seed is None else seed
    if stage.traffic.loop == "open" and schedule is None:
        schedule = schedule_of(stage.traffic, seed)
    if schedule is not None and fits(stage):
        done = _at_once(stage, schedule, calibration, seed)
        if done is not None:
            return done
    return run.simulate(stage, schedule, calibration=calibration, seed=seed)


def fits(stage: Stage) -> bool:
    """Whether the stage is one for this module: an open loop, and a gateway with no cache and no split before a fleet.

    And a model that never fails: what fails is run again, one by one.
    """
    plain = stage.gateway is not None and stage.queue is None and stage.cache is None and stage.split is None
    return plain and stage.traffic.loop == "open" and not stage.model.known.crash_share


def schedule_of(offered: Traffic, seed: int) -> traffic.Schedule:
    """The schedule of an open loop. Points of a sweep that differ in other tables share it, and so it is kept."""
    rate_rps = mean_rate_rps(offered) or 0.0
    if rate_rps * offered.duration_s > _KEPT_REQUESTS:
        return traffic.schedule(offered, seed=seed)
    return _kept_schedule(offered, seed)


@lru_cache(maxsize=12)
def _kept_schedule(offered: Traffic, seed: int) -> traffic.Schedule:
    return traffic.schedule(offered, seed=seed)


@dataclass(frozen=True)
class Door:
    """The gateway's hops for one schedule: what is known before anybody is served. Times in seconds."""

    at_gateway_s: Floats  # when each request is there, ascending
    to_client_s: Floats  # how long each answer takes from there
    visit_s: float  # of the event loop, in each direction
    host: HostCosts  # of a replica, as the gateway sees it


def _door(schedule: traffic.Schedule, calibration: Calibration | None, seed: int) -> Door:
    """As simulator/gateway.py has it."""
    host = calibration.host if calibration else HostCosts()
    costs = calibration.gateway if calibration else None
    costs = costs or GatewayCosts(forward_quantiles_s=host.send_quantiles_s, back_quantiles_s=host.reply_quantiles_s)
    visit_s = costs.busy_s / 2
    back = {"send_quantiles_s": costs.forward_quantiles_s, "reply_quantiles_s": less(costs.back_quantiles_s, visit_s)}
    return Door(
        at_gateway_s=Hop(less(costs.send_quantiles_s, visit_s), seed, "gateway send").arrivals_s(schedule.arrivals_s),
        to_client_s=Hop(costs.reply_quantiles_s, seed, "gateway reply").first_s(schedule.arrivals_s.size),
        visit_s=visit_s,
        host=host.model_copy(update=back),
    )


def _at_once(stage: Stage, schedule: traffic.Schedule, calibration: Calibration | None, seed: int) -> Records | None:
    """The record, or None where something happens that only run.py knows."""
    door = _door(schedule, calibration, seed)
    fixed = stage.scaling is None
    served = _apart(stage, schedule, door, calibration, seed) if fixed and not door.visit_s else None
    if served is None:
        devices = run.open_devices(stage, calibration, seed)  # new ones, whose draws begin anew
        known = (stage, schedule, door.at_gateway_s, door.visit_s, door.host, seed, devices, door.to_client_s)
        if fixed:
            served = fast_fleet.serve(*known)
        else:
            served = fast_scaled.serve(*known, partial(run.device_of, stage, calibration, seed))
    if served is None or not _patient(stage, schedule.arrivals_s, served):
        return None
    timeout_s, window_s = stage.traffic.timeout_s, schedule.duration_s
    records = fleet_records(
        schedule.arrivals_s, schedule.items, served.log, served.lives, timeout_s=timeout_s, window_s=window_s
    )
    return records if fixed else replace(records, scaling=looks_frame(served.looks))


def _patient(stage: Stage, scheduled_s: Floats, served: Served) -> bool:
    """Whether everybody had an answer or a refusal before client, gateway or replica stopped waiting for it."""
    config, deadline_s, log = stage.gateway, stage.admission.deadline_s, served.log
    assert config is not None
    leaves_s = np.maximum(log.in_s, scheduled_s + stage.traffic.timeout_s)
    if not (log.out_s < np.minimum(log.in_s + config.upstream_timeout_s, leaves_s)).all():
        return False
    for life in served.lives:
        own, started_s = life.log.served, np.repeat(life.log.started_s, life.log.sizes)
        left_s = np.full(own.size, config.upstream_timeout_s)
        if deadline_s is not None:
            left_s = np.maximum(0.001, np.minimum(left_s, deadline_s - (served.sent_s - log.in_s)[own]))
        if (started_s - log.arrived_s[own] > left_s).any():
            return False
    return True


def _apart(
    stage: Stage, schedule: traffic.Schedule, door: Door, calibration: Calibration | None, seed: int
) -> Served | None:
    """Each replica by itself, for a gateway that takes no time and knows beforehand who gets which request.

    None where it is not like that, where a refusal is tried again, and where connections are used up.
    """
    config = stage.gateway
    assert config is not None
    came_s, replicas = door.at_gateway_s, stage.fleet.replicas
    choices = known_choices(config.policy, schedule.items, replicas, seed, config.load_bound)
    if choices is None:
        return None
    without = stage.model_copy(update={"admission": stage.admission.model_copy(update={"deadline_s": None})})
    arrived_s, out_s = np.empty_like(came_s), np.empty_like(came_s)
    reasons = [""] * came_s.size
    lives = []
    for number, device in enumerate(run.open_devices(stage, calibration, seed)):
        mine, host = np.flatnonzero(choices == number), Host(door.host, seed, number)
        arrived_s[mine] = there_s = host.arrivals_s(came_s[mine])
        log = ahead.serve(without, there_s, device, host)
        if log.shed.size and config.retries_max and not config.by_nginx and replicas > 1:
            return None
        batch, place = places(log.sizes)
        served, shed = mine[log.served], mine[log.shed]
        out_s[served] = host.answers_s(log.finished_s[batch], batch, place)
        out_s[shed] = host.refusals_s(there_s[log.shed], shed)
        if most_inside(came_s[mine], out_s[mine]) >= config.connections_per_replica:
            return None
        for refused in shed.tolist():
            reasons[refused] = "queue_full"
        lives.append(Life(number, device.label, replace(log, served=served, shed=shed)))
    if most_inside(came_s, out_s) > config.max_in_flight:
        return None
    count = came_s.size
    tries, none = np.ones(count, dtype=np.int64), [""] * count
    replied_s = out_s + door.to_client_s
    seen = GatewayLog(came_s, arrived_s, out_s, replied_s, reasons, choices, tries, caches=none, arms=none)
    return Served(seen, lives, came_s)


def most_inside(came_s: Floats, went_s: Floats) -> int:
    """No fewer than there ever are inside at once; who goes just as another comes counts as still there.

    `came_s` is ascending, `went_s` has the same requests in the same order.
    """
    gone = np.searchsorted(np.sort(went_s), came_s, side="left")
    return int((np.arange(1, came_s.size + 1) - gone).max(initial=0))
