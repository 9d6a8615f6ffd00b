"""Several queued stages whose workers share one GPU in turns: what each of their clients sees.

    schedule A ─▶ Jobs A ◀── workers A ─┐
                                        ├─▶ Gpu: 8 GiB, for a model of 3 and one of 6
    schedule B ─▶ Jobs B ◀── workers B ─┘

No twin: the running stacks name the same folder (reference_apps/gpu_memory.py), as all of a machine do that `rung up`
starts. Not modelled: autoscaling on a GPU that is shared, the loading of a model, and batches of two models that slow
each other down while both are on the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from simpy import Environment

from simulator.device import open_device
from simulator.outcomes import fleet_records
from simulator.queued import Jobs
from simulator.run import arrivals, submitting
from simulator.sharing import Gpu
from stages import traffic
from stages.calibration import Calibration, HostCosts
from stages.records import Records
from stages.spec import Stage, of_replica


def on_one_gpu(
    stages: Sequence[Stage],
    schedules: Sequence[traffic.Schedule | None] = (),
    calibration: Calibration | None = None,
) -> list[Records]:
    """The record of each stage, all of them run at once beside each other on a GPU of `device.memory_gib`.

    `schedules` stand in for the stages' own open loops. Without a calibration the host takes no time. Raises ValueError
    for stages that do not say what they take, that differ in their GPU, that have one name, or that nothing tells the
    device times of.
    """
    cards = {stage.device.memory_gib for stage in stages}
    if len(cards) != 1 or None in cards or any(stage.queue is None or stage.scaling for stage in stages):
        told = ", ".join("none" if card is None else f"{card:g}" for card in cards)
        raise ValueError(
            f"device.memory_gib: must be the same in all stages, which have a [queue] and no [scaling], got {told}. "
            "They would not share a GPU. Give each the GPU's memory in GiB."
        )
    if len({stage.name for stage in stages}) != len(stages):
        raise ValueError(
            f"name: must differ among stages on one GPU, got {stages[0].name} twice. Nobody could tell their workers "
            "apart. Give one of them another name."
        )
    env = Environment()
    gpu = Gpu(env, float(cards.pop() or 0.0))
    given = schedules or [None] * len(stages)
    costs = (calibration.host, calibration.gateway) if calibration else (HostCosts(), None)
    runs = []
    for stage, schedule in zip(stages, given, strict=True):
        seed, schedule = stage.traffic.seed, schedule or traffic.schedule(stage.traffic)
        jobs = Jobs(stage, env, *costs, seed, gpu=gpu)
        for number in range(stage.fleet.replicas):
            jobs.join(number, open_device(of_replica(stage, number), calibration, seed=seed, number=number))
        submit = submitting(jobs, schedule, stage.traffic.timeout_s)
        env.process(arrivals(env, submit, jobs.from_clients.arrivals_s(schedule.arrivals_s)))
        runs.append((stage, schedule, jobs))
    env.run()
    return [
        fleet_records(
            schedule.arrivals_s,
            schedule.items,
            jobs.log(),
            jobs.lives(),
            timeout_s=stage.traffic.timeout_s,
            window_s=schedule.duration_s,
        )
        for stage, schedule, jobs in runs
    ]


def turns(records: Sequence[Records]) -> list[int]:
    """How often each of the stages began to compute after another of them had, or as the first of all."""
    started = sorted((at_s, number) for number, each in enumerate(records) for at_s in each.batches["started_s"])
    found = [0] * len(records)
    for (_, before), (_, now) in pairwise([(0.0, -1), *started]):
        found[now] += before != now
    return found
