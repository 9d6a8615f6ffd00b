"""A backlog that is worked off: when it is done, and for how long machines are paid.

    backlog ─▶ Broker ◀── Workers ◀── machines: cold start, works, is taken away, another one
                                        └─ by a stream of its own, "interruptions", a source a machine
                             Worked ─▶ stages/bill.py: workers, and what stands beside them

Twin: loadtests/night.py, which has the running stack do it. A machine that is taken away ends without notice, as
by kill -9: its jobs wait for the end of their leases. Not modelled: the notice that clouds give, machines that cannot
be had, and the time that putting the backlog takes. Workers that come by an autoscaler are in night_scaled.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from simpy import Environment, Event

from simulator.broker import Broker, NewJob
from simulator.clock import At
from simulator.device import open_device
from simulator.worker import Worker
from stages.bill import Bill, Item, bill_of_work, mean_items
from stages.calibration import Calibration
from stages.night import Night, contracted
from stages.spec import Stage, of_replica
from stages.streams import stream

# Whatever is not done by then never is.
LIMIT_S = 7 * 86_400.0
# So many nights are tried where chance has a hand in it. The next one is between the lowest and the highest of n with
# probability (n - 1) / (n + 1), whatever the distribution: 90 %.
REPLICATIONS = 19


class Machine(NamedTuple):
    """One machine of a night, paid from `ordered_s` until `ended_s`; `ready_s`: its worker was there, if ever."""

    worker: int
    ordered_s: float
    ready_s: float | None
    ended_s: float


@dataclass(frozen=True)
class Worked:
    """One night. `done_s` is infinite for one that is not done within LIMIT_S."""

    done_s: float
    machines: tuple[Machine, ...]  # of each worker one after the other
    stored: int
    dead: int
    interruptions: int
    finished_s: tuple[float, ...] = ()  # of each job that was stored, rising; where it was asked for
    wanted: tuple[tuple[float, int], ...] = ()  # how many workers an autoscaler wanted from when on; where there is one

    @property
    def machine_s(self) -> float:
        """Seconds for which the workers' machines were paid, cold starts and idle ones included."""
        return sum(machine.ended_s - machine.ordered_s for machine in self.machines)

    @property
    def over_s(self) -> float:
        """When the last machine was given back, and nothing was paid any more."""
        return max((machine.ended_s for machine in self.machines), default=0.0)


