"""The queue in front of a device, and the batch that leaves it.

    put ──▶ [ oldest … newest ] ──▶ take        put: the event loop's thread    take: the device's own thread

Twin: simulator/batcher.py. The decisions (room, expiry, when a batch leaves, how large) are in stages/policies.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.spec import Admission, Batching

__all__ = ["Batcher", "Request"]


@dataclass(slots=True, eq=False)
class Request:
    """One decoded input that waits for its answer. Times are seconds of the clock that the batcher reads."""

    inputs: Any  # float32 array of one item's shape
    arrived_s: float
    deadline_s: float | None  # seconds after its arrival from which nobody waits any more
    refuse: Callable[[Request], None]  # told, on the taking thread, when the deadline ran out in the queue
    reply: Any = None  # where the answer goes


class Batcher:
    """A bounded first-in-first-out queue that hands out batches. Any thread may put; one or more may take."""

    def __init__(
        self,
        batching: Batching,
        admission: Admission,
        clock: Callable[[], float] = time.monotonic,
        changed: threading.Condition | None = None,  # what takers wait on: a test's own goes with a clock of its own
    ) -> None:
        self._batching = batching
        self._max_queue_length = admission.max_queue_length
        self._clock = clock
        self._queue: deque[Request] = deque()
        self._changed = changed or threading.Condition()
        self._any_deadline = False
        self._closed = False

    def put(self, request: Request) -> bool:
        """Lets the request in, or gives back False: the queue is full or closed, and it is the caller's to refuse.

        The taking thread is woken only where its decision may change: by the first request and by the one
        that fills a batch. Waking it for each would cost the event loop more than all the rest.
        """
        with self._changed:
            if self._closed or not admits.room(len(self._queue), self._max_queue_length):
                return False
            self._queue.append(request)
            self._any_deadline |= request.deadline_s is not None
            if len(self._queue) == 1 or len(self._queue) == self._batching.max_batch_size:
                self._changed.notify()
            return True

    def take(self) -> list[Request]:
        """Blocks until a batch may leave, and gives it, oldest first; an empty list once closed and empty."""
        with self._changed:
            while True:
                wait_s = self._wait_s()
                if wait_s == 0.0:
                    size = leaves.batch_size(len(self._queue), self._batching.max_batch_size)
                    batch = [self._queue.popleft() for _ in range(size)]
                    if self._queue:  # what is left may be a batch for another taker, whom no put has woken
                        self._changed.notify()
                    return batch
                if wait_s is None and self._closed:
                    return []
                self._changed.wait(wait_s)

    @property
    def queue_length(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @property
    def oldest_wait_s(self) -> float:
        """How long the oldest of them has waited, in seconds; 0 when none waits."""
        try:
            return max(0.0, self._clock() - self._queue[0].arrived_s)
        except IndexError:  # taken between two looks, by another thread
            return 0.0

    def close(self) -> None:
        """Lets nobody in any more; those who wait still leave, without waiting for company."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _wait_s(self) -> float | None:
        """Seconds until a batch may leave: 0 now, None while nobody waits. Drops the expired first."""
        now_s = self._clock()
        self._drop_expired(now_s)
        if not self._queue:
            return None
        if self._closed:
            return 0.0
        leaves_at_s = leaves.leaves_at_s(
            len(self._queue),
            self._queue[0].arrived_s,
            self._batching.max_batch_size,
            self._batching.batch_wait_timeout_s,
        )
        return max(0.0, leaves_at_s - now_s)

    def _drop_expired(self, now_s: float) -> None:
        """Deadlines may differ, so that any request of the queue may have run out, not the oldest only."""
        if not self._any_deadline:
            return
        kept: deque[Request] = deque()
        for request in self._queue:
            if admits.expired(now_s - request.arrived_s, request.deadline_s):
                request.refuse(request)
            else:
                kept.append(request)
        self._queue = kept
