"""A backlog that is worked off: when it is done, and for how long machines are paid.

    backlog ─▶ Broker ◀── Workers ◀── machines: cold start, works, is taken away, another one
                                        └─ by a stream of its own, "interruptions", a source a machine

Twin: loadtests/night.py, which has the running stack do it. A machine that is taken away ends without notice, as
by kill -9: its jobs wait for the end of their leases. Not modelled: the notice that clouds give, machines that cannot
be had, and the time that putting the backlog takes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite

import numpy as np
from simpy import Environment, Event

from simulator.broker import Broker, NewJob
from simulator.clock import At
from simulator.device import Device, open_device
from simulator.worker import Worker
from stages.calibration import Calibration, HostCosts
from stages.cost import usd_per_hour
from stages.night import Night, spot_usd_per_hour
from stages.spec import Stage, of_replica
from stages.streams import stream

# Whatever is not done by then never is.
LIMIT_S = 7 * 86_400.0
# So many nights are tried where chance has a hand in it. The next one is between the lowest and the highest of n with
# probability (n - 1) / (n + 1), whatever the distribution: 90 %.
REPLICATIONS = 19


@dataclass(frozen=True)
class Worked:
    """One night. `done_s` is infinite for one that is not done within LIMIT_S."""

    done_s: float
    paid_s: tuple[float, ...]  # of each worker's machines, one after the other
    stored: int
    dead: int
    interruptions: int
    finished_s: tuple[float, ...] = ()  # of each job that was stored, rising; where it was asked for


@dataclass(frozen=True)
class Spread:
    """What several nights came to."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Row:
    """The nights with so many workers under one kind of contract. None: there is no deadline, or no price."""

    workers: int
    pricing: str  # "on-demand" or "spot"
    nights: int
    done_s: Spread
    in_time_share: float | None
    usd: Spread | None
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
        self._host = calibration.host if calibration else HostCosts()
        self._interruptions_per_hour = interruptions_per_hour
        self._cold_start_s = stage.scaling.cold_start.total_s if stage.scaling else 0.0
        self._lease_s = stage.queue.lease_s
        self._env = Environment()
        self._broker = Broker(stage.queue, self._env)
        self._broker.put([NewJob(number, stage.queue.priorities - 1) for number in range(backlog)])
        self._backlog, self._stored = backlog, set[int]()
        self._done = self._env.event()
        self._interruptions = 0
        self._keep_times, self._finished_s = keep_times, list[float]()
        self._paid_s: dict[int, float] = {}  # for machines that are gone
        self._since_s: dict[int, float] = {}  # when the machine that is there was started

    def work(self, workers: int) -> Worked:
        """Works until everything is done or dead."""
        env = self._env
        for number in range(workers):
            env.process(self._machines(number))
        env.run(env.any_of([self._done, At(env, LIMIT_S)]))
        done_s = env.now if self._done.triggered else inf
        paid_s = tuple(
            self._paid_s.get(number, 0.0) + env.now - self._since_s.get(number, env.now) for number in range(workers)
        )
        stored, dead = len(self._stored), len(self._broker.dead())
        return Worked(done_s, paid_s, stored, dead, self._interruptions, tuple(self._finished_s))

    def _machines(self, number: int) -> Generator[Event, None, None]:
        """One machine after the other for worker `number`: each is replaced at once when it is taken away."""
        env, ends = self._env, lives_s(self._seed, number, self._interruptions_per_hour)
        device = open_device(of_replica(self._stage, number), self._calibration, seed=self._seed, number=number)
        while not self._done.triggered and env.now < LIMIT_S:
            started_s = self._since_s[number] = env.now
            ends_s = started_s + next(ends)
            yield from self._until(min(ends_s, started_s + self._cold_start_s, LIMIT_S))
            worker = self._begin(number, device) if env.now < min(ends_s, LIMIT_S) else None
            if not self._done.triggered:
                yield from self._until(min(ends_s, LIMIT_S))
            self._paid_s[number] = self._paid_s.get(number, 0.0) + env.now - self._since_s.pop(number)
            if worker is not None:
                worker.kill()
            if not self._done.triggered and env.now < LIMIT_S:
                self._interruptions += 1
                At(env, env.now + self._lease_s).add_callback(self._look)

    def _until(self, time_s: float) -> Generator[Event, None, None]:
        """Until that time, or until all is done."""
        yield self._env.any_of([self._done, At(self._env, time_s)])

    def _begin(self, number: int, device: Device) -> Worker:
        host = self._host
        return Worker(
            self._stage,
            self._env,
            number,
            self._broker,
            device,
            stored=self._stored,
            ended=self._ended,
            wake_s=host.wake_s,
            between_batches_s=host.between_batches_s,
        )

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
    cost, rate = stage.cost, night.interruptions_per_hour if spot else 0.0
    price: Callable[[int], float] | None = None
    if cost is not None:
        price = partial(spot_usd_per_hour if spot else usd_per_hour, cost)
    elif spot:
        raise ValueError(
            "cost: is required for --spot, got none. Nothing says what a machine costs. "
            "Use --set cost.machine=aws/g4dn.xlarge, or leave --spot out."
        )
    worked = list(_worked(stage, night.backlog, workers, calibration, seed, rate))
    in_time = None if night.deadline_s is None else float(np.mean([each.done_s <= night.deadline_s for each in worked]))
    return Row(
        workers,
        "spot" if spot else "on-demand",
        len(worked),
        _spread([each.done_s for each in worked]),
        in_time,
        None if price is None else _spread([usd_of(each, price) for each in worked]),
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


def usd_of(worked: Worked, price: Callable[[int], float]) -> float:
    """US dollars of a night whose worker `n` costs `price(n)` an hour."""
    return sum(seconds / 3600.0 * price(number) for number, seconds in enumerate(worked.paid_s))


def _spread(values: list[float]) -> Spread:
    return Spread(sum(values) / len(values), min(values), max(values))


def cheapest(rows: list[Row]) -> Row | None:
    """The cheapest of those that were done in time in every night and lost nothing; None where there is none."""
    good = [row for row in rows if row.in_time_share == 1.0 and not row.dead and row.usd and isfinite(row.usd.mean)]
    return min(good, key=lambda row: row.usd.mean if row.usd else inf, default=None)
