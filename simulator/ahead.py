"""A single replica whose arrivals are all known up front: an iteration a batch, not an event a request.

    arrivals ─▶ [ a run of them joins, or is shed ] ─▶ the device takes a batch ─▶ next moment at which it can
                  one look-up in the sorted array        the same policy functions as simulator/batcher.py

It runs as one SimPy process and goes ahead of the clock as long as nobody else has an event, so that others may
watch it. One request at a time, and no deadline that runs out, needs less still (`_one_at_a_time`). Its log is the
same, bit for bit, as that of simulator/replica.py, its reference. No twin, and nothing that is not modelled there.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator
from math import inf

import numpy as np
from simpy import Environment, Event

from simulator.clock import LATE, At
from simulator.device import Device
from simulator.draws import Floats
from simulator.host import Host
from simulator.outcomes import ReplicaLog
from stages.policies import admission as admits
from stages.policies import batching as leaves
from stages.spec import Stage


def serve(stage: Stage, arrivals_s: Floats, device: Device, host: Host) -> ReplicaLog:
    """What a replica does with requests that arrive at `arrivals_s` (ascending, seconds)."""
    env = Environment()
    replica = ReplicaAhead(stage, env, device, host, arrivals_s)
    env.process(replica.run())
    env.run()
    return replica.log()


class ReplicaAhead:
    """A replica that has read the schedule. `env.process(replica.run())`, then `log()` when that has ended."""

    def __init__(self, stage: Stage, env: Environment, device: Device, host: Host, arrivals_s: Floats) -> None:
        self._env, self._device, self._host = env, device, host
        self._batching, self._admission = stage.batching, stage.admission
        self._arrivals_s = arrivals_s
        self._listed_s: list[float] = []  # the same as a list: Python reads that faster, one by one
        self._admitted_s: list[float] = []  # arrival times of all who were let in
        self._head = 0  # how many of those have left the queue
        self._next = 0  # how many requests have arrived
        self._started_s: list[float] | Floats = []
        self._finished_s: list[float] | Floats = []
        self._sizes: list[int] | np.ndarray = []
        self._shed: list[tuple[int, int]] = []  # ranges of requests
        self._expired: list[tuple[int, float]] = []  # (which of the admitted, when)

    @property
    def queue_length(self) -> int:
        """Requests that wait now. Of use to those who watch; by itself the process is ahead of the clock."""
        arrived = bisect_right(self._listed_s, self._env.now, self._next) - self._next
        waiting = len(self._admitted_s) - self._head
        return waiting + min(arrived, admits.room(waiting, self._admission.max_queue_length))

    def run(self) -> Generator[Event, None, None]:
        """The process: serves every arrival, and ends with the last batch."""
        alone = self._env.peek() == inf
        if not (alone and self._batching.max_batch_size == 1 and self._one_at_a_time()):
            yield from self._batch_by_batch()
        if len(self._finished_s) and self._finished_s[-1] > self._env.now:
            yield At(self._env, float(self._finished_s[-1]))

    def log(self) -> ReplicaLog:
        """What was done."""
        count = self._arrivals_s.size
        admitted = np.ones(count, dtype=bool)
        for start, stop in self._shed:
            admitted[start:stop] = False
        numbers = np.flatnonzero(admitted)
        dropped = np.array([place for place, _ in self._expired], dtype=np.int64)
        return ReplicaLog(
            started_s=np.asarray(self._started_s, dtype=np.float64),
            finished_s=np.asarray(self._finished_s, dtype=np.float64),
            sizes=np.asarray(self._sizes, dtype=np.int64),
            served=np.delete(numbers, dropped) if dropped.size else numbers,
            shed=np.flatnonzero(~admitted),
            expired=numbers[dropped],
            expired_s=np.array([dropped_s for _, dropped_s in self._expired], dtype=np.float64),
        )

    def _batch_by_batch(self) -> Generator[Event, None, None]:
        """One iteration each time that the device looks at its queue; `now` is when it does.

        Between two looks the queue only grows, so that of a run of arrivals the first `room` join it.
        """
        env, service_time_s, wake_s = self._env, self._device.service_time_s, self._host.wake_s
        max_size, wait_s = self._batching.max_batch_size, self._batching.batch_wait_timeout_s
        max_queue, deadline_s = self._admission.max_queue_length, self._admission.deadline_s
        between_s = self._host.between_batches_s
        arrivals = self._listed_s = self._arrivals_s.tolist()
        count, admitted = len(arrivals), self._admitted_s
        started: list[float] = []
        finished: list[float] = []
        sizes: list[int] = []
        self._started_s, self._finished_s, self._sizes = started, finished, sizes
        head = next_ = 0
        now, others_s = -inf, env.peek()
        while True:
            if now >= others_s:
                self._head, self._next = head, next_
                yield At(env, now, LATE)
                others_s = env.peek()
            stop = bisect_right(arrivals, now, next_)
            if stop > next_:
                last = next_ + admits.room(len(admitted) - head, max_queue)
                if last < stop:
                    self._shed.append((last, stop))
                admitted += arrivals[next_ : min(last, stop)]
                next_ = stop
            while head < len(admitted) and admits.expired(now - admitted[head], deadline_s):
                self._expired.append((head, now))
                head += 1
            length = len(admitted) - head
            if length == 0 and next_ == count:
                return
            oldest_s = admitted[head] if length else arrivals[next_]
            leaves_s = leaves.leaves_at_s(length or 1, oldest_s, max_size, wait_s)
            if length and leaves_s <= now:
                size = leaves.batch_size(length, max_size)
                started.append(now)
                sizes.append(size)
                head += size
                ends_s = now + service_time_s(size)
                finished.append(ends_s)
                now = ends_s + between_s
                continue
            filling = next_ + max_size - length - 1  # the arrival that would make the batch full
            if filling < count and admits.room(length, max_queue) >= max_size - length:
                full_s = leaves.leaves_at_s(max_size, oldest_s, max_size, wait_s)
                leaves_s = min(leaves_s, max(full_s, arrivals[filling]))
            now = leaves_s + wake_s

    def _one_at_a_time(self) -> bool:
        """Fills the log if nobody's deadline runs out; otherwise leaves it as it was and gives back False.

        Lindley's recursion (Wikipedia, "Lindley equation"), with a wake added: a request starts when it arrives or
        when the device is done with the one before it, whichever is later. So a start is known at the arrival, and
        the queue is full as long as the last but `room` of the admitted has not started. As running sums and a
        running maximum of arrays it would be faster, but rounding would have some start before they arrive.
        """
        arrivals_s = self._arrivals_s
        service_s = self._device.times.ahead_s(1, arrivals_s.size)
        wake_s, between_s = self._host.wake_s, self._host.between_batches_s
        room = min(admits.room(0, self._admission.max_queue_length), arrivals_s.size)
        started, shed = [-inf] * room, []
        takes_s = iter(service_s.tolist())
        now = -inf
        for number, arrived_s in enumerate(arrivals_s.tolist()):
            if started[-room] >= arrived_s:
                shed.append((number, number + 1))
                continue
            if arrived_s > now:
                now = arrived_s + wake_s
            started.append(now)
            now = now + next(takes_s) + between_s
        started_s = np.array(started[room:], dtype=np.float64)
        waits_s = started_s - np.delete(arrivals_s, [number for number, _ in shed])
        if admits.expired(float(waits_s.max(initial=0.0)), self._admission.deadline_s):
            return False
        self._shed = shed
        self._started_s, self._finished_s = started_s, started_s + service_s[: started_s.size]
        self._sizes = np.ones(started_s.size, dtype=np.int64)
        return True
