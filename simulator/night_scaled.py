"""A backlog under an autoscaler: workers come by the stage's [scaling], from none on, and go when nothing is left.

    backlog ─▶ Broker ◀── Workers ◀── cold starts ◀── QueueFleet ◀── Autoscaler      until there are no more than
                                                                                     scaling.min_replicas

Twin: loadtests/night_scaled.py, which has the running stack do it. What is paid goes on until the last worker has gone,
so that the time which an autoscaler waits before it sends them away is on the bill. Not modelled: machines that are
taken away, or cannot be had.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from math import inf

from simpy import Environment, Event

from simulator.autoscaler import Autoscaler
from simulator.broker import Broker, NewJob
from simulator.clock import At
from simulator.device import Device
from simulator.night import LIMIT_S, Machine, Worked
from simulator.outcomes import Life
from simulator.queued import QueueFleet
from simulator.run import device_of
from simulator.worker import Worker
from stages.calibration import Calibration
from stages.spec import Stage

# How often it is looked whether the last worker has gone; when it went is known to the moment.
LOOK_S = 0.25


def work_off_scaled(
    stage: Stage, backlog: int, calibration: Calibration | None, seed: int, keep_times: bool = False
) -> Worked:
    """One night: the backlog is there when the clock starts, and so is the autoscaler, which has nobody yet.

    Raises ValueError for a stage without [scaling], and when nothing says how long a batch takes.
    """
    if stage.queue is None or stage.scaling is None:
        raise ValueError(
            "scaling: is required for workers that come by themselves, got none. Nobody would come. Use the stage "
            "queued, or say how many work."
        )
    env = Environment()
    crew = _Crew(stage, env, backlog, calibration)
    fleet = QueueFleet(env, crew, partial(device_of, stage, calibration, seed), 0)
    least = stage.scaling.min_replicas

    def over() -> bool:
        return crew.done_s < inf and len(fleet.members()) + len(fleet.starting()) <= least and not crew.draining

    autoscaler = Autoscaler(stage.scaling, env, fleet, 0, over)
    env.run(env.any_of([env.process(_until(env, over)), At(env, LIMIT_S)]))
    lives = [*(worker.life() for worker in crew.joined), *fleet.never_served()]
    ends_s = max([crew.done_s if crew.done_s < inf else env.now, *(life.stopped_s or 0.0 for life in lives)])
    return Worked(
        crew.done_s,
        machines(lives, ends_s),
        len(crew.stored),
        len(crew.broker.dead()),
        0,
        tuple(crew.finished_s) if keep_times else (),
        tuple((look.at_s, look.wanted) for look in autoscaler.looks if look.at_s <= ends_s),
    )


class _Crew:
    """The workers of a night and their queue, which holds the backlog; `join` them. Nobody is there as yet."""

    def __init__(self, stage: Stage, env: Environment, backlog: int, calibration: Calibration | None) -> None:
        assert stage.queue is not None
        self.broker = Broker(stage.queue, env)
        self.broker.put([NewJob(number, stage.queue.priorities - 1) for number in range(backlog)])
        self.workers: dict[int, Worker] = {}
        self.joined: list[Worker] = []
        self.stored: set[int] = set()
        self.finished_s: list[float] = []
        self.done_s = inf
        self._env, self._backlog = env, backlog
        host = calibration.host if calibration else None
        self._new = partial(Worker, stage, env, broker=self.broker, stored=self.stored, ended=self._ended, host=host)

    @property
    def draining(self) -> bool:
        """Whether anybody is on the way out."""
        return any(worker.draining and worker.left_s is None for worker in self.joined)

    def join(self, number: int, device: Device, started_s: float | None = None) -> Worker:
        """A worker on that device works from now on; it was started at `started_s`. Gives back the worker."""
        self.workers[number] = worker = self._new(number=number, device=device, started_s=started_s)
        self.joined.append(worker)
        return worker

    def _ended(self, *_: object) -> None:
        self.finished_s.append(self._env.now)
        if len(self.stored) == self._backlog:
            self.done_s = self._env.now


def machines(lives: list[Life], ends_s: float) -> tuple[Machine, ...]:
    """The machines of those lives, in the order in which they were ordered; who is still there was paid until then."""
    found = [
        Machine(life.number, life.started_s, life.ready_s, ends_s if life.stopped_s is None else life.stopped_s)
        for life in lives
    ]
    return tuple(sorted(found, key=lambda machine: (machine.ordered_s, machine.worker)))


def _until(env: Environment, over: Callable[[], bool]) -> Generator[Event, None, None]:
    while not over():
        yield At(env, env.now + LOOK_S)
