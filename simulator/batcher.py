"""The queue in front of a device, and the batch that leaves it.

    put ──▶ [ oldest … newest ] ──▶ take        put: a request arrives    take: a device is free

Twin: reference_apps/batcher.py. The decisions (room, expiry, when a batch leaves, how large) are in stages/policies.
Not modelled: the time that putting and taking themselves cost; simulator/host.py has it in its constants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import inf

from simpy import Environment, Event

from simulator.clock import LATE, At
from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.spec import Admission, Batching

__all__ = ["Batcher", "Request"]


@dataclass(slots=True, eq=False)
class Request:
    """One request that waits for its answer. Times are seconds of the virtual clock."""

    number: int  # which request of the run it is
    arrived_s: float
    deadline_s: float | None  # seconds after its arrival from which nobody waits any more
    refuse: Callable[[Request], None]  # told when the deadline ran out in the queue


class Batcher:
    """A bounded first-in-first-out queue that hands out batches. One process or more may take.

    A taker that sleeps runs again `wake_s` after the moment at which a batch may leave; whoever arrives meanwhile
    may ride along. A taker that was never asleep loses nothing.
    """

    def __init__(self, batching: Batching, admission: Admission, env: Environment, wake_s: float = 0.0) -> None:
        self._batching = batching
        self._max_queue_length = admission.max_queue_length
        self._env = env
        self._wake_s = wake_s
        self._queue: deque[Request] = deque()
        self._asleep: deque[Event] = deque()  # takers, in the order in which they fell asleep
        self._alarm_s = inf  # when the next of them is to be woken
        self._any_deadline = False
        self._closed = False

    def put(self, request: Request) -> bool:
        """Lets the request in, or gives back False: the queue is full or closed, and it is the caller's to refuse."""
        if self._closed or not admits.room(len(self._queue), self._max_queue_length):
            return False
        self._queue.append(request)
        self._any_deadline |= request.deadline_s is not None
        if self._asleep:
            self._set_alarm()
        return True

    def take(self) -> Generator[Event, None, list[Request]]:
        """A process that ends when a batch may leave, with that batch, oldest first; empty once closed and empty."""
        while True:
            self._drop_expired()
            if self._queue and self._leaves_at_s() <= self._env.now:
                size = leaves.batch_size(len(self._queue), self._batching.max_batch_size)
                batch = [self._queue.popleft() for _ in range(size)]
                if self._asleep:
                    self._set_alarm()
                return batch
            if self._closed and not self._queue:
                return []
            woken = self._env.event()
            self._asleep.append(woken)
            self._set_alarm()
            yield woken

    @property
    def queue_length(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @property
    def oldest_wait_s(self) -> float:
        """How long the oldest of them has waited, in seconds; 0 when none waits."""
        return self._env.now - self._queue[0].arrived_s if self._queue else 0.0

    def close(self) -> None:
        """Lets nobody in any more; those who wait still leave, without waiting for company."""
        self._closed = True
        while self._asleep:
            self._asleep.popleft().succeed()
        self._alarm_s = inf

    def _leaves_at_s(self) -> float:
        """When what waits may leave. Raises IndexError while nobody waits."""
        if self._closed:
            return -inf
        batching = self._batching
        return leaves.leaves_at_s(
            len(self._queue),
            self._queue[0].arrived_s,
            batching.max_batch_size,
            batching.batch_wait_timeout_s,
        )

    def _set_alarm(self) -> None:
        """Wakes the next taker when what waits may leave, unless it is to be woken before that anyway."""
        if not self._queue:
            return
        at_s = max(self._leaves_at_s(), self._env.now) + self._wake_s
        if at_s < self._alarm_s:
            self._alarm_s = at_s
            At(self._env, at_s, LATE).add_callback(self._ring)

    def _ring(self, _: Event) -> None:
        """An alarm that was set earlier since, or was for a batch that another taker took first, wakes nobody."""
        if self._alarm_s == self._env.now and self._asleep:
            self._alarm_s = inf
            self._asleep.popleft().succeed()

    def _drop_expired(self) -> None:
        """Deadlines may differ, so that any request of the queue may have run out, not the oldest only."""
        if not self._any_deadline:
            return
        now_s = self._env.now
        kept: deque[Request] = deque()
        for request in self._queue:
            if admits.expired(now_s - request.arrived_s, request.deadline_s):
                request.refuse(request)
            else:
                kept.append(request)
        self._queue = kept
