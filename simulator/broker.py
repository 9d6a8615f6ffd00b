"""The broker on the virtual clock: what was accepted and is not done yet, kept until somebody has done it.

    put ──▶ waiting ── claim ──▶ leased ── ack ──▶ gone
               ▲                   │
               ├──── delayed ◀─────┤ nack, or (with no delay) a lease that ran out: again, while attempts are left
               └── retry ── dead ◀─┘ the attempts are used up, or dead_letter

Twin: reference_apps/broker.py, which says what each word means; what both have to decide is in
stages/policies/queueing.py. A job is the number of a request instead of bytes, and who finds nothing waits for `comes`.
Not modelled: idempotency keys, payloads, the disk, a broker that is down, and the time that its calls take: the host's
costs have it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Literal

from simpy import Environment, Event

from simulator.clock import At
from stages.policies.queueing import accepts, is_dead, next_priority, ran_out
from stages.queue import Queue

__all__ = ["Broker", "Depth", "Job", "NewJob"]

State = Literal["waiting", "leased", "delayed", "dead"]

LEASE_RAN_OUT = "the lease of its last attempt ran out"


class QueueFullError(RuntimeError):
    """The broker holds as many jobs as it may; of this call none was accepted."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """What is to be done: the request of the run that it is."""

    request: int
    priority: int = 1  # 0 goes first; less than queue.priorities
    run_after_s: float = 0.0  # not before so many seconds from now
    deadline_s: float | None = None  # seconds after its coming from which nobody wants the result any more


@dataclass(frozen=True, slots=True)
class Job:
    """A job under a lease. Times are seconds of the virtual clock."""

    job: int  # those that were put later have larger ones
    request: int
    priority: int
    enqueued_s: float  # when it was put
    attempt: int  # deliveries, this one included
    lease: int  # of the claim that this job came with
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class DeadJob:
    """A job that nobody is given any more, until somebody says `retry`."""

    job: int
    request: int
    attempts: int
    error: str
    died_s: float


@dataclass(frozen=True, slots=True)
class Depth:
    """How many jobs are where, and how long the first in line of any priority has been ready, in seconds (0: none)."""

    waiting: int
    leased: int
    delayed: int
    dead: int
    oldest_s: float


@dataclass(slots=True, eq=False)
class _Kept:
    """What is known of a job inside."""

    new: NewJob
    enqueued_s: float
    state: State = "waiting"
    place: int = 0  # in the line of its priority
    ready_s: float = 0.0  # since when it could be had for the first time
    attempt: int = 0
    lease: int = 0
    due_s: float = inf  # of its lease or delay


class Broker:
    """A queue of one stage, empty as yet."""

    def __init__(self, queue: Queue, env: Environment) -> None:
        self._queue, self._env = queue, env
        self._jobs: dict[int, _Kept] = {}
        self._dead: dict[int, DeadJob] = {}  # the longest dead first
        self._lines: list[list[tuple[int, int]]] = [[] for _ in range(queue.priorities)]  # heaps of (place, job)
        self._due: list[tuple[float, int, int]] = []  # a heap of (when, place, job), those that are over by now too
        self._in_state = {"leased": 0, "delayed": 0}
        self._numbers, self._places, self._leases = itertools.count(), itertools.count(), itertools.count(1)
        self._comes: Event | None = None
        self._alarm_s = inf

    def put(self, jobs: Sequence[NewJob]) -> list[int]:
        """Accepts the jobs, all or none, and gives their numbers in their order. Raises QueueFullError."""
        self._sweep()
        if not accepts(len(self._jobs), len(jobs), self._queue.max_depth):
            raise QueueFullError(f"queue.max_depth: {len(self._jobs)} jobs are inside")
        return [self._put(new) for new in jobs]

    def claim(self, most: int, lease_s: float) -> list[Job]:
        """At most so many waiting jobs, each of them the caller's alone for `lease_s` seconds; none when none waits.

        The highest priority comes first; within it, the job that has been ready longest.
        """
        self._sweep()
        lease, claimed = next(self._leases), list[Job]()
        while len(claimed) < most and (first := next_priority([len(line) for line in self._lines])) is not None:
            _, number = heappop(self._lines[first])
            kept = self._jobs[number]
            kept.attempt, kept.lease = kept.attempt + 1, lease
            self._until(number, kept, "leased", lease_s)
            new = kept.new
            claimed.append(Job(number, new.request, new.priority, kept.enqueued_s, kept.attempt, lease, new.deadline_s))
        return claimed

    def comes(self) -> Event:
        """An event that fires at the next moment at which there is something to claim that was not there before.

        Everybody who waits hears of it, the one that began to wait first before the others.
        """
        if self._comes is None or self._comes.triggered:
            self._comes = self._env.event()
        self._set_alarm()
        return self._comes

    def ack(self, jobs: Sequence[Job]) -> int:
        """The jobs are done, and gone; how many of them were still the caller's."""
        ours = self._ours(jobs)
        for number in ours:
            self._leave(self._jobs.pop(number))
        return len(ours)

    def nack(self, job: Job, error: str, delay_s: float) -> bool:
        """The attempt failed: again in `delay_s` seconds, or a dead letter when it was the last of
        queue.attempts_max. False, and nothing done, when the job was not the caller's any more."""
        if not self._ours([job]):
            return False
        kept = self._jobs[job.job]
        self._leave(kept)
        if is_dead(kept.attempt, self._queue.attempts_max):
            self._die(job.job, kept, error)
        elif delay_s > 0:
            self._until(job.job, kept, "delayed", delay_s)
        else:
            self._line_up(job.job, kept)
        return True

    def extend(self, jobs: Sequence[Job], lease_s: float) -> int:
        """The leases last `lease_s` seconds from now; how many of the jobs were still the caller's."""
        ours = self._ours(jobs)
        for number in ours:
            self._leave(self._jobs[number])
            self._until(number, self._jobs[number], "leased", lease_s)
        return len(ours)

    def dead_letter(self, job: Job, error: str) -> bool:
        """No attempt would end otherwise: a dead letter at once. False when it was not the caller's any more."""
        if not self._ours([job]):
            return False
        self._leave(self._jobs[job.job])
        self._die(job.job, self._jobs[job.job], error)
        return True

    def dead(self) -> list[DeadJob]:
        """The dead letters, the longest dead first."""
        self._sweep()
        return list(self._dead.values())

    def retry(self, jobs: Sequence[int] | None = None) -> int:
        """These dead letters, or all, wait once more: at the end of the line, with all their attempts. How many."""
        chosen = self._chosen(jobs)
        for number in chosen:
            del self._dead[number]
            kept = self._jobs[number]
            kept.attempt, kept.place, kept.ready_s = 0, next(self._places), self._env.now
            self._line_up(number, kept)
        return len(chosen)

    def forget(self, jobs: Sequence[int] | None = None) -> int:
        """Throws these dead letters away, or all of them; how many there were."""
        chosen = self._chosen(jobs)
        for number in chosen:
            del self._dead[number], self._jobs[number]
        return len(chosen)

    def depth(self) -> Depth:
        """The queue's depth and age."""
        self._sweep()
        heads = [self._jobs[line[0][1]].ready_s for line in self._lines if line]
        return Depth(
            sum(map(len, self._lines)),
            self._in_state["leased"],
            self._in_state["delayed"],
            len(self._dead),
            self._env.now - min(heads, default=self._env.now),
        )

    def _put(self, new: NewJob) -> int:
        number, now_s = next(self._numbers), self._env.now
        self._jobs[number] = kept = _Kept(new, now_s, place=next(self._places), ready_s=now_s)
        if new.run_after_s > 0:
            self._until(number, kept, "delayed", new.run_after_s)
        else:
            self._line_up(number, kept)
        return number

    def _ours(self, jobs: Sequence[Job]) -> list[int]:
        """Those of the jobs whose lease is the one that they came with, and not over."""
        self._sweep()
        return [job.job for job in jobs if (kept := self._jobs.get(job.job)) is not None and _is_held(kept, job.lease)]

    def _chosen(self, jobs: Sequence[int] | None) -> list[int]:
        """Those of the jobs that are dead letters, each once; all where none is named."""
        self._sweep()
        return list(self._dead) if jobs is None else [job for job in dict.fromkeys(jobs) if job in self._dead]

    def _line_up(self, number: int, kept: _Kept) -> None:
        """It waits, at the place that it has, and whoever waits for work hears of it."""
        kept.state, kept.due_s = "waiting", inf
        heappush(self._lines[kept.new.priority], (kept.place, number))
        if self._comes is not None and not self._comes.triggered:
            self._comes.succeed()

    def _until(self, number: int, kept: _Kept, state: Literal["leased", "delayed"], seconds: float) -> None:
        """It is in that state for so long, unless something else becomes of it."""
        kept.state, kept.due_s = state, self._env.now + seconds
        self._in_state[state] += 1
        heappush(self._due, (kept.due_s, kept.place, number))
        self._set_alarm()

    def _leave(self, kept: _Kept) -> None:
        """It is leased or delayed no more."""
        self._in_state[kept.state] -= 1
        kept.due_s = inf

    def _die(self, number: int, kept: _Kept, error: str) -> None:
        kept.state = "dead"
        self._dead[number] = DeadJob(number, kept.new.request, kept.attempt, error, self._env.now)

    def _sweep(self) -> None:
        """Ends the leases and delays that are over by now, in the order of their ends."""
        while self._due and ran_out(self._due[0][0], self._env.now):
            due_s, _, number = heappop(self._due)
            if not self._is_due(number, due_s):
                continue
            kept = self._jobs[number]
            leased = kept.state == "leased"
            self._leave(kept)
            if leased and is_dead(kept.attempt, self._queue.attempts_max):
                self._die(number, kept, LEASE_RAN_OUT)
                continue
            if kept.attempt == 0:  # it was delayed when it was put, and comes into the line now
                kept.place, kept.ready_s = next(self._places), self._env.now
            self._line_up(number, kept)

    def _is_due(self, number: int, due_s: float) -> bool:
        """Whether an entry of the heap still holds: the job may be gone, extended, or elsewhere."""
        kept = self._jobs.get(number)
        return kept is not None and kept.due_s == due_s

    def _set_alarm(self) -> None:
        """Has somebody look when the next lease or delay is over, where anybody waits for it."""
        if self._comes is None or self._comes.triggered:
            return
        while self._due and not self._is_due(self._due[0][2], self._due[0][0]):
            heappop(self._due)
        if self._due and self._due[0][0] < self._alarm_s:
            self._alarm_s = max(self._due[0][0], self._env.now)
            At(self._env, self._alarm_s).add_callback(self._ring)

    def _ring(self, _: Event) -> None:
        """An alarm that an earlier one has replaced looks in vain, and sets the next all the same."""
        if self._alarm_s == self._env.now:
            self._alarm_s = inf
        self._sweep()
        self._set_alarm()


def _is_held(kept: _Kept, lease: int) -> bool:
    return kept.state == "leased" and kept.lease == lease