@dataclass(frozen=True)
class Spread:
    """What several nights came to."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Row:
    """The nights with so many workers under one kind of contract. None: there is no deadline, or no price.

    `usd` is of every component, each a line of `bill`: its seconds and dollars in the mean of the nights.
    """

    workers: int
    pricing: str  # "on-demand" or "spot"
    nights: int
    done_s: Spread
    in_time_share: float | None
    usd: Spread | None
    bill: tuple[Item, ...]
    interruptions: float
    dead: float


def nights(stage: Stage, night: Night, calibration: Calibration | None, seed: int | None = None) -> list[Row]:
    """A row for each number of workers, on demand, and on spot machines where they are asked for.

    Raises ValueError when nothing says how long a batch takes, for a backlog that the queue does not hold, and where
    no spot price is known.
    """
    assert stage.queue is not None
    seed = stage.traffic.seed if seed is None else seed
    if night.backlog > stage.queue.max_depth:
        raise ValueError(
            f"queue.max_depth: must be at least the backlog ({night.backlog} jobs), got {stage.queue.max_depth}. "
            f"The rest would be refused. Use --set queue.max_depth={night.backlog}, or a smaller --backlog."
        )
    return [
        _row(stage, night, workers, calibration, seed, spot)
        for workers in night.workers
        for spot in ((False, True) if night.spot else (False,))
    ]


def work_off(
    stage: Stage,
    backlog: int,
    workers: int,
    calibration: Calibration | None,
    seed: int,
    interruptions_per_hour: float = 0.0,
    keep_times: bool = False,
) -> Worked:
    """One night: the backlog is there when the clock starts, and so many machines are started then."""
    crew = _Crew(stage, backlog, calibration, seed, interruptions_per_hour, keep_times)
    return crew.work(workers)


class _Crew:
    """The machines of a night, and the queue that they empty."""

    def __init__(
        self,
        stage: Stage,
        backlog: int,
        calibration: Calibration | None,
        seed: int,
        interruptions_per_hour: float,
        keep_times: bool,
    ) -> None:
        assert stage.queue is not None
        self._stage, self._calibration, self._seed = stage, calibration, seed
        self._interruptions_per_hour = interruptions_per_hour
        self._cold_start_s = stage.scaling.cold_start.total_s if stage.scaling else 0.0
        self._lease_s = stage.queue.lease_s
        self._env = Environment()
        self._broker = Broker(stage.queue, self._env)
        self._broker.put([NewJob(number, stage.queue.priorities - 1) for number in range(backlog)])
        self._backlog, self._stored = backlog, set[int]()
        host = calibration.host if calibration else None
        self._new = partial(
            Worker, stage, self._env, broker=self._broker, stored=self._stored, ended=self._ended, host=host
        )
        self._done = self._env.event()
        self._interruptions = 0
        self._keep_times, self._finished_s = keep_times, list[float]()
        self._gone: list[Machine] = []
        self._there: dict[int, Machine] = {}  # by worker; not given back yet

    def work(self, workers: int) -> Worked:
        """Works until everything is done or dead."""
        env = self._env
        for number in range(workers):
            env.process(self._machines(number))
        env.run(env.any_of([self._done, At(env, LIMIT_S)]))
        done_s = env.now if self._done.triggered else inf
        machines = [*self._gone, *(machine._replace(ended_s=env.now) for machine in self._there.values())]
        stored, dead = len(self._stored), len(self._broker.dead())
        return Worked(done_s, _in_order(machines), stored, dead, self._interruptions, tuple(self._finished_s))

    def _machines(self, number: int) -> Generator[Event, None, None]:
        """One machine after the other for worker `number`: each is replaced at once when it is taken away."""
        env, ends = self._env, lives_s(self._seed, number, self._interruptions_per_hour)
        device = open_device(of_replica(self._stage, number), self._calibration, seed=self._seed, number=number)
        while not self._done.triggered and env.now < LIMIT_S:
            started_s = env.now
            self._there[number] = Machine(number, started_s, None, started_s)
            ends_s = started_s + next(ends)
            yield from self._until(min(ends_s, started_s + self._cold_start_s, LIMIT_S))
            worker = None
            if env.now < min(ends_s, LIMIT_S) and not self._done.triggered:
                worker = self._new(number=number, device=device)
                self._there[number] = self._there[number]._replace(ready_s=env.now)
            if not self._done.triggered:
                yield from self._until(min(ends_s, LIMIT_S))
            self._gone.append(self._there.pop(number)._replace(ended_s=env.now))
            if worker is not None:
                worker.kill()
            if not self._done.triggered and env.now < LIMIT_S:
                self._interruptions += 1
                At(env, env.now + self._lease_s).add_callback(self._look)

    def _until(self, time_s: float) -> Generator[Event, None, None]:
        """Until that time, or until all is done."""
        yield self._env.any_of([self._done, At(self._env, time_s)])

    def _ended(self, *_: object) -> None:
        if self._keep_times:
            self._finished_s.append(self._env.now)
        self._look(None)

    def _look(self, event: Event | None) -> None:
        """Whether all is over: after each result, and when the leases of a machine that is gone have run out."""
        dead = len(self._broker.dead()) if event is not None or self._interruptions else 0
        if len(self._stored) + dead >= self._backlog and not self._done.triggered:
            self._done.succeed()


def _row(stage: Stage, night: Night, workers: int, calibration: Calibration | None, seed: int, spot: bool) -> Row:
    rate = night.interruptions_per_hour if spot else 0.0
    if stage.cost is not None:
        contracted(stage.cost, spot)  # what has no price is said before anything is worked off
    elif spot:
        raise ValueError(
            "cost: is required for --spot, got none. Nothing says what a machine costs. "
            "Use --set cost.machine=aws/g4dn.xlarge, or leave --spot out."
        )
    worked = list(_worked(stage, night.backlog, workers, calibration, seed, rate))
    in_time = None if night.deadline_s is None else float(np.mean([each.done_s <= night.deadline_s for each in worked]))
    bills = [found for each in worked if (found := bill_of(stage, each, spot)) is not None]
    return Row(
        workers,
        "spot" if spot else "on-demand",
        len(worked),
        _spread([each.done_s for each in worked]),
        in_time,
        _spread([each.usd for each in bills]) if bills else None,
        mean_items(bills),
        float(np.mean([each.interruptions for each in worked])),
        float(np.mean([each.dead for each in worked])),
    )


def _worked(
    stage: Stage, backlog: int, workers: int, calibration: Calibration | None, seed: int, rate: float
) -> Iterator[Worked]:
    """As many nights as chance asks for. Where devices take fixed times, one without interruptions is the calm one."""
    calm = work_off(stage, backlog, workers, calibration, seed) if calibration is None else None
    for night_seed in range(seed, seed + (REPLICATIONS if rate or calibration is not None else 1)):
        firsts_s = [next(lives_s(night_seed, number, rate)) for number in range(workers)]
        if calm is not None and min(firsts_s) > calm.done_s:
            yield calm
        else:
            yield work_off(stage, backlog, workers, calibration, night_seed, rate)


def lives_s(seed: int, number: int, interruptions_per_hour: float) -> Iterator[float]:
    """For how long the machines of worker `number` are there, one after the other, in seconds."""
    draws = stream(seed, "interruptions", number)
    while True:
        yield float(draws.exponential(3600.0 / interruptions_per_hour)) if interruptions_per_hour else inf


def bill_of(stage: Stage, worked: Worked, spot: bool) -> Bill | None:
    """What a night cost with its workers on spot machines, or on demand; None for a stage without [cost].

    Every component is paid: workers from the order of their machines on, and what stands beside them (jobs API, Redis
    server) until the last of them goes. Raises ValueError where a machine has no price of that kind.
    """
    if stage.cost is None:
        return None
    lives = [(machine.worker, machine.ordered_s, machine.ended_s) for machine in worked.machines]
    return bill_of_work(stage, contracted(stage.cost, spot), lives, worked.over_s, worked.stored)


def _spread(values: list[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))


def cheapest(rows: list[Row]) -> Row | None:
    """The cheapest of those that were done in time in every night and lost nothing; None where there is none."""
    good = [row for row in rows if row.in_time_share == 1.0 and not row.dead and row.usd and isfinite(row.usd.mean)]
    return min(good, key=lambda row: row.usd.mean if row.usd else inf, default=None)


def _in_order(machines: Sequence[Machine]) -> tuple[Machine, ...]:
    return tuple(sorted(machines, key=lambda machine: (machine.worker, machine.ordered_s)))
