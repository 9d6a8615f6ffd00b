"""One worker, event by event: fetches jobs in batches, has its device compute them, and acknowledges them.

    Broker ── claim under a lease ──▶ company? ──▶ Device ──▶ ended: result stored, acknowledged
                  ▲                     │ late ─▶ timed out
                  └── the lease of one that was killed runs out: another worker has its jobs

Twin: reference_apps/worker.py. Idle workers hear of new jobs all at once, and the one that has been idle longest claims
first; one that waits for company comes before them. Beside another model on one GPU it waits for its turn
(simulator/sharing.py). Not modelled: models that fail, bad inputs, a broker or results that are down, and the storing
of results, which is part of what the host takes until an answer is back.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
from simpy import Environment, Event, Interrupt

from simulator.broker import Broker, Job
from simulator.clock import LATE, At
from simulator.device import Device
from simulator.outcomes import Life, ReplicaLog
from simulator.sharing import Card
from stages.calibration import HostCosts
from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.policies.queueing import extend_after_s
from stages.spec import Stage

__all__ = ["Worker"]

# As in the twin: how long one that is idle on a shared GPU takes to see that somebody waits, and how often one that
# waits for room looks.
CLAIM_WAIT_S = 0.25
DEFER_S = 0.1

# (worker, job, batch on that worker, place in it, when it was over, reason: "" for a result, "deadline" for none)
Ended = Callable[["Worker", Job, int, int, float, str], None]


class Worker:
    """A competing consumer of `broker`, which works from now on; it was started at `started_s`.

    Of `host` it takes what waking up and the time between batches cost. `stored` has the requests that have a result,
    of all workers of the queue. `ended` is told of each job that is over.
    """

    def __init__(
        self,
        stage: Stage,
        env: Environment,
        number: int,
        broker: Broker,
        device: Device,
        *,
        stored: set[int],
        ended: Ended | None = None,
        host: HostCosts | None = None,
        card: Card | None = None,
        started_s: float | None = None,
    ) -> None:
        assert stage.queue is not None
        self.number, self.device = number, device
        self.draining = False
        self.left_s: float | None = None  # when it was gone
        self._batching, self._lease_s = stage.batching, stage.queue.lease_s
        self._env, self._broker, self._card = env, broker, card
        self._stored, self._ended = stored, ended
        self._host = host or HostCosts()
        self._ready_s = env.now
        self._started_s = env.now if started_s is None else started_s
        self._idle = False
        self._held: list[Job] = []
        self._stop = env.event()
        self._batches: list[tuple[float, float, int]] = []
        self._served: list[int] = []
        self._expired: list[tuple[int, float]] = []
        self._process = env.process(self._serve())

    def drain(self) -> None:
        """Claims no more jobs; those that it has are computed."""
        self.draining = True
        if not self._stop.triggered:
            self._stop.succeed()

    def kill(self) -> None:
        """Ends it now, with whatever it was doing; its jobs stay under their leases until those run out."""
        if self.left_s is None:
            self._gone()
            if self._process.is_alive:
                self._process.interrupt()

    def life(self) -> Life:
        """What it has done so far, and when it was there."""
        started_s, finished_s, sizes = zip(*self._batches, strict=True) if self._batches else ((), (), ())
        expired, expired_s = zip(*self._expired, strict=True) if self._expired else ((), ())
        log = ReplicaLog(
            started_s=np.array(started_s, dtype=np.float64),
            finished_s=np.array(finished_s, dtype=np.float64),
            sizes=np.array(sizes, dtype=np.int64),
            served=np.array(self._served, dtype=np.int64),
            shed=np.empty(0, dtype=np.int64),
            expired=np.array(expired, dtype=np.int64),
            expired_s=np.array(expired_s, dtype=np.float64),
        )
        return Life(self.number, self.device.label, log, self._started_s, self._ready_s, self.left_s)

    def _serve(self) -> Generator[Event, None, None]:
        try:
            while not self.draining:
                if not (yield from self._may_compute()):
                    continue
                jobs = yield from self._claim()
                self._idle = not jobs
                if jobs:
                    yield from self._work(jobs)
                elif not self.draining:
                    yield from self._something_comes()
            self._gone()
        except Interrupt:
            pass

    def _gone(self) -> None:
        self.left_s, self._held = self._env.now, []
        if self._card is not None:
            self._card.leave()

    # ---- a GPU that is shared ----

    def _may_compute(self) -> Generator[Event, None, bool]:
        """Whether the model is where it computes now; otherwise some time has passed, or a job has come."""
        card = self._card
        if card is None:
            return True
        if card.resident:
            if not card.leave_if_due(self._idle):
                return True
            card.leave()
            yield At(self._env, self._env.now + DEFER_S)
            return False
        if not self._broker.depth().waiting:
            card.leave()  # no place in a line for nothing
            yield self._env.any_of([self._broker.comes(), self._stop])
            return False
        if card.enter():
            self._idle = False
            return True
        yield At(self._env, self._env.now + DEFER_S)
        return False

    def _something_comes(self) -> Generator[Event, None, None]:
        """Until a job may be had, it is to end, or it has seen that somebody waits for its room on the GPU."""
        env, card, ways = self._env, self._card, [self._broker.comes(), self._stop]
        if card is None:
            yield env.any_of(ways)
            return
        if not card.gpu.anybody_waits:
            yield env.any_of([*ways, card.gpu.asked()])
        if not any(way.triggered for way in ways):
            yield env.any_of([*ways, At(env, env.now + CLAIM_WAIT_S)])

    # ---- claim, compute, claim … ----

    def _claim(self) -> Generator[Event, None, list[Job]]:
        """The next batch; waits for company as long as its oldest job has not waited enough. Empty: there is none.

        One that slept meanwhile begins `host.wake_s` after the batch may leave; who comes in that time may ride along.
        """
        batching, broker, env = self._batching, self._broker, self._env
        most, slept = batching.max_batch_size, self._idle
        jobs = self._held = broker.claim(most, self._lease_s)
        if not jobs:
            return jobs
        self._extend_later(jobs)
        oldest_s = min(job.enqueued_s for job in jobs)
        while len(jobs) < most and not self.draining:
            leaves_s = leaves.leaves_at_s(len(jobs), oldest_s, most, batching.batch_wait_timeout_s)
            if leaves_s <= env.now:
                break
            slept = True
            yield env.any_of([broker.comes(), self._stop, At(env, leaves_s)])
            jobs += broker.claim(most - len(jobs), self._lease_s)
        if slept:
            yield At(env, env.now + self._host.wake_s, LATE)
            if len(jobs) < most and not self.draining:
                jobs += broker.claim(most - len(jobs), self._lease_s)
        return jobs

    def _work(self, jobs: list[Job]) -> Generator[Event, None, None]:
        """Computes a batch, and acknowledges it."""
        env = self._env
        tasks = [job for job in jobs if not self._is_over(job)]
        if not tasks:
            self._broker.ack(jobs)
            self._held = []
            return
        started_s = env.now
        yield At(env, started_s + self.device.service_time_s(len(tasks)))
        finished_s, batch = env.now, len(self._batches)
        self._batches.append((started_s, finished_s, len(tasks)))
        self._served += [job.request for job in tasks]
        for place, job in enumerate(tasks):
            self._end(job, batch, place, "")
        self._broker.ack(jobs)
        self._held = []
        yield At(env, finished_s + self._host.between_batches_s, LATE)

    def _is_over(self, job: Job) -> bool:
        """Whether there is nothing to compute: it has a result already, or nobody waits for one any more."""
        if job.request in self._stored:
            return True
        if not admits.expired(self._env.now - job.enqueued_s, job.deadline_s):
            return False
        self._expired.append((job.request, self._env.now))
        self._end(job, -1, 0, "deadline")
        return True

    def _end(self, job: Job, batch: int, place: int, reason: str) -> None:
        """The job has its result from now on; the first one stays."""
        if job.request in self._stored:
            return
        self._stored.add(job.request)
        if self._ended is not None:
            self._ended(self, job, batch, place, self._env.now, reason)

    def _extend_later(self, jobs: list[Job]) -> None:
        """Has the leases of a batch extended for as long as it is worked on; one that was killed has it no more."""

        def extend(_: Event) -> None:
            if self._held is jobs:
                self._broker.extend(jobs, self._lease_s)
                self._extend_later(jobs)

        At(self._env, self._env.now + extend_after_s(self._lease_s)).add_callback(extend)
